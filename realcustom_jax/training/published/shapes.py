"""The shapes of the examples that an adapter on a published model is trained on, without reading one."""

from typing import Any

import jax
import jax.numpy as jnp

from realcustom_jax.devices.shapes import array_shape, batch_shapes
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.published.encoders import Encoders


def example_shape(pipeline: Pipeline, size: tuple[int, int]) -> dict[str, Any]:
    """Of one example whose target has this (height, width), as `tasks.PublishedTask` makes its batches."""
    side, texts = pipeline.vision_settings.size, pipeline.text_encoders
    ids = array_shape(len(texts), texts[0].network.module.config.max_position_embeddings, dtype=jnp.int32)
    target, reference = array_shape(*size, 3, dtype=jnp.uint8), array_shape(side, side, 3, dtype=jnp.uint8)
    return {"target": target, "reference": reference, "ids": ids, "empty_ids": ids, "time_ids": array_shape(6)}


def stored_shape(pipeline: Pipeline, size: tuple[int, int]) -> dict[str, Any]:
    """The same of `tasks.PrecomputedTask`, from features as they lie on disk."""
    encoders, example = Encoders(pipeline), example_shape(pipeline, size)
    reference = array_shape(*example["reference"].shape)
    text, features, targets = (
        _as_on_disk(jax.eval_shape(function, encoders.params, batch_shapes(of_one, 1)))
        for function, of_one in ((encoders.text, example["ids"]), (encoders.references, reference),
                                 (encoders.targets, example["target"])))
    stored = {"targets": targets, "features": features, **text}
    return stored | {"time_ids": example["time_ids"]} if "pooled" in text else stored


def _as_on_disk(tree):
    """Of one row, float16, of shapes with a batch axis of one."""
    return jax.tree.map(lambda x: array_shape(*x.shape[1:], dtype=jnp.float16), tree)
