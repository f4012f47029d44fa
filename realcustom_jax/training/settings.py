"""How a stage is optimised and watched, as numbers that are checked when they are read."""

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from realcustom_jax.errors import check_choice
from realcustom_jax.training.checkpoints import ON_EXISTING


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(value))


# Each limit of `TrainSettings` is given in words, as a test, and with the fields that it holds for.
_LIMITS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a whole number, at least 1": (
        lambda x: _whole(x) and x >= 1, ("steps", "batch_size", "accumulate", "save_every", "log_every", "keep")),
    "a whole number, 0 or more": (
        lambda x: _whole(x) and x >= 0,
        ("warmup", "sample_every", "evaluate_every", "evaluate_pictures_every", "keep_every", "seed")),
    "a number from 0 to 1": (lambda x: _finite(x) and 0 <= x <= 1, ("decay", "ema")),
    "a number above 0": (lambda x: _finite(x) and x > 0, ("learning_rate", "clip")),
    "a number, 0 or more": (lambda x: _finite(x) and x >= 0, ("weight_decay",)),
    "a text": (lambda x: isinstance(x, str), ("wandb", "profile_steps")),
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How one stage is optimised. The learning rate warms up linearly, stays, and falls to 0 over the last `decay` of
    the steps. `accumulate` parts of a batch are computed one after the other, for batches that memory does not hold at
    once (a loss that compares examples, as a contrast does, then sees a part's only); the rest is about checkpoints
    (module `checkpoints`) and what is written how often, in steps; 0 for `sample_every`, `evaluate_every` (the loss of
    held-out pairs) or `evaluate_pictures_every` (pictures that a judge scores): never.

    wandb: the project at Weights & Biases that gets what metrics.jsonl gets; "": none. profile_steps: FIRST:LAST, the
    steps from FIRST on and before LAST are traced by JAX's profiler; "": none.

    Raises ValueError for a value with which no training can run; names the field and says what was expected."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 250
    sample_every: int = 500
    evaluate_every: int = 0
    evaluate_pictures_every: int = 0
    log_every: int = 20
    keep: int = 2
    keep_every: int = 0
    on_existing: str = "resume"
    accumulate: int = 1
    wandb: str = ""
    profile_steps: str = ""

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, ("adamw", "muon"))
        check_choice("on_existing", self.on_existing, ON_EXISTING)
        for expected, (fits, names) in _LIMITS.items():
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size} evenly.")
        if self.profiled and self.profiled.stop > self.steps:
            raise ValueError(f"profile_steps is {self.profile_steps!r}, and the training has {self.steps} steps; give "
                             "steps that it has.")
        if self.wandb and not ("wandb" in sys.modules or importlib.util.find_spec("wandb")):
            raise ValueError(f"wandb is {self.wandb!r}, a project at Weights & Biases, whose package is missing: "
                             "pip install wandb, or leave it empty.")

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`; empty where there are none."""
        if not self.profile_steps:
            return range(0)
        read = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
        steps = range(int(read[1]), int(read[2])) if read else range(0)
        if not steps:
            raise ValueError(f"profile_steps is {self.profile_steps!r}; expected FIRST:LAST, two numbers of steps of "
                             "which the second is larger, such as 100:105.")
        return steps
