"""Stage 3: the text-to-image model: UNet and text encoder together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.model_files import weights
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_text_only
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.losses import add_training_noise, denoising_error, placement_loss, right_place
from realcustom_jax.training.miniature.pictures import HeldOut, PictureBatches, covered, size_of_all

TIMESTEPS = (0.3, 1.25)
"""Of `losses.add_training_noise`: which of two things stands where is settled at high noise."""
_BANDS = {"low": (0, 400), "middle": (400, 600), "high": (600, 800), "noise": (800, 1000)}
"""Timesteps from which on metrics are told apart."""


@dataclasses.dataclass
class BaseTask(HeldOut):
    """Trains a UNet and the text encoder to denoise the latents of painted pictures.

    Captions tell some of what the things look like. A model that has learnt what those words look like has something
    for the adapter to call on, as a published model has. The adapter can only call on what cross-attention does, and a
    small model would rather learn attributes from the pooled text; so that is of the caption that tells nothing, but
    for a share `pooled_told` of the pictures.

    `placed` weighs a second loss that a published model, which has seen billions of pictures, does without: a noun's
    attention should lie on its own thing (`losses.placement_loss`).

    `encode` and `decode` take images in [-1, 1] to latents of unit variance and back, with the parameters in
    `autoencoder`; `empty_ids` int32 [T] is the encoded empty prompt, which replaces the caption with probability
    `text_dropout`, for classifier-free guidance. `start` are parameters to start from instead of random ones.
    """

    unet_config: Mapping[str, Any]
    text_encoder: ClipText
    batches: PictureBatches
    empty_ids: np.ndarray
    autoencoder: Any
    encode: Callable[[Any, jax.Array], jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    prediction: str
    start: Any = None
    pooled_told: float = 0.25
    placed: float = 0.05
    text_dropout: float = 0.1

    def __post_init__(self):
        self.unet = UNet(UNetConfig.from_config(self.unet_config))
        self.betas = solvers.betas()
        self.frozen = {"paintings": self.batches.paintings, "autoencoder": self.autoencoder}

    def init(self, key):
        if self.start is not None:
            return self.start
        args, kwargs = weights.unet_inputs(self.unet.config)
        text = jax.jit(self.text_encoder.init)(key, self.empty_ids[None])["params"]
        return {"unet": jax.jit(self.unet.init)(key, *args, **kwargs)["params"], "text_encoder": text}

    def batch(self, step):
        batch = self.batches.captioned(step)
        return {name: batch[name] for name in ("layout", "caption_ids", "plain_ids", "marks")}

    def conditioning(self, params, input_ids) -> Conditioning:
        """Text tokens and pooled text of prompts."""
        text = self.text_encoder.apply({"params": params["text_encoder"]}, input_ids)
        return Conditioning(text.penultimate, text.pooled, size_of_all(self.batches, len(input_ids)))

    def loss(self, params, frozen, batch, key):
        pooled_key, drop_key, noise_key = jax.random.split(key, 3)
        images, coverage = compose(frozen["paintings"], batch["layout"])
        latents = jax.lax.stop_gradient(self.encode(frozen["autoencoder"], images * 2 - 1))
        dropped = draw_dropped(drop_key, self.text_dropout, len(images))
        plain = ~jax.random.bernoulli(pooled_key, self.pooled_told, (len(images), 1))
        ids, plain_ids = (replace_dropped(dropped, batch[name], self.empty_ids) for name in (
            "caption_ids", "plain_ids"))
        text = self.conditioning(params, ids)
        pooled = self.conditioning(params, jnp.where(plain, plain_ids, ids)).pooled
        sample = add_training_noise(latents, noise_key, betas=self.betas, prediction=self.prediction,
                                    timesteps=TIMESTEPS)
        out = self.unet.apply({"params": params["unet"]}, sample.noisy, sample.t, text.text, pooled=pooled,
                              time_ids=text.time_ids, target=batch["marks"])
        denoising, by_timestep = denoising_error(
            out.noise, sample, betas=self.betas, prediction=self.prediction,
            coverage=covered(coverage, latents.shape[1:3]))
        # The placement counts less where there is more noise, because nobody could tell where hidden things are.
        visible = jnp.sqrt(1 / (1 + 1 / solvers.snr(self.betas)[sample.t]))[:, None]
        there = batch["marks"].any(-1) & ~dropped[:, None]
        placement = placement_loss(out.maps, coverage, visible * there)
        metrics = {"denoising": denoising, "placement": placement, **by_timestep}
        metrics |= self._right_places(out.maps, coverage, sample.t, there.all(1))
        return denoising + self.placed * placement, metrics

    def _right_places(self, maps, coverage, t, counted):
        right = right_place(maps, coverage)
        shares = {}
        for name, (low, high) in _BANDS.items():
            inside = counted & (t >= low) & (t < high)
            shares[f"right_place_{name}"] = (right * inside).sum() / jnp.maximum(inside.sum(), 1)
        return shares

    def preview(self, params) -> Image.Image:
        """Pictures of the first captions, from fixed noise."""
        ids = self.batches.captioned(0)["caption_ids"][:32]
        solver = solvers.make_solver(steps=20, betas=self.betas, prediction=self.prediction)
        latent = self.unet_config["sample_size"], self.unet_config["sample_size"], self.unet_config["in_channels"]

        @jax.jit
        def sample(params, autoencoder, ids):
            noise = jax.random.normal(jax.random.key(0), (len(ids), *latent))
            negative = self.conditioning(params, jnp.broadcast_to(self.empty_ids, ids.shape))
            made = sample_text_only(self.unet, params["unet"], noise, self.conditioning(params, ids), negative,
                                    solver=solver, guidance_scale=3.5)
            return self.decode(autoencoder, made)

        return grid(sample(params, self.autoencoder, ids), columns=8)
