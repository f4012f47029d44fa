"""Which rows of a built dataset are shown: filters and the held-out split work on its index, so that changing them
builds nothing anew."""

import math
from typing import TYPE_CHECKING

import numpy as np

from realcustom_jax.errors import check_choice

if TYPE_CHECKING:  # configurations check filters, and need not wait for what reads records
    from realcustom_jax.data.index import Index

SPLITS = ("train", "held_out")


def select(index: "Index", *, min_side: int = 0, max_aspect: float = math.inf, min_score: float = -math.inf,
           held_out: float = 0.0, split: str = "train") -> np.ndarray:
    """The numbers of the rows that are shown, int64, ascending.

    Args:
        min_side: the least of the shorter side of every picture that may be a row's target, in pixels.
        max_aspect: the most of its longer side divided by its shorter one.
        min_score: the least of a row's score; with one, rows without a score are left out.
        held_out: about which share of the subjects is kept from training. Which ones they are depends on their
            identities alone: all rows of a subject fall to the same side, a subject that comes later changes nothing
            for the others, and a larger share only adds to them.
        split: "train", or "held_out" for the rows of these subjects.
    Raises:
        ValueError: a value that cannot be used, or no row is left; says which filter left how many.
    """
    check_choice("split", split, SPLITS)
    check_filters(min_side, max_aspect, min_score, held_out)
    row = np.repeat(np.arange(len(index)), np.diff(index.pictures))
    is_target = np.arange(len(row)) - index.pictures[row] < index.targets[row]
    row, sizes = row[is_target], index.sizes[is_target]
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    kept = np.ones(len(index), bool)
    left = [f"{len(index)} rows"]
    for name, fits in (
            (f"min_side={min_side}", _all(row, shorter >= min_side, len(index))),
            (f"max_aspect={max_aspect:g}", _all(row, longer <= max_aspect * shorter, len(index))),
            (f"min_score={min_score:g}", (index.score >= min_score) | (min_score == -math.inf)),
            (f"held_out={held_out:g} and the split {split}", is_held_out(index, held_out) == (split == "held_out"))):
        kept &= fits
        left.append(f"{kept.sum()} after {name}")
    if not kept.any():
        raise ValueError(f"No row is left to be shown: {', '.join(left)}. Loosen the filter that left none.")
    return np.flatnonzero(kept)


def is_held_out(index: "Index", share: float) -> np.ndarray:
    """bool [N]: whether a row's subject is held out. Identities are hashes, spread evenly over 64 bits."""
    return index.identity < np.float64(share) * 2.0**64


def check_filters(min_side: int, max_aspect: float, min_score: float, held_out: float) -> None:
    """Raises ValueError: a filter that cannot be used."""
    if min_side < 0:
        raise ValueError(f"min_side is {min_side}; expected a number of pixels, or 0 for any size.")
    if not max_aspect >= 1:
        raise ValueError(f"max_aspect is {max_aspect}; expected at least 1, the longer side divided by the shorter.")
    if math.isnan(min_score):
        raise ValueError(f"min_score is {min_score}; expected a number.")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}; expected a share of the subjects, from 0 to below 1.")


def _all(row: np.ndarray, fits: np.ndarray, rows: int) -> np.ndarray:
    """Whether all targets of each row fit."""
    return np.bincount(row[~fits], minlength=rows) == 0
