"""The tasks of `loop.fit` that train an adapter on a published model: from pictures, or from features on disk."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from realcustom_jax.conditioning.images import grid, to_uint8
from realcustom_jax.data.batches import Batch, BucketBatches
from realcustom_jax.model_files.adapter import merge_unet, split_unet
from realcustom_jax.model_files.network import Network
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.published.encoders import Encoders
from realcustom_jax.training.published.features import StoredFeatures
from realcustom_jax.training.published.loss import AdapterLoss
from realcustom_jax.training.published.shapes import example_shape, stored_shape

_PREVIEWS = 4
_HELD_OUT = 8
"""Batches whose loss is looked at; more take time and make the number only a little steadier."""


class PublishedTask:
    """The task of `loop.fit`: {"projector", "vision"} of a pipeline, everything else frozen; see `AdapterLoss`.

    Conditions are dropped, for classifier-free guidance, before they are encoded, as often as `AdapterLoss` says.

    Args:
        batches: of the rows that are trained on; None where only shapes are asked for.
        read: gives the same batches by their steps, perhaps read ahead; None: they are read when they are asked for.
        held_out: batches of rows that are never trained on.
    """

    def __init__(self, pipeline: Pipeline, batches: BucketBatches | None, snr_limit: float | None = None, *,
                 read: Callable[[int], Batch] | None = None, held_out: Sequence[Batch] = ()):
        self._pipeline, self._batches, self._encoders = pipeline, batches, Encoders(pipeline)
        self._read, self._held_out = read or (lambda step: batches[step]), held_out
        vision, base = split_unet(pipeline.unet.params)
        self.trained = {"projector": pipeline.projector.params, "vision": vision}
        self.frozen = {"unet": base, **self._encoders.params}
        self._loss = AdapterLoss(pipeline.unet.module, pipeline.projector.module, pipeline.prediction,
                                  snr_limit=snr_limit, betas=pipeline.betas)

    def init(self, key):
        return jax.tree.map(lambda x: np.asarray(x, np.float32), self.trained)

    def batch(self, step):
        """Pictures uint8, token ids [B, encoders, T] and size conditioning [B, 6] as the preset orders it."""
        return self._given(self._read(step))

    def held_out(self, number):
        """The same of rows that no step trains on."""
        return self._given(self._held_out[number]) if number < min(len(self._held_out), _HELD_OUT) else None

    def _given(self, batch: Batch) -> Batch:
        """What the loss takes of a batch of pictures and captions."""
        ids = self._encoders.ids(batch["caption"])
        size = batch["target"].shape[1:3]
        return {"target": batch["target"], "reference": batch["reference"], "ids": ids,
                "empty_ids": np.broadcast_to(self._encoders.ids([""]), ids.shape),
                "time_ids": self._encoders.time_ids(batch["original_size"], batch["crop_top_left"], size)}

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        size = len(batch["target"])
        no_text = draw_dropped(text_key, self._loss.text_dropout, size)
        no_image = draw_dropped(image_key, self._loss.image_dropout, size)
        ids = replace_dropped(no_text, batch["ids"], batch["empty_ids"])
        pictures = replace_dropped(no_image, batch["reference"] / 255.0, 0.0)
        known = jax.lax.stop_gradient({
            **self._encoders.text(frozen, ids), "features": self._encoders.references(frozen, pictures),
            "latents": self._encoders.latents(self._encoders.targets(frozen, batch["target"]), latents_key)})
        if "pooled" in known:
            known["time_ids"] = batch["time_ids"]
        return self._loss.denoising(params, frozen["unet"], known, noise_key)

    def example_shapes(self):
        """Of every shape of targets."""
        return [example_shape(self._pipeline, size) for size in self._batches.shapes]

    def scalars(self, step):
        """The epoch and the curriculum's."""
        return self._batches.scalars(step)

    def trained_pipeline(self, params) -> Pipeline:
        """The pipeline that loads the adapter with these parameters: they are then of half precision."""
        dtype = self._pipeline.unet.module.dtype
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16).astype(dtype), params)
        return dataclasses.replace(
            self._pipeline,
            unet=Network(self._pipeline.unet.module, merge_unet(params["vision"], self.frozen["unet"])),
            projector=Network(self._pipeline.projector.module, params["projector"]))

    def preview(self, params) -> Image.Image:
        """References (above), what is made of them with the captions of the first batch, and the masks of the last step
        (below), with the preset of the training."""
        pipeline = dataclasses.replace(self.trained_pipeline(params), vocabulary=None)
        batch = self._batches[0]
        references, made, masks = [], [], []
        side = pipeline.sizes.native
        for picture, caption, word in zip(batch["reference"], batch["caption"], batch["word"], strict=True):
            if len(made) == _PREVIEWS:
                break
            reference = Image.fromarray(picture)
            try:
                result = pipeline(reference, caption, word)
                made.append(result.images[0])
                masks.append(Image.fromarray(to_uint8(result.masks[-1, 0].max(axis=0) * 2 - 1)).convert("RGB"))
            except ValueError as error:  # as of a word that a long caption loses; training goes on
                tqdm.write(f"no sample of {caption!r}: {error}")
                made.append(Image.new("RGB", (side, side), "grey"))
                masks.append(made[-1])
            references.append(reference.resize((side, side)))
        masks = [mask.resize((side, side), Image.Resampling.NEAREST) for mask in masks]
        rows = np.stack([np.asarray(image) for image in references + made + masks])
        return grid(rows / 127.5 - 1.0, columns=len(made))

    def captions(self):
        """Of the pictures of `preview`."""
        return self._batches[0]["caption"][:_PREVIEWS]


class PrecomputedTask(PublishedTask):
    """The same, from features on disk: the encoders are neither run nor on the devices. `read` and `held_out` give what
    `StoredFeatures.batch` does."""

    def __init__(self, pipeline: Pipeline, batches: BucketBatches | None, stored: StoredFeatures,
                 snr_limit: float | None = None, *, read: Callable[[int], Batch] | None = None,
                 held_out: Sequence[Batch] = ()):
        super().__init__(pipeline, batches, snr_limit, held_out=held_out,
                         read=read or (lambda step: stored.batch(batches.chosen(step))))
        self.frozen = {"unet": self.frozen["unet"], **stored.dropped()}

    def example_shapes(self):
        """Of every shape of targets."""
        return [stored_shape(self._pipeline, size) for size in self._batches.shapes]

    def _given(self, batch: dict[str, Any]) -> dict[str, Any]:
        """targets, text, pooled, time_ids and features, see `StoredFeatures.batch`."""
        return batch

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        known = self._loss.dropped(batch, frozen, text_key, image_key)
        encoded = {name: known[name] for name in ("text", "pooled", "features") if name in known}
        known |= jax.tree.map(lambda x: x.astype(self._pipeline.unet.module.dtype), encoded)
        known["latents"] = self._encoders.latents(known["targets"], latents_key)
        return self._loss.denoising(params, frozen["unet"], known, noise_key)
