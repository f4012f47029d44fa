"""What a UNet evaluation needs and the latents do not change, computed once for all steps of a sampling run.

`UNet.apply({"params": params, "context": context}, …)` reads it from the variable collection "context", a tree of the
parameters' shape, reduced to

    cross-attention layers    to_k, to_v [B, T, C]; with vision also to_k_vision, to_v_vision [B, R, L, C]
    residual blocks           shift [B, C], what the embedding of the timestep adds

with a leading layer axis where layers are scanned. What the context holds is not computed again. On a CPU the tokens
are the last axis (`Platform.tokens_last`).
"""

import re
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.unet import Embedding, UNet, time_features


def project_tokens(module: nn.Module, params, text: jax.Array, vision: jax.Array | None) -> dict:
    """The keys and values of all cross-attention layers.

    Args:
        module: the UNet or one of its blocks, whose dtype and platform say what is made.
        params: the module's parameters.
        text: [B, T, D] text tokens. vision: [B, R, L, D] projected vision tokens, or None.
    """
    inputs = {"to_k": text, "to_v": text}
    if vision is not None:
        inputs |= {"to_k_vision": vision, "to_v_vision": vision}

    def project(name, kernel):
        def layer(kernel):
            tokens = inputs[name].astype(module.dtype) @ kernel.astype(module.dtype)
            return tokens.swapaxes(-1, -2) if module.platform.tokens_last else tokens

        return layer(kernel) if kernel.ndim == 2 else jax.vmap(layer)(kernel)

    return _at(params, "attn2", lambda layer: {name: project(name, layer[name]["kernel"]) for name in inputs})


def scale_vision(tokens: dict, scale: ArrayLike | Mapping[str, ArrayLike], references: int) -> dict:
    """The `tokens` of all layers, with the strength of each reference's visual term in their values, to which the term
    is linear.

    Args:
        tokens: the keys and values of text and vision tokens in all layers, a nested dict as the UNet's parameters are.
        scale: one number, or one for each of the R `references`, [R]. Or a mapping from blocks to either: "down", "mid"
            and "up" are the three parts of the UNet, "up_blocks.1" and "up_blocks.1.attentions.0" are parts of these,
            as diffusers names them. The longest name that fits a layer counts; a layer that none fits keeps 1.
    Raises:
        ValueError: a block that is not there or has no attention, or strengths that do not fit the references.
    """
    check_strengths(scale, references)
    by_block = scale if isinstance(scale, Mapping) else {"": scale}
    strengths = {name.replace(".", "_"): _strengths(x, references) for name, x in by_block.items()}
    values = {path: leaf for path, leaf in flatten_dict(tokens).items() if path[-1] == "to_v_vision"}
    names = {path: "_".join(path) + "_" for path in values}
    for block in strengths if isinstance(scale, Mapping) else ():
        if not block or not any(name.startswith(block + "_") for name in names.values()):
            blocks = sorted({path[0].replace("_blocks_", "_blocks.") for path in values})
            raise ValueError(f"vision_scale names the block {block!r}, which has no visual attention; there are down, "
                             f"mid, up, {', '.join(blocks)} and their attentions.0, attentions.1, ….")

    def scaled(path, leaf):
        fitting = [block for block in strengths if not block or names[path].startswith(block + "_")]
        if not fitting:
            return leaf
        return leaf * strengths[max(fitting, key=len)][:, None, None].astype(leaf.dtype)

    return merge(tokens, unflatten_dict({path: scaled(path, leaf) for path, leaf in values.items()}))


def check_blocks(scale: ArrayLike | Mapping[str, ArrayLike]) -> None:
    """Raises ValueError for strengths of blocks that no UNet has."""
    for block in scale if isinstance(scale, Mapping) else ():
        if not re.match(r"(down|mid|up)(?![^._])", str(block)):
            raise ValueError(f"vision_scale names the block {block!r}, which no UNet has; expected down, mid, up, or "
                             "one of their blocks, such as up_blocks.1.")


def check_strengths(scale: ArrayLike | Mapping[str, ArrayLike], references: int) -> None:
    """Raises ValueError for strengths that do not fit so many references."""
    for strengths in scale.values() if isinstance(scale, Mapping) else [scale]:
        if np.shape(strengths) not in ((), (references,)):
            raise ValueError(f"vision_scale has shape {np.shape(strengths)}; expected one number, or one for each of "
                             f"the {references} reference(s).")


def _strengths(scale: ArrayLike, references: int) -> jax.Array:
    """One strength for each reference, float32 [R]."""
    return jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (references,))


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


def layers_apart(params) -> dict:
    """The UNet's parameters with a name for each transformer layer (`transformer_blocks_0`, …) instead of a layer axis.

    The UNet then does not scan its layers. That compiles longer, but scanning copies a layer's weights whenever it is
    evaluated, which takes a GPU a seventh of SDXL's time. Taking them apart copies all of them; what is loaded apart
    (`weights.load_unet(…, scan_layers=False)`) stays as it is.
    """
    apart = {}
    for name, child in params.items():
        if name == "transformer_blocks":
            count = len(jax.tree.leaves(child)[0])
            apart |= {f"{name}_{i}": jax.tree.map(lambda x, i=i: x[i], child) for i in range(count)}
        else:
            apart[name] = layers_apart(child) if isinstance(child, dict) else child
    return apart


def for_platform(params, platform: Platform) -> dict:
    """The parameters as the platform samples with them fastest: with their layers scanned or apart."""
    return params if platform.scan_layers else layers_apart(params)


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
