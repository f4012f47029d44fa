"""The batches of every stage: what is in the pictures is drawn on the host, the pictures are composed on the device."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.conditioning.size import time_ids
from realcustom_jax.data.sprites.bank import Bank
from realcustom_jax.data.sprites.captions import TELLABLE, Spelling, caption
from realcustom_jax.data.sprites.composition import Layout, Paintings, compose, compose_few, crop
from realcustom_jax.data.sprites.draws import (
    DIFFICULTIES,
    draw_layout,
    draw_references,
    draw_things,
    draw_told,
    rows_of,
)
from realcustom_jax.data.sprites.world import NOUNS, SCENES
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.training.curriculum import Curriculum

Batch = dict[str, np.ndarray]
_NO_STEP, _HELD_OUT = 2**31, 2
"""No training has so many steps: batches from there on are held out, so many of them."""


class HeldOut:
    """Of a task whose `batch` is drawn anew for every step: the held-out examples are those of steps that never
    come."""

    def held_out(self, number: int) -> Batch | None:
        """See `tasks.WatchedTask`."""
        return self.batch(_NO_STEP + number) if number < _HELD_OUT else None


@dataclasses.dataclass(frozen=True)
class PictureBatches:
    """Batches of pictures of one or two things with what there is to know of them; each a pure function of
    (seed, step), none like another.

    `two` is the share of pictures with two things, `nouns` what they may be.
    """

    bank: Bank
    spelling: Spelling
    batch_size: int
    seed: int
    two: float = 0.5
    nouns: Sequence[str] = NOUNS

    def __post_init__(self):
        object.__setattr__(self, "_rows", rows_of(self.bank, self.nouns))
        object.__setattr__(self, "_identity", functools.cache(self.bank.identity))

    @property
    def paintings(self) -> Paintings:
        """What the pictures are composed of; a frozen parameter of a stage's loss."""
        return Paintings(self.bank.cut_outs, self.bank.scenes)

    def pictures(self, step: int) -> Batch:
        """layout: `Layout` of B pictures. nouns, attributes: int32 [B, 2], [B, 2, 5] of their things, -1 for none.
        scene: int32 [B]."""
        rng = self._rng(step)
        return self._pictures(rng, draw_things(rng, self.bank, self._rows, self.batch_size, self.two))

    def captioned(self, step: int) -> Batch:
        """`pictures`, with caption_ids int32 [B, T], which tell some of the things' attributes; plain_ids, which tell
        none; marks int32 [B, 2, T], where the captions' nouns stand."""
        batch = self.pictures(step)
        rng = self._rng(step, 1)
        captions = [self._caption(things, scene, [draw_told(rng), draw_told(rng)])
                    for things, scene in self._things(batch)]
        plain = [self._caption(things, scene, [(), ()]) for things, scene in self._things(batch)]
        return batch | self._ids("caption", captions) | {"plain_ids": self._ids("plain", plain)["plain_ids"]}

    def pairs(self, step: int, steps: int, curriculum: Curriculum, *, second: float) -> Batch:
        """Targets and references of their first things, of the kinds that `curriculum` wants at `step` of `steps`.

        As `pictures`, with reference: `Layout`, cropped bool [B] and boxes float32 [B, 3], see `draws.References`;
        caption_ids, which tell nothing of the first thing and everything of a second; marks int32 [B, 1, T], where the
        first noun stands; told_ids, which tell everything. `second` is the share of references with a second thing.
        """
        batch = self.pictures(step)
        rng = self._rng(step, 2)
        weights = curriculum.weights(step, steps, DIFFICULTIES)
        difficulty = rng.choice(DIFFICULTIES, self.batch_size, p=weights)
        references = draw_references(rng, self.bank, batch["layout"], difficulty, second=second, rows=self._rows)
        captions = [self._caption(things, scene, [(), TELLABLE]) for things, scene in self._things(batch)]
        told = [self._caption(things, scene, [TELLABLE, TELLABLE]) for things, scene in self._things(batch)]
        batch |= {"reference": references.layout, "cropped": references.cropped, "boxes": references.boxes}
        ids = self._ids("caption", captions)
        return batch | ids | {"marks": ids["marks"][:, :1], "told_ids": self._ids("told", told)["told_ids"]}

    def views(self, step: int) -> Batch:
        """Two different views of one thing each, for encoders that should know it again: first and second `Layout`;
        description_ids int32 [B, T] tell everything of the first view's things, left to right."""
        rng = self._rng(step, 3)
        batch = self._pictures(rng, draw_things(rng, self.bank, self._rows, self.batch_size, 0.0))
        ends = [draw_references(rng, self.bank, batch["layout"], np.full(self.batch_size, d), second=second,
                                rows=self._rows).layout for d, second in ((2 / 3, 0.3), (1.0, 0.0))]
        texts = []
        for things, xs in zip(ends[0].thing, ends[0].x, strict=True):
            order = [things[i] for i in np.argsort(xs) if things[i] >= 0]
            texts.append(caption([(self._identity(int(thing)), TELLABLE) for thing in order], None))
        return {"first": ends[0], "second": ends[1],
                "description_ids": np.stack([self.spelling.ids(text.words) for text in texts])}

    def compose(self, layout: Layout) -> jax.Array:
        """The pictures [B, P, P, 3] in [0, 1] of a layout; in a stage's loss, use `composition.compose`."""
        return compose_few(self.bank.cut_outs, self.bank.scenes, layout)[0]

    def references(self, batch: Batch) -> jax.Array:
        """The references [B, P, P, 3] in [0, 1] of `pairs`; in a stage's loss, use `compose_references`."""
        cropped = crop(self.compose(batch["layout"]), batch["boxes"])
        return jnp.where(batch["cropped"][:, None, None, None], cropped, self.compose(batch["reference"]))

    def _rng(self, step: int, purpose: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.seed, step, purpose))

    def _pictures(self, rng: np.random.Generator, things: np.ndarray) -> Batch:
        known = self.bank.identities[np.maximum(things, 0)]
        known = np.where((things >= 0)[..., None], known, -1)
        layout = draw_layout(rng, self.bank, things)
        return {"layout": layout, "nouns": known[..., 0], "attributes": known[..., 1:],
                "scene": self.bank.scene_names[layout.scene]}

    def _things(self, batch: Batch):
        for things, scene in zip(batch["layout"].thing, batch["scene"], strict=True):
            yield [self._identity(int(thing)) for thing in things if thing >= 0], SCENES[scene]

    @staticmethod
    def _caption(things, scene, told):
        return caption(list(zip(things, told, strict=False)), scene)

    def _ids(self, name: str, captions) -> Batch:
        marks = np.zeros((len(captions), 2, self.spelling.length), np.int32)
        for i, text in enumerate(captions):
            for k, noun in enumerate(text.nouns):
                marks[i, k, self.spelling.place(noun)] = 1
        return {f"{name}_ids": np.stack([self.spelling.ids(text.words) for text in captions]), "marks": marks}


def compose_references(paintings: Paintings, pictures: jax.Array, batch: Batch) -> jax.Array:
    """The references [B, P, P, 3] in [0, 1] of `PictureBatches.pairs`, whose targets are `pictures`."""
    composed = compose(paintings, batch["reference"])[0]
    return jnp.where(batch["cropped"][:, None, None, None], crop(pictures, batch["boxes"]), composed)


def size_of_all(batches: PictureBatches, count: int) -> jax.Array:
    """The size conditioning of `count` pictures, float32 [B, 6]: all of them are squares of one side, and whole."""
    side = batches.bank.config.side
    return jnp.broadcast_to(time_ids((side, side)), (count, 6))


def covered(coverage: jax.Array, size: tuple[int, int]) -> jax.Array:
    """How much of each latent place things fill: coverage [B, K, P, P] → [B, h, w]."""
    return jnp.clip(average_pixels(coverage.sum(1), size), 0, 1)
