"""The judge: one small network that reads pictures of one or two things in a scene, used only to score.

It says of every place which noun is there, if any. What a noun's thing looks like (the five identity attributes) is
read from features averaged over its places, and the scene from those where no thing is. It learns from painted
pictures (`realcustom_jax.training.miniature.judge`) and meets what a diffusion model makes only to score it.
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

from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.data.sprites.world import ACCESSORIES, BUILDS, COLOURS, NOUNS, PATTERNS, SCENES
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.models.resnet import ResnetBlock

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "primary": COLOURS, "secondary": COLOURS, "pattern": PATTERNS, "accessory": ACCESSORIES, "build": BUILDS}
"""What makes an identity, in the order of `Identity.attributes`, with the names of its classes."""
HEADS: dict[str, tuple[str, ...]] = {"noun": NOUNS, "scene": SCENES, **ATTRIBUTES}
"""Everything that the judge names."""
SMALLEST_THING = 0.015
"""The share of a picture that a noun's places must fill for the noun to be found; painted things fill 0.03 and more."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The channels at 1/2, 1/4 and 1/8 of the picture's size, and those of the readers of things and scene."""

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
    """Logits, float32.

    places: [B, h, w, 1 + nouns], what is at each place of half the picture's size; 0 is no thing.
    scene: [B, scenes]. things: of each of `ATTRIBUTES` [B, K, classes], for the K regions that were asked for.
    """

    places: jax.Array
    scene: jax.Array
    things: dict[str, jax.Array]


class Judge(nn.Module):
    """images [B, H, W, 3] in [-1, 1], H and W multiples of 16 → `Verdict`.

    Of which things is told by `nouns` int32 [B, K], whose places the judge finds itself (those of -1 are nowhere), or
    by `regions` [B, K, H, W] in [0, 1].
    """

    config: JudgeConfig

    @nn.compact
    def __call__(self, images, *, nouns=None, regions=None):
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
        places = nn.Conv(1 + len(NOUNS), (3, 3), name="places")(half)

        shares = jax.lax.stop_gradient(nn.softmax(places))
        if regions is None:
            of_nouns = jnp.take_along_axis(shares, jnp.maximum(nouns, 0)[:, None, None] + 1, axis=-1)
            regions = jnp.moveaxis(of_nouns * (nouns >= 0)[:, None, None], -1, 1)
        levels = (half, quarter, eighth)
        everywhere = whole.mean((1, 2))
        of_scene = self._reader("scene_reader", everywhere, *(_mean_inside(x, shares[:, None, ..., 0])[:, 0]
                                                              for x in levels))
        inside = jnp.concatenate([_mean_inside(x, regions) for x in levels], axis=-1)
        of_things = self._reader("thing_reader", inside)
        things = {name: nn.Dense(len(classes), name=name)(of_things) for name, classes in ATTRIBUTES.items()}
        return Verdict(places, nn.Dense(len(SCENES), name="scene")(of_scene), things)

    def _down(self, channels, name, x):
        return nn.Conv(channels, (3, 3), strides=2, name=name)(nn.silu(x))

    def _merge(self, channels, name, x, below):
        below = nn.Conv(channels, (1, 1), name=f"{name}_below")(below).repeat(2, axis=1).repeat(2, axis=2)
        x = nn.GroupNorm(self.config.groups, name=f"{name}_norm")(x + below)
        return nn.silu(nn.Conv(channels, (3, 3), name=name)(nn.silu(x)))

    def _reader(self, name, *features):
        return nn.silu(nn.Dense(self.config.hidden, name=name)(jnp.concatenate(features, axis=-1)))


def _mean_inside(x: jax.Array, regions: jax.Array) -> jax.Array:
    """The means of x [B, h, w, C] over regions [B, K, H, W] in [0, 1], averaged down to h × w: [B, K, C]."""
    regions = average_pixels(regions, x.shape[1:3])
    total = jnp.einsum("bkhw,bhwc->bkc", regions, x)
    return total / (regions.sum((2, 3))[..., None] + 1e-3)


@dataclasses.dataclass(frozen=True)
class Opinions:
    """The judge's opinion of N pictures with K nouns asked for, as numpy arrays.

    Attributes:
        found: bool [N, K], whether the noun is in the picture (`SMALLEST_THING`).
        attributes: int32 [N, K, 5], the most likely classes of its thing, in the order of `Identity.attributes`.
        scene: int32 [N].
        places: float32 [N, K, h, w], how likely the noun is at each place of half the picture's size.
    """

    found: np.ndarray
    attributes: np.ndarray
    scene: np.ndarray
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainedJudge:
    """A judge with its parameters: call it with uint8 pictures [N, H, W, 3] and the nouns [N, K] that should be in them
    (indices, -1 for none) for its `Opinions`."""

    module: Judge
    params: Any

    def __call__(self, images: np.ndarray, nouns: np.ndarray, *, batch_size: int = 32) -> Opinions:
        # One shape for all batches, so that one compilation serves every call.
        count = len(images)
        images, nouns = (np.concatenate([x, np.repeat(x[-1:], -count % batch_size, axis=0)]) for x in (images, nouns))
        parts = [_judge(self.module, self.params, images[i : i + batch_size], nouns[i : i + batch_size])
                 for i in range(0, len(images), batch_size)]
        return Opinions(*(np.concatenate(part)[:count] for part in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _judge(module: Judge, params, images: jax.Array, nouns: jax.Array):
    verdict = module.apply({"params": params}, from_uint8(images), nouns=nouns)
    likely = jnp.take_along_axis(nn.softmax(verdict.places), jnp.maximum(nouns, 0)[:, None, None] + 1, axis=-1)
    places = jnp.moveaxis(likely * (nouns >= 0)[:, None, None], -1, 1)
    found = (places > 0.5).mean((2, 3)) >= SMALLEST_THING
    attributes = jnp.stack([verdict.things[name].argmax(-1) for name in ATTRIBUTES], axis=-1)
    return found, attributes, verdict.scene.argmax(-1), places


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
    return jax.jit(module.init)(key, jnp.zeros((1, 64, 64, 3)), nouns=jnp.zeros((1, 1), jnp.int32))["params"]
