"""The vision transformer of image encoders: SigLIP so400m/14, DINO, DINOv2 with and without registers.

One module for timm's `VisionTransformer` (pre-norm blocks of Dosovitskiy et al., arXiv 2010.11929):

    x ← x + γ₁ ⊙ Attention(LayerNorm(x)),    x ← x + γ₂ ⊙ MLP(LayerNorm(x))

DINOv2 prepends a class token and registers (arXiv 2309.16588) and has LayerScale γ; SigLIP has neither
(γ = 1). RealCustom++ reads block outputs only; scores of pictures compare class tokens after a final LayerNorm.

Dimensions: B batch, H W pixels, h w the grid of patches, L = h·w patches, C channels.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.activations import ACTIVATIONS
from realcustom_jax.models.resize import resize_bicubic_on_host
from realcustom_jax.models.vit_config import GATED, VitConfig


class VisionTransformer(nn.Module):
    """Image encoder that returns the outputs of its blocks (timm `get_intermediate_layers`, norm=False), or with
    `method="pooled"` the class token. `with_norm` says whether the weights have the final `norm`."""

    config: VitConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""
    with_norm: bool = False

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    def __call__(self, images: jax.Array, layers: Sequence[int]) -> tuple[jax.Array, ...]:
        """Block outputs, patch tokens only, without the final norm.

        Args:
            images: [B, H, W, 3], normalised, of the config's size.
            layers: zero-based indices of the blocks; the result follows their order.
        Returns:
            One [B, L, C] for each layer. Blocks after the last one asked for are not computed.
        Raises:
            ValueError: if the images' size or a layer's index does not fit the config.
        """
        depth = self.config.depth
        if not layers or any(not 0 <= layer < depth for layer in layers):
            raise ValueError(f"layers={tuple(layers)}: block indices from 0 to {depth - 1} are expected.")
        outputs, _ = self._blocks(images, max(layers))
        return tuple(outputs[layer][:, self.config.num_prefix:] for layer in layers)

    def pooled(self, images: jax.Array) -> jax.Array:
        """The class token after the final norm, what DINO and DINOv2 describe a whole image by.

        Args:
            images: [B, H, W, 3], normalised, of the config's size.
        Returns:
            [B, C].
        Raises:
            ValueError: if the images' size does not fit the config, the network has no class token (SigLIP), or the
                weights had no final norm.
        """
        if not self.config.class_token:
            raise ValueError("this vision encoder has no class token, as SigLIP has none; pooled needs one, as DINO "
                             "and DINOv2 have.")
        if not self.with_norm:
            raise ValueError("this vision encoder was loaded without a final norm, of which pooled is the output; load "
                             "weights that hold norm.weight and norm.bias.")
        _, token = self._blocks(images, self.config.depth - 1)
        return token

    @nn.compact
    def _blocks(self, images: jax.Array, last: int) -> tuple[list[jax.Array], jax.Array | None]:
        """(the outputs of the blocks up to `last`, prefix tokens included; the class token after the final norm, None
        where that is not reached or not there)."""
        config = self.config
        if images.ndim != 4 or images.shape[1:] != (*config.img_size, 3):
            raise ValueError("The image encoder takes images "
                             f"[B, {config.img_size[0]}, {config.img_size[1]}, 3], not {list(images.shape)}.")
        x = PatchEmbed(config.patch_size, config.embed_dim, self.dtype, name="patch_embed")(images)
        x = self._add_prefix_and_position(x)
        if self.is_initializing():
            last = config.depth - 1  # all parameters exist, whichever layers initialisation asks for
        outputs = []
        for i in range(last + 1):
            x = Block(config, self.dtype, self.platform, name=f"blocks_{i}")(x)
            outputs.append(x)
        if not self.with_norm or last < config.depth - 1:
            return outputs, None
        return outputs, _norm(config, self.dtype, "norm")(x[:, 0])

    def _add_prefix_and_position(self, x):
        config, channels = self.config, x.shape[-1]

        def parameter(name, length):
            value = self.param(name, nn.initializers.normal(0.02), (1, length, channels))
            return value.astype(self.dtype)

        prefix = []
        if config.class_token:
            prefix.append(parameter("cls_token", 1))
        if config.reg_tokens:
            prefix.append(parameter("reg_token", config.reg_tokens))
        prefix = [jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])) for token in prefix]
        position = parameter("pos_embed", x.shape[1] + config.num_embedded_prefix)
        if config.no_embed_class:
            return jnp.concatenate([*prefix, x + position], axis=1)
        return jnp.concatenate([*prefix, x], axis=1) + position


def _norm(config: VitConfig, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.norm_eps, use_fast_variance=False, dtype=dtype, name=name)


class PatchEmbed(nn.Module):
    """One linear map of each whole patch. [B, H, W, 3] → [B, L, C], rows first."""

    patch_size: tuple[int, int]
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.embed_dim, self.patch_size, strides=self.patch_size, padding="VALID",
                    dtype=self.dtype, name="proj")(images)
        return x.reshape(x.shape[0], -1, self.embed_dim)


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale. [B, L, C] → [B, L, C]."""

    config: VitConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, x):
        config = self.config

        def scale(name, branch):
            if config.init_values is None:
                return branch
            return LayerScale(config.init_values, name=name)(branch)

        y = _norm(config, self.dtype, "norm1")(x)
        attention = Attention(config.num_heads, config.qkv_bias, self.dtype, self.platform, name="attn")
        x = x + scale("ls1", attention(y))
        y = _norm(config, self.dtype, "norm2")(x)
        return x + scale("ls2", Mlp(config, self.dtype, name="mlp")(y))


class LayerScale(nn.Module):
    """A learned factor for each channel (arXiv 2103.17239)."""

    init_value: float

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values. [B, L, C] → [B, L, C]."""

    num_heads: int
    qkv_bias: bool
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        qkv = nn.Dense(3 * channels, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.num_heads, -1), 2, 0)
        out = jax.nn.dot_product_attention(query, key, value, implementation=self.platform.encoder_attention)
        return nn.Dense(channels, dtype=self.dtype, name="proj")(out.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers; those of DINOv2's giant with a gate between them (arXiv 2002.05202). [B, L, C] → [B, L, C]."""

    config: VitConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        config, channels = self.config, x.shape[-1]
        hidden = nn.Dense(int(channels * config.mlp_ratio), dtype=self.dtype, name="fc1")(x)
        if config.mlp_layer == GATED:
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = ACTIVATIONS[config.act_layer](gate) * value
        else:
            hidden = ACTIVATIONS[config.act_layer](hidden)
        return nn.Dense(channels, dtype=self.dtype, name="fc2")(hidden)


def _antialiased(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """torch's bicubic interpolation with antialias: Keys' kernel, a = −½, widened where the grid shrinks."""
    return np.asarray(jax.image.resize(grid, (1, *size, grid.shape[-1]), "cubic", antialias=True))


def _plain(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_bicubic_on_host(grid, size)


def _with_offset(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As DINO's own code, which takes a tenth of a patch more, so that rounding never loses one: what it tells torch is
    the factor, by which torch then finds the places too."""
    factors = [(new + 0.1) / old for new, old in zip(size, grid.shape[1:3], strict=True)]
    return resize_bicubic_on_host(grid, size, factors)


POSITIONS = {
    "timm": _antialiased, "dino": _with_offset, "dinov2": _with_offset, "dinov2_reg": _antialiased,
    "transformers": _plain, "transformers_reg": _antialiased,
}
"""Whose code positions are resampled as: timm's; torch.hub's of facebookresearch/dino, /dinov2 and /dinov2 with
registers; transformers' `ViTModel` and `Dinov2Model`, and `Dinov2WithRegistersModel`."""


def resample_pos_embed(
    pos_embed: np.ndarray, new_grid: tuple[int, int], num_prefix: int, positions: str = "timm",
) -> np.ndarray:
    """Position embeddings of a square grid, resampled to another grid in float32, once, when weights are loaded.

    Args:
        pos_embed: [1, num_prefix + n·n, C].
        new_grid: patches (vertically, horizontally).
        num_prefix: leading entries that belong to prefix tokens; they are kept.
        positions: one of `POSITIONS`; "timm" is timm's `resample_abs_pos_embed`.
    Returns:
        float32 [1, num_prefix + h·w, C].
    Raises:
        ValueError: if the stored grid is not square.
    """
    pos_embed = np.asarray(pos_embed, np.float32)
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    side, channels = round(grid.shape[1] ** 0.5), grid.shape[2]
    if side * side != grid.shape[1]:
        raise ValueError(f"pos_embed holds {grid.shape[1]} patch positions, which is not a square grid.")
    if (side, side) == tuple(new_grid):
        return pos_embed
    grid = POSITIONS[positions](grid.reshape(1, side, side, channels), tuple(new_grid))
    return np.concatenate([prefix, grid.reshape(1, -1, channels)], axis=1)
