"""The judge: one small network that reads a picture of a subject in a scene, used only to score.

It names the noun, the scene and the five identity attributes, and marks the subject's pixels. What belongs to the
subject is read from features averaged inside the marked region, the scene from those outside of it. It learns from
painted pictures (`realcustom_jax.training.miniature.judge`) and meets what a diffusion model makes only to score it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.conditioning.references import from_uint8
from realcustom_jax.data.sprites.world import ACCESSORIES, BUILDS, COLOURS, NOUNS, PATTERNS, SCENES
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.models.resnet import ResnetBlock

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "primary": COLOURS, "secondary": COLOURS, "pattern": PATTERNS, "accessory": ACCESSORIES, "build": BUILDS}
"""What makes an identity, in the order of `Identity.attributes`, with the names of its classes."""
HEADS: dict[str, tuple[str, ...]] = {"noun": NOUNS, "scene": SCENES, **ATTRIBUTES}
"""Everything that the judge names."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The channels at 1/2, 1/4 and 1/8 of the picture's size, and those of the readers of subject and scene."""

    widths: tuple[int, int, int] = (32, 64, 96)
    hidden: int = 192
    groups: int = 8

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "JudgeConfig":
        """Reads `config.json`. Raises ValueError for unknown keys, and if its classes are not the sprite world's."""
        values = {**mapping}
        classes = values.pop("classes", None)
        if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"judge config: unknown keys {', '.join(unknown)}.")
        if classes is not None and {k: tuple(v) for k, v in classes.items()} != HEADS:
            raise ValueError("judge config: its classes are not those of this sprite world; train the judge again.")
        if "widths" in values:
            values["widths"] = tuple(values["widths"])
        return cls(**values)

    def to_config(self) -> dict[str, Any]:
        """The mapping that `from_config` reads, with the names of the classes."""
        return {**dataclasses.asdict(self), "classes": {name: list(classes) for name, classes in HEADS.items()}}


@flax.struct.dataclass
class Verdict:
    """`logits` [B, classes] of each of `HEADS`; `subject` [B,H,W], the logits of belonging to the subject."""

    logits: dict[str, jax.Array]
    subject: jax.Array


class Judge(nn.Module):
    """images [B,H,W,3] in [-1, 1], H and W multiples of 16 → `Verdict`."""

    config: JudgeConfig

    @nn.compact
    def __call__(self, images):
        fine, middle, coarse = self.config.widths
        block = functools.partial(ResnetBlock, groups=self.config.groups, epsilon=1e-5)
        half = nn.Conv(fine, (5, 5), strides=2, name="stem")(images)
        half = block(fine, name="encode_half")(half)
        quarter = block(middle, name="encode_quarter")(self._down(middle, "down_quarter", half))
        eighth = block(coarse, name="encode_eighth")(self._down(coarse, "down_eighth", quarter))
        whole = block(coarse, name="encode_sixteenth")(self._down(coarse, "down_sixteenth", eighth))

        eighth = self._merge(coarse, "decode_eighth", eighth, whole)
        quarter = self._merge(middle, "decode_quarter", quarter, eighth)
        half = self._merge(fine, "decode_half", half, quarter)
        # Four logits for each place of the half-size grid are the logits of its four pixels.
        batch, rows, columns, _ = half.shape
        subject = nn.Conv(4, (3, 3), name="subject")(half).reshape(batch, rows, columns, 2, 2)
        subject = subject.swapaxes(2, 3).reshape(batch, 2 * rows, 2 * columns)

        inside = jax.lax.stop_gradient(nn.sigmoid(subject))[..., None]
        levels = (half, quarter, eighth)
        everywhere = whole.mean((1, 2))
        of_subject = self._reader("subject_reader", everywhere, *(_mean_inside(x, inside) for x in levels))
        of_scene = self._reader("scene_reader", everywhere, *(_mean_inside(x, 1 - inside) for x in levels))
        logits = {
            name: nn.Dense(len(classes), name=name)(of_scene if name == "scene" else of_subject)
            for name, classes in HEADS.items()}
        return Verdict(logits, subject)

    def _down(self, channels, name, x):
        return nn.Conv(channels, (3, 3), strides=2, name=name)(nn.silu(x))

    def _merge(self, channels, name, x, below):
        below = nn.Conv(channels, (1, 1), name=f"{name}_below")(below).repeat(2, axis=1).repeat(2, axis=2)
        x = nn.GroupNorm(self.config.groups, name=f"{name}_norm")(x + below)
        return nn.silu(nn.Conv(channels, (3, 3), name=name)(nn.silu(x)))

    def _reader(self, name, *features):
        return nn.silu(nn.Dense(self.config.hidden, name=name)(jnp.concatenate(features, axis=-1)))


def _mean_inside(x: jax.Array, share: jax.Array) -> jax.Array:
    """The mean of x [B,h,w,C] weighted by share [B,H,W,1] in [0, 1], which is averaged down to h × w: [B,C]."""
    factor = share.shape[1] // x.shape[1]
    share = nn.avg_pool(share, (factor, factor), (factor, factor))
    return (x * share).sum((1, 2)) / (share.sum((1, 2)) + 1e-3)


@dataclasses.dataclass(frozen=True)
class Opinions:
    """The judge's opinion of N pictures, as numpy arrays.

    Attributes:
        labels: the most likely class [N] for each of `HEADS`, int32.
        subject: probability that a pixel belongs to the subject, float32 [N,H,W].
    """

    labels: dict[str, np.ndarray]
    subject: np.ndarray

    @property
    def attributes(self) -> np.ndarray:
        """int32 [N,5], in the order of `Identity.attributes`."""
        return np.stack([self.labels[name] for name in ATTRIBUTES], axis=1)


@dataclasses.dataclass(frozen=True)
class TrainedJudge:
    """A judge with its parameters: call it with uint8 pictures [N,64,64,3] for its `Opinions`."""

    module: Judge
    params: Any

    def __call__(self, images: np.ndarray, *, batch_size: int = 32) -> Opinions:
        # One shape for all batches, so that one compilation serves every call.
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch_size, axis=0)])
        batches = padded.reshape(-1, batch_size, *images.shape[1:])
        verdicts = [_judge(self.module, self.params, batch) for batch in batches]
        labels, subject = jax.tree.map(lambda *x: np.concatenate(x)[:len(images)], *verdicts)
        return Opinions(labels, subject)


@functools.partial(jax.jit, static_argnums=0)
def _judge(module: Judge, params, images: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    verdict = module.apply({"params": params}, from_uint8(images))
    return jax.tree.map(lambda x: x.argmax(-1), verdict.logits), nn.sigmoid(verdict.subject)


def save_judge(folder: Path, config: JudgeConfig, params: Any) -> None:
    """Writes the judge's part of the bundle `folder`, in float16."""
    bundle.save_part(folder, "judge", config.to_config(), bundle.to_half(weights.to_torch(params)))


def load_judge(folder: Path) -> TrainedJudge:
    """Reads the judge of a bundle. Raises FileNotFoundError or ValueError for a missing, damaged or unfitting file."""
    source = FolderSource(folder)
    module = Judge(JudgeConfig.from_config(source.config("judge")))
    shapes = jax.eval_shape(lambda: init_judge(module, jax.random.key(0)))
    params, unknown = weights.from_torch(shapes, source.tensors("judge"), "judge", dtype=jnp.float32)
    if unknown:
        raise ValueError(f"{source.place('judge')}: unknown keys {', '.join(sorted(unknown)[:5])}.")
    return TrainedJudge(module, params)


def init_judge(module: Judge, key: jax.Array) -> Any:
    """Fresh parameters."""
    return jax.jit(module.init)(key, jnp.zeros((1, 64, 64, 3)))["params"]
