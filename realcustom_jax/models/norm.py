"""Group normalisation, of UNet and autoencoder."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class GroupNorm(nn.Module):
    """Normalises each group of channels over all pixels (torch `GroupNorm`), in float32. x [B,…,C] → [B,…,C].

    Parameters and numbers are `nn.GroupNorm`'s: the variance is E[x²] − E[x]², so that x is read once for both. Pixels
    are summed first, one axis after the other, which keeps a whole GPU busy, then the channels of a group, so that
    their axis is never split: two to four times as fast on a CPU.
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
        values = x.astype(jnp.float32)
        means = values, values**2
        for _ in range(x.ndim - 2):
            # XLA would sum over all pixels at once, on a GPU with so few threads that most of it idles.
            means = lax.optimization_barrier([m.mean(-2) for m in means])

        def over_groups(means):
            return jnp.repeat(means.reshape(len(x), self.groups, -1).mean(-1), channels // self.groups, axis=-1)

        mean, square = map(over_groups, means)
        factor = scale * lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        shift = bias - mean * factor
        pixels = tuple(range(1, x.ndim - 1))
        factor, shift = (jnp.expand_dims(m, pixels) for m in (factor, shift))
        return (values * factor + shift).astype(self.dtype)
