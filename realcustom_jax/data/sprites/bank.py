"""Everything that the painted world is put together from: things without background, and scenes without things.

Painting is slow and composing is fast: a *bank* is painted once, and every picture of a training run is composed of
it anew (module `composition`), so that no two are the same. A thing's *cut-out* is a square of `FRAME` units of its
height, the thing in its middle, facing right.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from realcustom_jax import disk, interruption
from realcustom_jax.data.sprites.world import (
    FRAME,
    NOUNS,
    SCENES,
    Identity,
    cut_out,
    identity_from,
    paint,
    random_identity,
)
from realcustom_jax.files import write_json

_PAINTINGS_WORTH_A_PROCESS = 500
_PAINTER = 1
"""To be raised when things or scenes are painted in another way: banks of before are then painted anew."""


@dataclasses.dataclass(frozen=True)
class BankConfig:
    """How much is painted: `identities` things, each in `poses` poses, and `scenes` views of each scene.

    `side` is a picture's, `cut_out` a cut-out's, both in pixels; `split` of the identities: "train" or "test".
    """

    identities: int = 12_000
    poses: int = 3
    scenes: int = 256
    side: int = 128
    cut_out: int = 144
    seed: int = 0
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class Bank:
    """N = identities · poses cut-outs, those of an identity after each other, and M views of scenes.

    Attributes:
        cut_outs: uint8 [N, S, S, 4], colours premultiplied by opacity.
        identities: int32 [N, 6]: noun and the attributes of `Identity.attributes`.
        poses: float32 [N], in [-1, 1].
        bounds: float32 [N, 4]: left, top, right and bottom edge of the thing from the frame's middle, in units of the
            thing's height, y down.
        scenes: uint8 [M, P, P, 3]; scene_names: int32 [M], indices into `SCENES`.
    """

    config: BankConfig
    cut_outs: np.ndarray
    identities: np.ndarray
    poses: np.ndarray
    bounds: np.ndarray
    scenes: np.ndarray
    scene_names: np.ndarray

    def identity(self, thing: int) -> Identity:
        """Whom a cut-out shows."""
        return identity_from(self.identities[thing])


def paint_bank(config: BankConfig, folder: Path | None = None) -> Bank:
    """Paints a bank, in all processes that the machine has, or reads it from `folder` if it was painted there before.

    Scripts that call it need the `if __name__ == "__main__"` guard. A half-painted folder is painted anew.
    """
    noted = {"painter": _PAINTER, **dataclasses.asdict(config)}
    done = folder and folder / "bank.json"
    if done and done.is_file() and json.loads(done.read_bytes()) == noted:
        return Bank(config, **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS})
    if done:
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
    arrays = _paint(config, folder)
    if done:
        for name, array in arrays.items():
            if not isinstance(array, np.memmap):
                np.save(folder / f"{name}.npy", array)
        write_json(done, noted)
    return Bank(config, **arrays)


def bank_of(things: Sequence[tuple[Identity, float]], scenes: Sequence[tuple[str, int]], config: BankConfig) -> Bank:
    """A bank of these things, each with its pose, and of these scenes, each with the seed of its details."""
    pictures = [cut_out(identity, pose, config.cut_out) for identity, pose in things]
    return Bank(
        dataclasses.replace(config, identities=len(things), poses=1), np.stack(pictures),
        np.stack([_numbers(identity) for identity, _ in things]), np.array([pose for _, pose in things], np.float32),
        np.stack([bounds_of(picture) for picture in pictures]),
        np.stack([paint([], name, seed=seed, size=config.side)[0] for name, seed in scenes]),
        np.array([SCENES.index(name) for name, _ in scenes], np.int32))


def _numbers(identity: Identity) -> np.ndarray:
    return np.array([NOUNS.index(identity.noun), *identity.attributes], np.int32)


_ARRAYS = ("cut_outs", "identities", "poses", "bounds", "scenes", "scene_names")


def _paint(config: BankConfig, folder: Path | None) -> dict[str, np.ndarray]:
    count = config.identities * config.poses
    shape = (count, config.cut_out, config.cut_out, 4)
    if folder is None:
        cut_outs = np.empty(shape, np.uint8)
    else:  # straight to the disk, which is where a large bank has room
        cut_outs = np.lib.format.open_memmap(folder / "cut_outs.npy", "w+", np.uint8, shape)
        disk.allocate(folder / "cut_outs.npy")
    identities, poses, bounds = np.empty((count, 6), np.int32), np.empty(count, np.float32), np.empty((count, 4), "f4")
    for i, painted in enumerate(_map(functools.partial(_paint_identity, config), config.identities, "painting things")):
        for j, (identity, pose, picture, bound) in enumerate(painted):
            row = i * config.poses + j
            cut_outs[row], identities[row], poses[row], bounds[row] = picture, identity, pose, bound
    views = list(_map(functools.partial(_paint_scene, config), config.scenes * len(SCENES), "painting scenes"))
    scene_names = np.arange(len(views), dtype=np.int32) % len(SCENES)
    return {"cut_outs": cut_outs, "identities": identities, "poses": poses, "bounds": bounds,
            "scenes": np.stack(views), "scene_names": scene_names}


def _paint_identity(config: BankConfig, index: int) -> list[tuple[np.ndarray, float, np.ndarray, np.ndarray]]:
    """(identity, pose, cut-out, bounds) of each pose of identity number `index`: nouns take turns, poses are spread."""
    rng = np.random.default_rng((config.seed, ("train", "test").index(config.split), index))
    identity = random_identity(rng, noun=NOUNS[index % len(NOUNS)], split=config.split)
    strata = (np.arange(config.poses) + rng.random(config.poses)) / config.poses
    painted = []
    for pose in rng.permutation(2 * strata - 1):
        picture = cut_out(identity, float(pose), config.cut_out)
        painted.append((_numbers(identity), float(pose), picture, bounds_of(picture)))
    return painted


def bounds_of(picture: np.ndarray) -> np.ndarray:
    """`Bank.bounds` of one cut-out [S, S, 4]: float32 [4]."""
    columns, rows = (np.flatnonzero(picture[..., 3].max(axis)) for axis in (0, 1))
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    return (edges / len(picture) - 0.5) * FRAME


def _paint_scene(config: BankConfig, index: int) -> np.ndarray:
    seed = int(np.random.default_rng((config.seed, 2, index)).integers(2**31))
    return paint([], SCENES[index % len(SCENES)], seed=seed, size=config.side)[0]


def _map(function: Callable, count: int, what: str):
    """`map(function, range(count))` with a progress bar, in several processes when there is work for them."""
    workers = min(os.cpu_count() or 1, count // _PAINTINGS_WORTH_A_PROCESS)
    bar = functools.partial(tqdm, total=count, desc=what, mininterval=2, unit="picture")
    if workers < 2:
        yield from bar(map(function, range(count)))
        return
    # JAX's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=interruption.ignored)
    try:
        yield from bar(pool.map(function, range(count), chunksize=20))
    finally:
        pool.shutdown(cancel_futures=True)
