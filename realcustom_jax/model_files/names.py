"""Names of tensors as tools leave them in files: wrapped in other modules' names, with what training keeps beside them.

A model that was saved from within another module (PyTorch's data parallel `module.`, its compiler's `_orig_mod.`, a
trainer's `model.`) has that module's name in front of all its names; and trainers write counters and the state of
their optimizers into the same file. Both say nothing about the tensors.
"""

import re
from collections.abc import Collection

_WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model.")
_GENUINE = "model.diffusion_model."  # of single files: this `model.` is a part of the name
_BOOKKEEPING = re.compile(
    r"(global_step|epochs?|steps?|iterations?|iter|n_averaged|num_updates|lr|learning_rate|best_\w+|loss|seed"
    r"|pytorch-lightning_version|version|format)$"
    r"|(optimizers?|optimizer_states?|optim|lr_schedulers?|schedulers?|(grad_)?scaler|callbacks|loops|hyper_parameters"
    r"|hparams|args|config|rng_state|random_state|embedding_manager)(\.|$)")
MARKERS = ("v_pred", "ztsnr")
"""Names of empty tensors by which a file says that its UNet predicts v, and that its noise ends in pure noise."""


def is_bookkeeping(name: str) -> bool:
    """Whether the name is one of those under which training keeps what is no weight of a network."""
    return bool(_BOOKKEEPING.match(name))


def wrapping(names: Collection[str]) -> str:
    """What stands in front of all the names, but those of bookkeeping and `MARKERS`, and is another module's: wrappers
    in any sequence; "" where there is none."""
    names = [name for name in names if not is_bookkeeping(name) and name not in MARKERS]
    prefix = ""
    while names:
        rest = [name[len(prefix):] for name in names]
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in rest)), None)
        if wrapper is None or wrapper == "model." and any(name.startswith(_GENUINE) for name in rest):
            break
        prefix += wrapper
    return prefix


def listed(names: Collection[str], most: int = 20) -> str:
    """The names in one line, sorted, no more than `most` of them."""
    shown = [name if name.isprintable() else repr(name) for name in sorted(names)[:most]]
    return ", ".join(shown) + f" … ({len(names)} in all)" * (len(names) > most)
