"""Stage 4: the RealCustom++ adapter on the frozen base model, with the curriculum (arXiv 2408.09744, training)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.conditioning.references import VisionSettings, vision_tokens
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.data.sprites.draws import DIFFICULTIES
from realcustom_jax.model_files.adapter import merge_unet
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.projector import Projector
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vit import VisionTransformer
from realcustom_jax.presets import Preset
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.losses import denoising_loss
from realcustom_jax.training.miniature.base import TIMESTEPS
from realcustom_jax.training.miniature.pictures import HeldOut, PictureBatches, compose_references, covered, size_of_all


class Gather(nn.Module):
    """What one learned query for each of `length` words finds among vision tokens, [B, L, D] → [B, length, D]: their
    own weighted mean, with nothing to translate it."""

    length: int
    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        queries = self.param("queries", nn.initializers.normal(1.0), (self.length, self.width))
        keys = nn.Dense(self.width)(nn.LayerNorm()(tokens))
        return nn.softmax(queries @ keys.swapaxes(1, 2) / self.width**0.5) @ tokens


@dataclasses.dataclass
class AdapterTask(HeldOut):
    """Trains {"projector", "vision"}: the projector and the UNet's visual keys and values; and "gather", which is
    dropped.

    `batches` give the pairs; `frozen` holds the parameters of unet (without its visual layers), text_encoder, siglip,
    dinov2, autoencoder, and the paintings; `fresh` those at step 0. `encode` and `decode` take images in [-1, 1] to
    latents of unit variance [B, latent_size, latent_size, C] and back. `second` is the share of references that show a
    second thing, so that the word has to choose.

    The rest departs from the paper and is 0 in it:
    - a share `taught` of what is to be predicted is the frozen model's own prediction, told in words what the reference
      shows (but for the pooled text); the rest is the data.
    - a share `masked` of the pairs is trained with the mask that sampling by `preset` would make: of the guidance
      lane's maps of the noun, on the same latents or, past the step in which the mask is frozen, on noisier ones. The
      other pairs have M = 1.
    - `spelled` weighs a second loss: among a reference's vision tokens there should be the text encoder's states of the
      words that its description has and the caption lacks. The visual keys and values begin as copies of the text's,
      so the UNet can read such tokens from the start.
    """

    unet: UNet
    projector: Projector
    text_encoder: ClipText
    siglip: VisionTransformer
    dinov2: VisionTransformer
    settings: VisionSettings
    frozen: dict[str, Any]
    fresh: dict[str, Any]
    batches: PictureBatches
    curriculum: Curriculum
    steps: int
    empty_ids: np.ndarray
    encode: Callable[[Any, jax.Array], jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    prediction: str
    latent_size: int
    second: float = 0.25
    image_dropout: float = 0.1
    text_dropout: float = 0.05
    masked: float = 0.0
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
        batch = self.batches.pairs(step, self.steps, self.curriculum, second=self.second)
        return {name: batch[name] for name in
                ("layout", "caption_ids", "told_ids", "marks", "reference", "cropped", "boxes")}

    def scalars(self, step):
        """The curriculum's."""
        return self.curriculum.scalars(step, self.steps, DIFFICULTIES)

    def conditioning(self, params, frozen, input_ids, references) -> Conditioning:
        """references: [B, H, W, 3] in [0, 1]; zeros for none."""
        text = self._text(frozen, input_ids)
        tokens = vision_tokens(self.siglip, self.dinov2, self.projector, self.settings,
                               (frozen["siglip"], frozen["dinov2"], params["projector"]), references)
        sizes = size_of_all(self.batches, len(input_ids))
        return Conditioning(text.penultimate, text.pooled, sizes, tokens[:, None])

    def loss(self, params, frozen, batch, key):
        keys = jax.random.split(key, 5)
        size = len(batch["caption_ids"])
        images, coverage = compose(frozen["paintings"], batch["layout"])
        references = compose_references(frozen["paintings"], images, batch)
        latents = self.encode(frozen["autoencoder"], images * 2 - 1)
        no_text = draw_dropped(keys[0], self.text_dropout, size)
        no_image = draw_dropped(keys[1], self.image_dropout, size)
        ids = replace_dropped(no_text, batch["caption_ids"], self.empty_ids)
        c = self.conditioning(params, frozen, ids, replace_dropped(no_image, references, 0.0))
        unet_params = merge_unet(params["vision"], frozen["unet"])
        masked = jax.random.bernoulli(keys[3], self.masked, (size, 1, 1, 1))

        def predict(noisy, t):
            mask = None
            if self.masked:
                mask = self.guidance_mask(unet_params, frozen, batch, noisy, t, keys[4])
                mask = jnp.where(masked, mask, 1)
            return self.unet.apply({"params": unet_params}, noisy, t, c.text, pooled=c.pooled, time_ids=c.time_ids,
                                   vision=c.vision, mask=mask).noise

        def teacher(noisy, t):
            told = replace_dropped(no_image, batch["told_ids"], ids)
            return self.unet.apply({"params": unet_params}, noisy, t, self._text(frozen, told).penultimate,
                                   pooled=c.pooled, time_ids=c.time_ids).noise

        denoising, by_timestep = denoising_loss(
            predict, latents, keys[2], betas=self.betas, prediction=self.prediction,
            coverage=covered(coverage, latents.shape[1:3]), teacher=teacher if self.taught else None,
            teaching=self.taught, timesteps=TIMESTEPS)
        if not self.spelled:
            return denoising, by_timestep
        words = self._text(frozen, batch["told_ids"]).penultimate
        added = (batch["told_ids"][:, :, None] != batch["caption_ids"][:, None]).all(axis=-1)
        spelling = self._spelling(params["gather"], c.vision[:, 0], words, added & ~no_image[:, None])
        return denoising + self.spelled * spelling, {"denoising": denoising, "spelling": spelling, **by_timestep}

    def guidance_mask(self, unet_params, frozen, batch, noisy, t, key) -> jax.Array:
        """The mask [B, 1, h, w] with which sampling would denoise the noisy latents [B, H, W, C] of timesteps t [B]."""
        config = self.preset.mask_config(*noisy.shape[1:3])
        ids = batch["caption_ids"]
        text = self._text(frozen, ids)
        known = jnp.maximum(t, self.last_mask_at)
        noisier = solvers.add_more_noise(noisy, jax.random.normal(key, noisy.shape), t, known, self.betas)
        guidance = self.unet.apply(
            {"params": unet_params}, noisier, known, text.penultimate, pooled=text.pooled,
            time_ids=size_of_all(self.batches, len(ids)), target=batch["marks"], self_maps_at=config.refine_at)
        return jax.lax.stop_gradient(config.masks_of(guidance, config.size_of(noisy.shape[1:3])))

    def _text(self, frozen, input_ids):
        return self.text_encoder.apply({"params": frozen["text_encoder"]}, input_ids)

    def _spelling(self, params, tokens, words, counted):
        """How far the states `words` [B, T, D] are from what is found among the tokens: the share of their variance,
        over the `counted` [B, T]."""
        found = self.gather.apply({"params": params}, tokens)
        counted = counted[..., None]
        mean = (words * counted).sum(axis=(0, 1)) / jnp.maximum(counted.sum(), 1)
        spread = ((words - mean) ** 2 * counted).sum()
        return ((found - words) ** 2 * counted).sum() / (spread + 1e-6)  # nothing counted is nothing wrong

    def preview(self, params) -> Image.Image:
        """For pairs of the end of the curriculum, from the top down and twice: references, the pictures that are made
        of them, the masks of the last step."""
        batch = self._shown()
        references = self.batches.references(batch)
        solver = solvers.make_solver(steps=20, betas=self.betas, prediction=self.prediction)

        @jax.jit
        def sample(params, frozen, ids, marks, references):
            positive = self.conditioning(params, frozen, ids, references)
            empty = jnp.broadcast_to(self.empty_ids, ids.shape)
            negative = self.conditioning(params, frozen, empty, jnp.zeros_like(references))
            noise = jax.random.normal(
                jax.random.key(0), (len(ids), self.latent_size, self.latent_size, self.unet.config.in_channels))
            unet_params = merge_unet(params["vision"], frozen["unet"])
            made = sample_latents(self.unet, unet_params, noise, positive, negative, marks, solver=solver,
                                  mask=self.preset.mask_config(*noise.shape[1:3]), freeze_mask_step=10)
            masks = jnp.repeat(made.masks[-1].max(axis=1)[..., None], 3, axis=-1)
            pictures = self.decode(frozen["autoencoder"], made.latents)
            return pictures, jax.image.resize(masks, pictures.shape, "nearest")

        frozen = {name: part for name, part in self.frozen.items() if name != "paintings"}
        made, masks = map(np.asarray, sample(params, frozen, batch["caption_ids"], batch["marks"], references))
        rows = np.asarray(references) * 2 - 1, made, masks * 2 - 1
        return grid(np.concatenate([row[half] for half in (slice(8), slice(8, None)) for row in rows]),
                    columns=min(8, len(made)))

    def captions(self):
        """Of the pictures of `preview`."""
        return [self.batches.spelling.text(ids) for ids in self._shown()["caption_ids"]]

    def _shown(self):
        batch = self.batches.pairs(0, 1, Curriculum("recontextualisation"), second=self.second)
        whole = len(batch["caption_ids"])
        count = min(16, whole // 8 * 8 or whole)  # rows of eight, or one of fewer
        return jax.tree.map(lambda x: x[:count], batch)
