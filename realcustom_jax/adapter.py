"""The adapter: what RealCustom++ trains, apart from the frozen base model.

It is the projector and, in every text cross-attention of the UNet, `to_k_vision` and `to_v_vision`. In a file both
stand in torch names, the projector under `weights.PROJECTOR_PREFIX`, as in the released checkpoints.
"""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax import weights

_LAYERS = {"to_k_vision", "to_v_vision"}


def split_unet(params) -> tuple[dict, dict]:
    """The UNet's parameters as (visual attention layers, everything else), two nested dicts."""
    flat = flatten_dict(params)
    vision = {path: leaf for path, leaf in flat.items() if _LAYERS & set(path)}
    return unflatten_dict(vision), unflatten_dict({path: leaf for path, leaf in flat.items() if path not in vision})


def merge_unet(vision, base) -> dict:
    """The inverse of `split_unet`."""
    return unflatten_dict({**flatten_dict(base), **flatten_dict(vision)})


def to_torch(projector, vision) -> dict[str, np.ndarray]:
    """The adapter's tensors in torch names, as the released file holds them."""
    return weights.to_torch(projector, weights.PROJECTOR_PREFIX) | weights.to_torch(vision)
