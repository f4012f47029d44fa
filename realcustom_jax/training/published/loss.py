"""The loss that trains an adapter on a published model (SD-1.5, SDXL), from what the frozen encoders made of a batch.

Whether they made it within the step or once, ahead of all steps, is the business of the task that calls it (module
`run`).
"""

import dataclasses

import jax
import numpy as np

from realcustom_jax.model_files.adapter import merge_unet
from realcustom_jax.models.projector import Projector
from realcustom_jax.models.resnet import REMEMBERED
from realcustom_jax.models.unet import UNet
from realcustom_jax.sampling import solvers
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.losses import Mean, denoising_loss


@dataclasses.dataclass(frozen=True)
class AdapterLoss:
    """The loss of {"projector", "vision"}, the projector and the UNet's visual keys and values, with M = 1.

    A batch gives latents [B, h, w, C] of unit variance, text [B, T, D], features (a tuple of [B, L, C], see
    `references.reference_features`), and for SDXL's kind of UNet pooled [B, P] and time_ids [B, 6]. `frozen` holds the
    parameters `unet` (without its visual layers) and what replaces a condition that is dropped, for classifier-free
    guidance: `empty` {text, pooled} of the empty prompt and `no_image`, the features of a black image, without batch.

    The backward pass keeps what enters each block and computes the rest again.
    """

    unet: UNet
    projector: Projector
    prediction: str = "epsilon"
    image_dropout: float = 0.1
    text_dropout: float = 0.05
    snr_limit: float | None = None
    betas: np.ndarray = dataclasses.field(default_factory=solvers.betas, compare=False)

    def __call__(self, params, frozen, batch, key) -> tuple[jax.Array, dict[str, Mean]]:
        """(loss, the same by timestep), as `step.make_train_step` wants it."""
        text_key, image_key, noise_key = jax.random.split(key, 3)
        return self.denoising(params, frozen["unet"], self.dropped(batch, frozen, text_key, image_key), noise_key)

    def dropped(self, batch, frozen, text_key, image_key):
        """The batch with some examples' texts, and some examples' features, replaced by those of nothing."""
        no_text, no_image = (draw_dropped(key, share, len(batch["text"])) for key, share in (
            (text_key, self.text_dropout), (image_key, self.image_dropout)))
        text = replace_dropped(no_text, {name: batch[name] for name in frozen["empty"]}, frozen["empty"])
        return {**batch, **text, "features": replace_dropped(no_image, batch["features"], frozen["no_image"])}

    def denoising(self, params, base, batch, key) -> tuple[jax.Array, dict[str, Mean]]:
        """The loss, and by timestep, of a batch of which nothing is dropped any more; `base` are the UNet's frozen
        parameters."""
        def predict(params, base, text, features, noisy, t):
            vision = self.projector.apply({"params": params["projector"]}, features)[:, None]
            return self.unet.apply(
                {"params": merge_unet(params["vision"], base)}, noisy, t, text, pooled=batch.get("pooled"),
                time_ids=batch.get("time_ids"), vision=vision).noise

        keep = jax.checkpoint_policies.save_only_these_names(REMEMBERED)
        predict = jax.checkpoint(predict, policy=keep)
        return denoising_loss(
            lambda noisy, t: predict(params, base, batch["text"], batch["features"], noisy, t), batch["latents"], key,
            betas=self.betas, prediction=self.prediction,
            snr_limit=self.snr_limit)
