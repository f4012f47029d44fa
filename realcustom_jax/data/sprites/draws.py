"""What is drawn at random for a training step: layouts, references and what captions tell, as small numpy arrays.

Everything is a pure function of the random generator that is handed in, and that of (seed, step); the pictures
themselves are composed on the device (module `composition`).

A pair of the adapter's training is a target and a reference of its subject, of one of the curriculum's kinds:
- *reconstruction* (difficulty 0): the subject cropped from the target itself, so that pose, size and background give
  the target away;
- *re-contextualisation*: the same identity elsewhere. At difficulty d its size lies d of the way to the range's other
  end; below 1/2 it stands in the same scene in the pose most like the target's, from there on in another scene,
  or alone on a plain background, in the pose least like it; close to 1 it faces the other way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from realcustom_jax.data.sprites.bank import Bank
from realcustom_jax.data.sprites.captions import TELLABLE
from realcustom_jax.data.sprites.composition import Layout
from realcustom_jax.data.sprites.world import NOUNS, SCENES

DIFFICULTIES: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
"""Of the kinds of references that a pair can have; 0 is reconstruction."""

_ALONE, _TOGETHER = (0.44, 0.72), (0.4, 0.58)  # heights of a thing, by itself and beside another one
_REFERENCE = (0.5, 0.78)
_OTHER_SCENE_FROM, _OTHER_WAY_FROM = 1 / 2, 5 / 6
_PLAIN_SHARE = 0.3  # of the references in another place
_PADDING = 0.08  # round a subject that is cropped out, as a share of its longer side
_UNTOLD, _ALL_TOLD = 0.3, 0.45  # how often a caption tells none, or all, of a thing's attributes


def rows_of(bank: Bank, nouns: Sequence[str]) -> np.ndarray:
    """The cut-outs that show one of `nouns`: indices, in order."""
    return np.flatnonzero(np.isin(bank.identities[:, 0], [NOUNS.index(noun) for noun in nouns]))


def draw_things(rng: np.random.Generator, bank: Bank, rows: np.ndarray, count: int, two: float) -> np.ndarray:
    """int32 [count, 2]: a cut-out of `rows` each and, with probability `two`, a second of another noun; else -1."""
    first = rng.choice(rows, count)
    return np.stack([first, np.where(rng.random(count) < two, _another_noun(rng, bank, rows, first), -1)], 1).astype(
        np.int32)


def _another_noun(rng: np.random.Generator, bank: Bank, rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    second = rng.choice(rows, len(first))
    while (same := bank.identities[second, 0] == bank.identities[first, 0]).any():
        second[same] = rng.choice(rows, same.sum())
    return second


def draw_layout(rng: np.random.Generator, bank: Bank, things: np.ndarray) -> Layout:
    """Scenes and places for `things` [B, 2]: one in the middle or two side by side, as large as they fit."""
    count = len(things)
    two = (things[:, 1] >= 0)[:, None]
    size = np.where(two, rng.uniform(*_TOGETHER, (count, 2)), rng.uniform(*_ALONE, (count, 2)))
    sides = np.where(rng.random((count, 1)) < 0.5, [[0.26, 0.74]], [[0.74, 0.26]])
    x = np.where(two, sides + rng.uniform(-0.04, 0.04, (count, 2)), 0.5 + rng.uniform(-0.16, 0.16, (count, 2)))
    y = np.where(two, 0.6 + rng.uniform(-0.1, 0.1, (count, 2)), 0.55 + rng.uniform(-0.12, 0.12, (count, 2)))
    scene = rng.integers(len(bank.scenes), size=count)
    return place(rng, bank, things, scene, x, y, size, rng.random((count, 2)) < 0.5)


def place(rng: np.random.Generator, bank: Bank, things: np.ndarray, scene: np.ndarray, x: np.ndarray, y: np.ndarray,
          size: np.ndarray, mirrored: np.ndarray) -> Layout:
    """The layout with every thing shrunk and moved until it is inside, of two each in its half.

    things, x, y, size, mirrored: [B, 2]; scene: [B]; as of `Layout`. What is left to chance are the plain backgrounds
    and whether a scene is mirrored.
    """
    left, top, right, bottom = np.moveaxis(bank.bounds[np.maximum(things, 0)], -1, 0)
    left, right = np.where(mirrored, -right, left), np.where(mirrored, -left, right)
    two = things[:, 1:] >= 0
    width = np.where(two, 0.5, 1.0)
    size = np.minimum(size, 0.96 * np.minimum(width / (right - left), 1 / (bottom - top)))
    start = np.where(two & (x > 0.5), 0.5, 0.0)
    x = np.clip(x, start - left * size, start + width - right * size)
    y = np.clip(y, -top * size, 1 - bottom * size)
    return Layout(
        scene.astype(np.int32), rng.uniform(0.35, 1, (len(things), 3)).astype(np.float32),
        rng.random(len(things)) < 0.5, things, *(a.astype(np.float32) for a in (x, y, size)), mirrored)


@dataclasses.dataclass(frozen=True)
class References:
    """B references: pictures to compose or, where `cropped` bool [B], squares `boxes` [B, 3] of the targets."""

    layout: Layout
    cropped: np.ndarray
    boxes: np.ndarray


def draw_references(rng: np.random.Generator, bank: Bank, target: Layout, difficulty: np.ndarray, *,
                    second: float, rows: np.ndarray) -> References:
    """A reference of the first thing of each target.

    Args:
        difficulty: [B], see the module.
        second: the share of composed references that show a second thing, of another noun, beside it: `rows` are
            what it may be.
    """
    subject = target.thing[:, 0]
    count = len(subject)
    far = difficulty >= _OTHER_SCENE_FROM
    beside = (rng.random(count) < second) & far
    things = np.stack([
        _other_pose(bank, subject, far), np.where(beside, _another_noun(rng, bank, rows, subject), -1)], 1)
    small, large = _REFERENCE
    near_size = np.clip(target.size[:, 0], small, large)
    far_size = np.where(near_size > (small + large) / 2, small, large)
    size = near_size + difficulty * (far_size - near_size)
    size = np.where(beside[:, None], rng.uniform(0.42, 0.56, (count, 2)), size[:, None])
    turned = difficulty >= _OTHER_WAY_FROM
    mirrored = np.stack([target.mirrored[:, 0] ^ turned, rng.random(count) < 0.5], 1)
    sides = np.where(rng.random((count, 1)) < 0.5, [[0.26, 0.74]], [[0.74, 0.26]])
    spread = difficulty[:, None] * rng.uniform(-1, 1, (count, 2))
    x = np.where(beside[:, None], sides, 0.5 + 0.15 * spread)
    y = np.repeat(0.52 + 0.1 * difficulty[:, None] * rng.uniform(-1, 1, (count, 1)), 2, axis=1)
    other = (target.scene + rng.integers(1, len(SCENES), count)
             + len(SCENES) * rng.integers(len(bank.scenes) // len(SCENES), size=count)) % len(bank.scenes)
    elsewhere = np.where(rng.random(count) < _PLAIN_SHARE, -1, other)
    layout = place(rng, bank, things, np.where(far, elsewhere, target.scene), x, y, size, mirrored)
    return References(layout, difficulty == 0, _boxes(bank, target))


def _other_pose(bank: Bank, subject: np.ndarray, far: np.ndarray) -> np.ndarray:
    """A cut-out of the same identity in another pose: the one least (`far`) or most like the subject's."""
    poses = bank.config.poses
    first = subject - subject % poses
    rows = first[:, None] + np.arange(poses)
    distance = np.abs(bank.poses[rows] - bank.poses[subject][:, None])
    nearest = np.where(distance == 0, np.inf, distance).argmin(1) if poses > 1 else np.zeros(len(rows), int)
    return first + np.where(far, distance.argmax(1), nearest)


def _boxes(bank: Bank, layout: Layout) -> np.ndarray:
    """The padded squares round the first things, inside the pictures: float32 [B, 3] of left, top and side."""
    left, top, right, bottom = bank.bounds[layout.thing[:, 0]].T
    mirrored = layout.mirrored[:, 0]
    left, right = np.where(mirrored, -right, left), np.where(mirrored, -left, right)
    x, y, size = layout.x[:, 0], layout.y[:, 0], layout.size[:, 0]
    side = np.minimum(1, np.maximum(right - left, bottom - top) * size * (1 + 2 * _PADDING))
    corner = [np.clip(middle + (low + high) / 2 * size - side / 2, 0, 1 - side)
              for middle, low, high in ((x, left, right), (y, top, bottom))]
    return np.stack([*corner, side], 1).astype(np.float32)


def draw_told(rng: np.random.Generator) -> frozenset[str]:
    """Which of `TELLABLE` a caption tells of a thing: often none, often all, else each or not."""
    how = rng.random()
    if how < _UNTOLD:
        return frozenset()
    if how < _UNTOLD + _ALL_TOLD:
        return frozenset(TELLABLE)
    return frozenset(what for what in TELLABLE if rng.random() < 0.5)
