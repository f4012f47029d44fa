"""Group normalisation, of UNet and autoencoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from realcustom_jax.devices.operations import largest_divisor

_AT_ONCE = 256
"""Pixels that are summed at once where a GPU sums many."""


class GroupNorm(nn.Module):
    """Normalises each group of channels over all pixels (torch `GroupNorm`), in float32. x [B,…,C] → [B,…,C].

    Parameters and numbers are `nn.GroupNorm`'s; mean and variance are made as the device does it fastest.
    """

    groups: int
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels cannot be divided into {self.groups} groups.")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        values, on_cpu = x.astype(jnp.float32), jax.default_backend() == "cpu"
        moments = _by_channels if on_cpu else _in_one_reading
        mean, variance = (jnp.repeat(of_groups, channels // self.groups, axis=-1)
                          for of_groups in moments(values, self.groups))
        centre, factor = mean, scale * lax.rsqrt(variance + self.epsilon)
        if not on_cpu:  # or a GPU would make each in a kernel of its own
            centre, factor = lax.optimization_barrier((centre, factor))
        centre, factor = (jnp.expand_dims(v, range(1, x.ndim - 1)) for v in (centre, factor))
        return ((values - centre) * factor + bias).astype(self.dtype)


def _by_channels(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [B,groups] of x [B,…,C]: each channel's first, so that the channels' axis is never split. On a
    CPU 1.2 to 2.2 times as fast as Flax's norm."""
    pixels = tuple(range(1, x.ndim - 1))
    mean = x.mean(pixels, keepdims=True)
    variance = ((x - mean) ** 2).mean(pixels)
    mean = mean.squeeze(pixels).reshape(len(x), groups, -1)
    centre = mean.mean(-1)
    return centre, (variance.reshape(mean.shape) + (mean - centre[..., None]) ** 2).mean(-1)


def _in_one_reading(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Likewise, from deviations from one value of each group: E[x²] − E[x]² would lose a variance far below the mean.

    Neighbouring pixels are summed first, so many at once; XLA would sum all pixels of a channel in one go, on a GPU in
    so few threads that most of it idles.
    """
    batch, channels = len(x), x.shape[-1]
    x = x.reshape(batch, -1, channels)
    pixels, each = x.shape[1], channels // groups
    first = x[:, 0, ::each]
    deviation = x - jnp.repeat(first, each, axis=-1)[:, None]
    parts = [values.reshape(batch, -1, largest_divisor(pixels, _AT_ONCE), channels).sum(2)
             for values in (deviation, deviation**2)]
    sums = jnp.stack(lax.optimization_barrier(parts)).sum(2)
    mean, square = sums.reshape(2, batch, groups, each).sum(-1) / (pixels * each)
    return first + mean, square - mean**2
