"""The judge's stage: pictures of one subject, disturbed as a small diffusion model and its autoencoder would."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from realcustom_jax.conditioning.references import from_uint8, grid
from realcustom_jax.evaluation.judge import ATTRIBUTES, HEADS, Judge, JudgeConfig, init_judge

FIELDS: tuple[str, ...] = ("target", "masks", "nouns", "attributes", "scene")
"""The dataset's fields that the stage reads."""


def single_subject_rows(nouns: np.ndarray) -> np.ndarray:
    """Indices of the rows with one subject, from their `nouns` [N, 2] (−1: no second subject)."""
    return np.flatnonzero(nouns[:, 1] < 0)


@dataclasses.dataclass
class JudgeTask:
    """Trains `Judge` on `batches` of `FIELDS`, whose rows hold one subject each (`single_subject_rows`).

    `segmentation_weight`: of the pixels' loss, beside 1 for each head.
    """

    model: Mapping[str, Any]
    batches: Sequence[dict[str, np.ndarray]]
    segmentation_weight: float = 2.0
    frozen: None = None

    def __post_init__(self):
        self.module = Judge(JudgeConfig.from_config(self.model))
        self.judge = jax.jit(lambda params, images: self.module.apply({"params": params}, images))

    def init(self, key):
        return init_judge(self.module, key)

    def batch(self, step):
        batch = self.batches[step]
        labels = {"noun": batch["nouns"][:, 0], "scene": batch["scene"]}
        labels |= {name: batch["attributes"][:, 0, i] for i, name in enumerate(ATTRIBUTES)}
        return {"images": batch["target"], "masks": batch["masks"][:, 0], **labels}

    def loss(self, params, frozen, batch, key):
        images, masks = disturb(key, from_uint8(batch["images"]), batch["masks"].astype(jnp.float32))
        verdict = self.module.apply({"params": params}, images)
        losses = {
            name: optax.softmax_cross_entropy_with_integer_labels(verdict.logits[name], batch[name]).mean()
            for name in HEADS}
        correct = {name: (verdict.logits[name].argmax(-1) == batch[name]).mean() for name in HEADS}
        segmentation = optax.sigmoid_binary_cross_entropy(verdict.subject, masks).mean()
        total = sum(losses.values()) + self.segmentation_weight * segmentation
        return total, {"segmentation": segmentation, **correct}

    def preview(self, params) -> Image.Image:
        """Disturbed pictures beside what the judge takes for their subjects."""
        batch = self.batch(0)
        images, _ = disturb(jax.random.key(0), from_uint8(batch["images"]), batch["masks"].astype(jnp.float32))
        images = images[:16]
        inside = nn.sigmoid(self.judge(params, images).subject)[..., None]
        return grid(np.concatenate([images, images * inside + (1 - inside)], axis=2), columns=4)


def disturb(key: jax.Array, images: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Random mirror, shift, blur, brightness, contrast, tint and noise, another one for each picture.

    images [B,H,W,3] in [-1, 1], masks [B,H,W] → the same; both are mirrored and shifted alike.
    """
    keys = jax.random.split(key, 8)
    batch = images.shape[0]

    def uniform(key, low, high, channels=1):
        return jax.random.uniform(key, (batch, 1, 1, channels), minval=low, maxval=high)

    both = jnp.concatenate([images, masks[..., None]], axis=-1)
    both = jnp.where(jax.random.bernoulli(keys[0], 0.5, (batch, 1, 1, 1)), both[:, :, ::-1], both)
    both = jax.vmap(_shift)(both, jax.random.randint(keys[1], (batch, 2), -_REACH, _REACH + 1))
    images, masks = both[..., :3], both[..., 3]

    # Half of the pictures stay sharp.
    images = _blur(images, jnp.maximum(0, uniform(keys[2], -1.0, 1.0)))
    contrast = uniform(keys[3], 0.85, 1.15) * uniform(keys[4], 0.94, 1.06, 3)
    images = images * contrast + uniform(keys[5], -0.12, 0.12)
    images = images + uniform(keys[6], 0.0, 0.08) * jax.random.normal(keys[7], images.shape)
    return jnp.clip(images, -1, 1), masks


_REACH = 4  # pixels


def _shift(image: jax.Array, offset: jax.Array) -> jax.Array:
    """Moves [H,W,C] by up to `_REACH` pixels; its border fills what appears."""
    padded = jnp.pad(image, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (offset[0] + _REACH, offset[1] + _REACH, 0), image.shape)


def _blur(images: jax.Array, strength: jax.Array) -> jax.Array:
    """Twice a 3-pixel kernel along each axis; strength [B,1,1,1] in [0, 1], from none to the mean of the three."""
    for axis in (1, 2, 1, 2):
        padded = jnp.pad(images, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        length = images.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in (0, 2))
        images = images + strength * (before + after - 2 * images) / 3
    return images
