"""What a published model's frozen encoders make of pictures and captions, as pure functions."""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.references import reference_features
from realcustom_jax.conditioning.size import time_ids
from realcustom_jax.conditioning.text_states import text_states
from realcustom_jax.model_files import fingerprint
from realcustom_jax.pipeline import Pipeline


class Encoders:
    """The frozen encoders of a pipeline, as pure functions of `params`."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self.params = {
            "vae": pipeline.vae.params, "siglip": pipeline.siglip.params, "dinov2": pipeline.dino.params,
            "text_encoders": tuple(encoder.network.params for encoder in pipeline.text_encoders)}

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """int32 [B, encoders, T]; what is too long is cut."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long captions are cut in every epoch again
            return np.stack([encode_prompt(encoder.tokenizer, captions, allow_empty=True)
                             for encoder in self._pipeline.text_encoders], axis=1)

    def time_ids(self, original: np.ndarray, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """SDXL's size conditioning [B, 6] in the order of the preset, from pairs [B, 2] and the size of all targets,
        each vertical first."""
        return time_ids(size, original=original, corner=corner, order=self._pipeline.preset.size_order)

    def text(self, params, ids: jax.Array) -> dict[str, jax.Array]:
        """text [B, T, D] and, for SDXL's kind of UNet, pooled [B, P]."""
        outputs = [encoder.network.module.apply({"params": own}, ids[:, i]) for i, (encoder, own) in enumerate(
            zip(self._pipeline.text_encoders, params["text_encoders"], strict=True))]
        text, pooled = text_states(outputs, self._pipeline.unet.module.config, self._pipeline.preset.pooled)
        return {"text": text} if pooled is None else {"text": text, "pooled": pooled}

    def references(self, params, pictures: jax.Array) -> tuple[jax.Array, ...]:
        """`references.reference_features` of pictures [B, S, S, 3] in [0, 1]."""
        pipeline = self._pipeline
        return reference_features(pipeline.siglip.module, params["siglip"], pipeline.dino.module, params["dinov2"],
                                  pictures, pipeline.vision_settings)

    def targets(self, params, pictures: jax.Array) -> jax.Array:
        """The autoencoder's mean and log-variance [B, 2, h, w, C] of pictures uint8 [B, H, W, 3]."""
        vae = self._pipeline.vae.module
        found = vae.apply({"params": params["vae"]}, from_uint8(pictures), method="encode")
        return jnp.stack([found.mean, found.logvar], axis=1)

    def latents(self, targets: jax.Array, key: jax.Array) -> jax.Array:
        """A sample [B, h, w, C] of unit variance of what `targets` gives."""
        mean, logvar = targets.astype(jnp.float32).swapaxes(0, 1)
        scale = self._pipeline.vae.module.config.scaling_factor
        return (mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)) * scale

    def fingerprint(self) -> str:
        """Of all that the features depend on beside the pictures: networks with every weight, tokenizers, settings."""
        pipeline, preset = self._pipeline, self._pipeline.preset
        parts = pipeline.fingerprints()
        return fingerprint.of_values(*(parts[name] for name in ("text encoders", "autoencoder", "image encoders")),
                                     pipeline.vision_settings, preset.pooled, preset.size_order)
