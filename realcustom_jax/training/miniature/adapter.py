"""Stage 4: the RealCustom++ adapter on the frozen base model, with the curriculum (arXiv 2408.09744, training)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.references import VisionSettings, grid, reference_features
from realcustom_jax.model_files.adapter import merge_unet
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.projector import Projector
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vit import VisionTransformer
from realcustom_jax.presets import Preset
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.sampler import Conditioning, sample_latents
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.losses import denoising_loss
from realcustom_jax.training.miniature.base import time_ids


class Gather(nn.Module):
    """What one learned query for each of `length` words finds among vision tokens, [B,L,D] → [B,length,D]: their own
    weighted mean, with nothing to translate it."""

    length: int
    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        queries = self.param("queries", nn.initializers.normal(1.0), (self.length, self.width))
        keys = nn.Dense(self.width)(nn.LayerNorm()(tokens))
        return nn.softmax(queries @ keys.swapaxes(1, 2) / self.width**0.5) @ tokens


@dataclasses.dataclass
class AdapterTask:
    """Trains {"projector", "vision"}: the projector and the UNet's visual keys and values; and "gather", which is
    dropped.

    `batches` give latents, coverage, input_ids, description_ids, references [B,4,H,W,3] (uint8) and difficulty
    [B,4]; `frozen` holds the parameters of unet (without its visual layers), text_encoder, siglip and dinov2; `fresh`
    those at step 0.

    A share `taught` of what is to be predicted is the frozen model's own prediction, told in words what the reference
    shows (description_ids, but for the pooled text); the rest is the data, as in the paper, where `taught` is 0.

    The paper trains without masks (M = 1) and samples with soft ones. Here a share `masked` of the pairs is trained
    with the mask that sampling by `preset` would make: of the guidance branch's maps of the noun, on the same latents
    or, past the step in which the mask is frozen, on noisier ones.

    `spelled` weighs a second loss, 0 in the paper: among a reference's vision tokens there should be the text encoder's
    states of the words that its description has and the caption lacks. The visual keys and values begin as copies of
    the text's, so the UNet can read such tokens from the start.
    """

    unet: UNet
    projector: Projector
    text_encoder: ClipText
    siglip: VisionTransformer
    dinov2: VisionTransformer
    settings: VisionSettings
    frozen: dict[str, Any]
    fresh: dict[str, Any]
    batches: Sequence[dict[str, np.ndarray]]
    curriculum: Curriculum
    steps: int
    empty_ids: np.ndarray
    decode: Callable[[jax.Array], jax.Array]
    image_size: int
    prediction: str
    image_dropout: float = 0.1
    text_dropout: float = 0.05
    masked: float = 0.5
    preset: Preset = Preset()
    taught: float = 0.0
    spelled: float = 0.0

    def __post_init__(self):
        self.betas = solvers.betas()
        self.last_mask_at = solvers.make_solver().timesteps[self.preset.freeze_mask_step - 1]
        self.gather = Gather(len(self.empty_ids))

    def init(self, key):
        tokens = jnp.zeros((1, 1, self.projector.config.out_dim))
        return self.fresh | {"gather": jax.jit(self.gather.init)(key, tokens)["params"]}

    def batch(self, step):
        batch = self.batches[step]
        rng = np.random.default_rng((step, 1))
        weights = self.curriculum.weights(step, self.steps, batch["difficulty"][0])
        chosen = rng.choice(len(weights), size=len(batch["latents"]), p=weights)
        reference = batch["references"][np.arange(len(chosen)), chosen]
        kept = ("latents", "coverage", "input_ids", "description_ids")
        return {key: batch[key] for key in kept} | {"reference": reference}

    def conditioning(self, params, frozen, input_ids, references) -> Conditioning:
        """references: [B,H,W,3] in [0, 1]; zeros for none."""
        text = self._text(frozen, input_ids)
        features = reference_features(
            self.siglip, frozen["siglip"], self.dinov2, frozen["dinov2"], references, self.settings)
        tokens = self.projector.apply({"params": params["projector"]}, features)
        return Conditioning(text.penultimate, text.pooled, time_ids(self.image_size, len(input_ids)), tokens[:, None])

    def loss(self, params, frozen, batch, key):
        keys = jax.random.split(key, 5)
        size = len(batch["input_ids"])
        no_text = jax.random.bernoulli(keys[0], self.text_dropout, (size, 1))
        no_image = jax.random.bernoulli(keys[1], self.image_dropout, (size, 1, 1, 1))
        ids = jnp.where(no_text, self.empty_ids, batch["input_ids"])
        c = self.conditioning(params, frozen, ids, jnp.where(no_image, 0.0, batch["reference"] / 255.0))
        told = jnp.where(no_image[..., 0, 0], ids, batch["description_ids"])
        told = self._text(frozen, told).penultimate
        unet_params = merge_unet(params["vision"], frozen["unet"])
        masked = jax.random.bernoulli(keys[3], self.masked, (size, 1, 1, 1))

        def predict(noisy, t):
            mask = jnp.where(masked, self.guidance_mask(unet_params, frozen, batch["input_ids"], noisy, t, keys[4]), 1)
            return self.unet.apply({"params": unet_params}, noisy, t, c.text, pooled=c.pooled, time_ids=c.time_ids,
                                   vision=c.vision, mask=mask).noise

        def teacher(noisy, t):
            return self.unet.apply({"params": unet_params}, noisy, t, told, pooled=c.pooled,
                                   time_ids=c.time_ids).noise

        denoising = denoising_loss(
            predict, batch["latents"], keys[2], betas=self.betas, prediction=self.prediction,
            coverage=batch["coverage"], teacher=teacher if self.taught else None, teaching=self.taught)
        added = (batch["description_ids"][:, :, None] != batch["input_ids"][:, None]).all(axis=-1)
        spelling = self._spelling(params["gather"], c.vision[:, 0], told, added & ~no_image[..., 0, 0])
        return denoising + self.spelled * spelling, {"denoising": denoising, "spelling": spelling}

    def guidance_mask(self, unet_params, frozen, input_ids, noisy, t, key) -> jax.Array:
        """The mask [B,1,h,w] with which sampling would denoise the noisy latents [B,H,W,C] of timesteps t [B]."""
        mask = self.preset.mask(*noisy.shape[1:3])
        text = self._text(frozen, input_ids)
        known = jnp.maximum(t, self.last_mask_at)
        noisier = solvers.add_more_noise(noisy, jax.random.normal(key, noisy.shape), t, known, self.betas)
        guidance = self.unet.apply(
            {"params": unet_params}, noisier, known, text.penultimate, pooled=text.pooled,
            time_ids=time_ids(self.image_size, len(input_ids)), target=_noun(input_ids), self_maps_at=mask.refine_at)
        return jax.lax.stop_gradient(mask.mask(guidance, mask.size(noisy)))

    def _text(self, frozen, input_ids):
        return self.text_encoder.apply({"params": frozen["text_encoder"]}, input_ids)

    def _spelling(self, params, tokens, words, counted):
        """How far the states `words` [B,T,D] are from what is found among the tokens: the share of their variance,
        over the `counted` [B,T]."""
        found = self.gather.apply({"params": params}, tokens)
        counted = counted[..., None]
        mean = (words * counted).sum(axis=(0, 1)) / jnp.maximum(counted.sum(), 1)
        spread = ((words - mean) ** 2 * counted).sum()
        return ((found - words) ** 2 * counted).sum() / (spread + 1e-6)  # nothing counted is nothing wrong

    def preview(self, params) -> Image.Image:
        """References (odd rows) and the pictures made of them (even rows), for the hardest pairs of the first batch."""
        batch = {k: v[:16] for k, v in self.batches[0].items()}
        references = batch["references"][:, -1] / 255.0
        solver = solvers.make_solver(steps=20, betas=self.betas, prediction=self.prediction)

        @jax.jit
        def sample(params, frozen):
            positive = self.conditioning(params, frozen, batch["input_ids"], references)
            empty = jnp.broadcast_to(self.empty_ids, batch["input_ids"].shape)
            negative = self.conditioning(params, frozen, empty, jnp.zeros_like(references))
            target = _noun(batch["input_ids"])
            noise = jax.random.normal(jax.random.key(0), batch["latents"].shape)
            unet_params = merge_unet(params["vision"], frozen["unet"])
            return sample_latents(self.unet, unet_params, noise, positive, negative, target, solver=solver,
                                  mask=self.preset.mask(*noise.shape[1:3]), freeze_mask_step=10).latents

        made = np.asarray(self.decode(sample(params, self.frozen)))
        references = references * 2 - 1
        return grid(np.concatenate([references[:8], made[:8], references[8:], made[8:]]), columns=8)


def _noun(input_ids: jax.Array) -> jax.Array:
    """Where the subject's noun is in captions [B,T], as a target [B,1,T]: after the start token and the article."""
    return jnp.zeros((len(input_ids), 1, input_ids.shape[1])).at[:, :, 2].set(1)
