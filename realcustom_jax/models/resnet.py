"""Residual convolution blocks and resampling shared by the UNet and the autoencoder (diffusers `resnet.py`)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.conv import Conv
from realcustom_jax.models.norm import GroupNorm

REMEMBERED = "block"
"""The name of what enters a transformer layer or leaves a residual block: what training on large models keeps for the
backward pass (`jax.checkpoint_policies.save_only_these_names`), computing the rest of a block again."""


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–Conv twice, with the time embedding added in between (diffusers `ResnetBlock2D`).

    x [B, H, W, C], time_embedding [B, E] or None → [B, H, W, channels]. What the embedding adds is read from the
    variable collection "context" where that holds it (module `context`).
    """

    channels: int
    groups: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x, time_embedding=None):
        norm = functools.partial(GroupNorm, self.groups, self.epsilon, self.dtype, self.platform)
        conv = functools.partial(Conv, self.channels, dtype=self.dtype)
        hidden = conv((3, 3), padding=1, name="conv1")(nn.silu(norm(name="norm1")(x)))
        shift = self.get_variable("context", "shift")
        if shift is None and time_embedding is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(time_embedding))
        if shift is not None:
            if self.platform.shift_barrier:
                hidden = jax.lax.optimization_barrier(hidden)
            hidden = hidden + shift[:, None, None]
        hidden = conv((3, 3), padding=1, name="conv2")(nn.silu(norm(name="norm2")(hidden)))
        if x.shape[-1] != self.channels:
            x = conv((1, 1), name="conv_shortcut")(x)
        return checkpoint_name(x + hidden, REMEMBERED)


class Downsample(nn.Module):
    """Halves the size with a strided convolution; `padding` as in `nn.Conv`, 1 in the UNet, ((0, 1), (0, 1)) in the
    autoencoder."""

    padding: int | tuple
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return Conv(x.shape[-1], (3, 3), strides=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest-neighbour resize of x [B, H, W, C] to (h, w), with torch's rule: source = floor(target · H / h)."""
    rows, columns = ((jnp.arange(new) * old) // new for new, old in zip(size, x.shape[1:3], strict=True))
    return x[:, rows][:, :, columns]


class Upsample(nn.Module):
    """Nearest-neighbour resize to `size` (twice the input where None), then a convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, size: tuple[int, int] | None = None):
        size = size or (2 * x.shape[1], 2 * x.shape[2])
        if size == (2 * x.shape[1], 2 * x.shape[2]):
            x = x.repeat(2, axis=1).repeat(2, axis=2)
        else:
            x = resize_nearest(x, size)
        return Conv(x.shape[-1], (3, 3), padding=1, dtype=self.dtype, name="conv")(x)
