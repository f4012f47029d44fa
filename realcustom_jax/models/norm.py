"""Group normalisation, of UNet and autoencoder."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class GroupNorm(nn.Module):
    """Normalises each group of channels over all pixels (torch `GroupNorm`), in float32. x [B,…,C] → [B,…,C].

    Parameters and numbers are `nn.GroupNorm`'s. Pixels are summed first, then the channels of a group, so that the
    channels' axis is never split: two to four times as fast on a CPU.
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
        pixels = tuple(range(1, x.ndim - 1))

        def mean(values):
            of_groups = values.mean(pixels).reshape(len(x), self.groups, -1).mean(-1)
            return jnp.expand_dims(jnp.repeat(of_groups, channels // self.groups, axis=-1), pixels)

        values = x.astype(jnp.float32)
        centred = values - mean(values)
        return (centred * (lax.rsqrt(mean(centred**2) + self.epsilon) * scale) + bias).astype(self.dtype)
