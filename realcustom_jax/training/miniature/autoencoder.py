"""Stage 1: the autoencoder, images ↔ latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.training.losses import reconstruction_loss
from realcustom_jax.training.miniature.pictures import HeldOut, PictureBatches


@dataclasses.dataclass
class AutoencoderTask(HeldOut):
    """Trains `Autoencoder` on the pictures of `batches`."""

    model: Mapping[str, Any]
    batches: PictureBatches
    kl_weight: float = 1e-4

    def __post_init__(self):
        self.module = Autoencoder(VAEConfig.from_config(self.model))
        self.frozen = {"paintings": self.batches.paintings}
        apply = self.module.apply
        self.encode = jax.jit(lambda params, images: apply({"params": params}, images, method="encode").mean)
        self.decode = jax.jit(lambda params, latents: apply({"params": params}, latents, method="decode"))

    def init(self, key):
        side = self.batches.bank.config.side
        return jax.jit(self.module.init)(key, jnp.zeros((1, side, side, 3)))["params"]

    def batch(self, step):
        return {"layout": self.batches.pictures(step)["layout"]}

    def images(self, step: int) -> jax.Array:
        """The pictures of a step, [B, P, P, 3] in [-1, 1]."""
        return self.batches.compose(self.batch(step)["layout"]) * 2 - 1

    def loss(self, params, frozen, batch, key):
        images = compose(frozen["paintings"], batch["layout"])[0] * 2 - 1
        latents = self.module.apply({"params": params}, images, method="encode")
        sample = latents.mean + jnp.exp(0.5 * latents.logvar) * jax.random.normal(key, latents.mean.shape)
        decoded = self.module.apply({"params": params}, sample, method="decode")
        return reconstruction_loss(images, decoded, latents.mean, latents.logvar, kl_weight=self.kl_weight)

    def preview(self, params) -> Image.Image:
        """Pairs of pictures and their reconstructions, side by side."""
        images = self.images(0)[:16]
        decoded = self.decode(params, self.encode(params, images))
        return grid(np.concatenate([images, decoded], axis=2), columns=4)
