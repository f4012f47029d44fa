"""What a UNet evaluation needs and the latents do not change, computed once for all steps of a sampling run.

`UNet.apply({"params": params, "context": context}, …)` reads it from the variable collection "context", a tree of the
parameters' shape, reduced to

    cross-attention layers    to_k, to_v [B,C,T]; with vision also to_k_vision, to_v_vision [B,R,C,L]
    residual blocks           shift [B,C], what the embedding of the timestep adds

with a leading layer axis where layers are scanned. What the context holds is not computed again. Tokens are the last
axis, as the product with the queries reads them: a CPU takes half as long for it as from the usual order.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from realcustom_jax.models.unet import Embedding, UNet, time_features


def project_tokens(params, text: jax.Array, vision: jax.Array | None, dtype: jnp.dtype = jnp.float32) -> dict:
    """The keys and values of all cross-attention layers.

    Args:
        params: the UNet's parameters.
        text: [B,T,D] text tokens. vision: [B,R,L,D] projected vision tokens, or None.
        dtype: the UNet's compute dtype.
    """
    inputs = {"to_k": text, "to_v": text}
    if vision is not None:
        inputs |= {"to_k_vision": vision, "to_v_vision": vision}

    def project(name, kernel):
        def layer(kernel):
            return (inputs[name].astype(dtype) @ kernel.astype(dtype)).swapaxes(-1, -2)

        return layer(kernel) if kernel.ndim == 2 else jax.vmap(layer)(kernel)

    return _at(params, "attn2", lambda layer: {name: project(name, layer[name]["kernel"]) for name in inputs})


def project_time(
    unet: UNet, params, timestep: ArrayLike, pooled: jax.Array | None, time_ids: jax.Array | None
) -> dict:
    """The shifts of all residual blocks at a timestep; arguments as of `UNet.__call__`, timestep [B]."""
    width = 4 * unet.config.block_out_channels[0]
    embedding = sum(
        Embedding(width, unet.dtype).apply({"params": params[name]}, x)
        for name, x in time_features(unet.config, timestep, pooled, time_ids).items())

    def shift(layer):
        dense = nn.Dense(layer["bias"].shape[-1], dtype=unet.dtype)
        return dense.apply({"params": layer}, nn.silu(embedding))

    return _at(params, "time_emb_proj", shift, rename="shift")


def merge(*contexts: dict) -> dict:
    """One context of several that hold different things."""
    return unflatten_dict({path: leaf for context in contexts for path, leaf in flatten_dict(context).items()})


def _at(params, name: str, function: Callable, rename: str | None = None) -> dict:
    """The tree of the modules called `name`, each replaced by `function` of its parameters."""
    found = {}
    for key, child in params.items():
        if key == name:
            found[rename or name] = function(child)
        elif isinstance(child, dict) and (inner := _at(child, name, function, rename)):
            found[key] = inner
    return found
