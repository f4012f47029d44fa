"""The judge's stage: painted pictures, disturbed as a small diffusion model and its autoencoder would."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.evaluation.miniature.judge import ATTRIBUTES, Judge, JudgeConfig, init_judge
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.training.miniature.pictures import HeldOut, PictureBatches


@dataclasses.dataclass
class JudgeTask(HeldOut):
    """Trains `Judge` on the pictures of `batches`; `places_weight` is of the loss of what is where, beside 1 for each
    of the rest."""

    model: Mapping[str, Any]
    batches: PictureBatches
    places_weight: float = 4.0

    def __post_init__(self):
        self.module = Judge(JudgeConfig.from_config(self.model))
        self.frozen = {"paintings": self.batches.paintings}

    def init(self, key):
        return init_judge(self.module, key)

    def batch(self, step):
        batch = self.batches.pictures(step)
        # The start of training has no places of its own worth reading from; nouns say which regions are empty.
        return {name: batch[name] for name in ("layout", "nouns", "attributes", "scene")}

    def loss(self, params, frozen, batch, key):
        images, coverage = compose(frozen["paintings"], batch["layout"])
        disturb_key, region_key = jax.random.split(key)
        images = disturb(disturb_key, images * 2 - 1)
        count, things = batch["nouns"].shape
        # Half of the things are read from their true places, half from a blurred idea of them.
        rough = jax.image.resize(average_pixels(coverage, (16, 16)), coverage.shape, "linear")
        regions = jnp.where(jax.random.bernoulli(region_key, 0.5, (count, things, 1, 1)), coverage, rough)
        verdict = self.module.apply({"params": params}, images, regions=regions)

        there = batch["nouns"] >= 0
        losses = {"scene": _cross_entropy(verdict.scene, batch["scene"]).mean()}
        correct = {"scene": (verdict.scene.argmax(-1) == batch["scene"]).mean()}
        for i, name in enumerate(ATTRIBUTES):
            truth = jnp.maximum(batch["attributes"][..., i], 0)
            losses[name] = (_cross_entropy(verdict.things[name], truth) * there).sum() / there.sum()
            correct[name] = ((verdict.things[name].argmax(-1) == truth) & there).sum() / there.sum()
        truth = places(coverage, batch["nouns"], verdict.places.shape[1:3])
        losses["places"] = self.places_weight * _cross_entropy(verdict.places, truth).mean()
        on_things = truth > 0
        right = (verdict.places.argmax(-1) == truth) & on_things
        return sum(losses.values()), {"places": right.sum() / on_things.sum(), **correct}

    def preview(self, params) -> Image.Image:
        """Disturbed pictures beside what the judge takes for things."""
        images = disturb(jax.random.key(0), self.batches.compose(self.batches.pictures(0)["layout"])[:16] * 2 - 1)
        nouns = jnp.zeros((len(images), 1), jnp.int32)
        verdict = jax.jit(lambda p, x: self.module.apply({"params": p}, x, nouns=nouns))(params, images)
        inside = 1 - jax.nn.softmax(verdict.places)[..., :1]
        inside = jax.image.resize(inside, (*images.shape[:3], 1), "linear")
        return grid(np.concatenate([images, images * inside + (1 - inside)], axis=2), columns=4)


def places(coverage: jax.Array, nouns: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What is at each place: 1 + the noun of the thing that fills more than half of it, else 0; int32 [B, *size].

    coverage: [B, K, P, P]. nouns: int32 [B, K].
    """
    filled = average_pixels(coverage, size) > 0.5
    return ((nouns + 1)[..., None, None] * filled).max(axis=1)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def disturb(key: jax.Array, images: jax.Array) -> jax.Array:
    """Random blur, brightness, contrast, tint and noise, another one for each picture [B, H, W, 3] in [-1, 1]."""
    keys = jax.random.split(key, 6)
    batch = images.shape[0]

    def uniform(key, low, high, channels=1):
        return jax.random.uniform(key, (batch, 1, 1, channels), minval=low, maxval=high)

    # Half of the pictures stay sharp.
    images = _blur(images, jnp.maximum(0, uniform(keys[0], -1.0, 1.0)))
    contrast = uniform(keys[1], 0.85, 1.15) * uniform(keys[2], 0.94, 1.06, 3)
    images = images * contrast + uniform(keys[3], -0.12, 0.12)
    images = images + uniform(keys[4], 0.0, 0.08) * jax.random.normal(keys[5], images.shape)
    return jnp.clip(images, -1, 1)


def _blur(images: jax.Array, strength: jax.Array) -> jax.Array:
    """Three times a 3-pixel kernel along each axis; strength [B, 1, 1, 1] in [0, 1], from none to the mean of three."""
    for axis in (1, 2) * 3:
        padded = jnp.pad(images, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        length = images.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in (0, 2))
        images = images + strength * (before + after - 2 * images) / 3
    return images
