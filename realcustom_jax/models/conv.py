"""Convolution of UNet and autoencoder."""

import functools

import flax.linen as nn
import jax

from realcustom_jax.devices.sharding import CONVOLUTION, gathered


def _convolve(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    return jax.lax.conv_general_dilated(x, gathered(kernel, CONVOLUTION), *args, **kwargs)


Conv = functools.partial(nn.Conv, conv_general_dilated=_convolve)
"""`nn.Conv`, each device of a mesh with the whole kernel for its own examples."""
