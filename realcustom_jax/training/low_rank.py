"""Low-rank changes of a network's weights (LoRA, arXiv 2106.09685) as parameters to train.

A kernel W [..., in, out] becomes W + A B, A [..., in, r], B [..., r, out]; that of a convolution [h, w, in, out] has A
[h, w, in, r] and B [1, 1, r, out], so that both are kernels themselves and have torch's names and layouts by the same
rule as all others (module `weights`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.model_files import weights

Path = tuple[str, ...]


def init_low_rank(key: jax.Array, params, rank: int, chosen: Callable[[Path], bool]) -> dict:
    """{"A": …, "B": …}: two trees of the kernels of `params` whose path is `chosen`, float32. A is drawn, B is zero, so
    that nothing changes at first."""
    down, up = {}, {}
    for i, (path, kernel) in enumerate(sorted(flatten_dict(params).items())):
        if path[-1] != "kernel" or not chosen(path):
            continue
        *lead, inner, outer = kernel.shape
        fan_in = inner * (math.prod(lead) if _is_convolution(kernel) else 1)
        down[path] = jax.random.normal(jax.random.fold_in(key, i), (*lead, inner, rank)) / fan_in**0.5
        up[path] = jnp.zeros(((1, 1) if _is_convolution(kernel) else tuple(lead)) + (rank, outer))
    return {"A": unflatten_dict(down), "B": unflatten_dict(up)}


def merge_low_rank(params, low_rank) -> dict:
    """The parameters with the changes in them."""
    down, up = flatten_dict(low_rank["A"]), flatten_dict(low_rank["B"])
    changed = dict(flatten_dict(params))
    for path, a in down.items():
        b = up[path]
        change = jnp.einsum("hwir,ro->hwio", a, b[0, 0]) if _is_convolution(a) else a @ b
        changed[path] = changed[path] + change.astype(changed[path].dtype)
    return unflatten_dict(changed)


def low_rank_tensors(low_rank, prefix: str = "unet.") -> dict[str, np.ndarray]:
    """The changes as a file holds them, in the names of PEFT and diffusers: NAME.lora_A.weight, NAME.lora_B.weight."""
    tensors = {}
    for part in ("A", "B"):
        for name, value in weights.to_torch(low_rank[part], prefix).items():
            tensors[f"{name.removesuffix('.weight')}.lora_{part}.weight"] = value
    return tensors


def _is_convolution(kernel: jax.Array) -> bool:
    return kernel.ndim == 4
