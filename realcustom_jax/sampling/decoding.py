"""Latents to pictures by the autoencoder and back, compiled once for each shape."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from realcustom_jax.devices.programs import jit_kept
from realcustom_jax.models.norm import MOMENTS


@functools.partial(jit_kept, static_argnums=0)
def decode_latents(module, params, latents: jax.Array, moments: Mapping[str, Any] | None = None) -> jax.Array:
    """Pictures [B, H, W, 3], about [-1, 1], of latents [B, h, w, C] as the UNet sees them; `moments` are those of all
    norms, where the latents are a part of a whole."""
    variables = {"params": params, MOMENTS: {} if moments is None else moments}
    return module.apply(variables, latents / module.config.scaling_factor, method="decode")


@functools.partial(jit_kept, static_argnums=0)
def decoder_moments(module, params, latents: jax.Array) -> Mapping[str, Any]:
    """Mean and variance of all norms while these latents are decoded."""
    latents = latents / module.config.scaling_factor
    return module.apply({"params": params}, latents, method="decode", mutable=MOMENTS)[1][MOMENTS]


@functools.partial(jit_kept, static_argnums=0)
def encode_pictures(module, params, pictures: jax.Array) -> jax.Array:
    """Latents float32 [B, h, w, C] as the UNet sees them, the most likely ones, of pictures [B, H, W, 3] in [-1, 1]."""
    mean = module.apply({"params": params}, pictures, method="encode").mean
    return mean.astype(jnp.float32) * module.config.scaling_factor
