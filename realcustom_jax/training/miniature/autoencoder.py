"""Stage 1: the autoencoder, images ↔ latents."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.references import from_uint8, grid
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.training.losses import reconstruction_loss


@dataclasses.dataclass
class AutoencoderTask:
    """Trains `Autoencoder` on the target pictures of `batches`."""

    model: Mapping[str, Any]
    batches: Sequence[dict[str, np.ndarray]]
    kl_weight: float = 1e-4
    frozen: None = None

    def __post_init__(self):
        self.module = Autoencoder(VAEConfig.from_config(self.model))
        apply = self.module.apply
        self.encode = jax.jit(lambda params, images: apply({"params": params}, images, method="encode").mean)
        self.decode = jax.jit(lambda params, latents: apply({"params": params}, latents, method="decode"))

    def init(self, key):
        return jax.jit(self.module.init)(key, jnp.zeros((1, 64, 64, 3)))["params"]

    def batch(self, step):
        return {"target": self.batches[step]["target"]}

    def loss(self, params, frozen, batch, key):
        images = from_uint8(batch["target"])
        latents = self.module.apply({"params": params}, images, method="encode")
        sample = latents.mean + jnp.exp(0.5 * latents.logvar) * jax.random.normal(key, latents.mean.shape)
        decoded = self.module.apply({"params": params}, sample, method="decode")
        return reconstruction_loss(images, decoded, latents.mean, latents.logvar, kl_weight=self.kl_weight)

    def preview(self, params) -> Image.Image:
        """Pairs of pictures and their reconstructions, side by side."""
        images = from_uint8(self.batches[0]["target"][:16])
        decoded = self.decode(params, self.encode(params, images))
        return grid(np.concatenate([images, decoded], axis=2), columns=4)
