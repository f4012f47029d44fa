"""In which order rows are shown: batches of one shape each, as a pure function of (seed, epoch).

Every row has one shape, the nearest to its target's; a group of views has that of most of its views. A shape's rows are
shuffled, laid one after the other, and cut into batches; its last batch is filled up with rows that it has shown
already. So that this shows none of them many times:

- An epoch is P passes over the rows. A shape has ceil(P · n / B) batches in it, of n rows and B a batch.
- A shape that has fewer than B / 2 rows in P passes joins the nearest that has more: its rows are cropped to that one.

With it, each row is shown P to 2 P times in an epoch. P is the smallest number with which no more than a tenth of the
rows join another shape: 1, but for few rows or large batches.
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence

import numpy as np

from realcustom_jax.data.index import Index
from realcustom_jax.data.shapes import buckets_of, nearest

_JOINING = 0.1
"""The share of rows that may be cropped to another shape than the nearest to theirs."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """rows, targets int [batches, B]: which picture of which row each example draws. shapes int [batches]: the number
    of each batch's shape."""

    rows: np.ndarray
    targets: np.ndarray
    shapes: np.ndarray


class Order:
    """The order of the rows of an index.

    Args:
        sizes: the shapes that there are, (width, height) each.
        batch_size: B, of all processes together.
        seed: of every draw.
        weights: float [N], how often each row is shown in relation to the others; 0: never. None: all alike.
    Raises:
        ValueError: there is no row to show, or the weights do not fit.
    """

    def __init__(self, index: Index, sizes: Sequence[tuple[int, int]], batch_size: int, seed: int,
                 weights: np.ndarray | None = None):
        weights = _checked(weights, len(index))
        self._seed, self._batch_size, self._targets = seed, batch_size, index.targets
        rows = np.flatnonzero(weights)
        self.rows, self.shown = len(rows), rows
        """How many there are to show, and their numbers."""
        own = _shapes_of_rows(index, sizes)
        share = np.bincount(own, weights, len(sizes)) / weights[rows].mean()
        self.passes, kept = _kept(share, batch_size)
        shapes = nearest(sizes, kept)[own]
        """The number of each row's shape."""
        self.shapes = shapes
        self._rows = {int(shape): rows[shapes[rows] == shape] for shape in np.flatnonzero(kept)}
        self._weights = {shape: weights[own] for shape, own in self._rows.items()}
        joined = np.bincount(shapes, weights, len(sizes)) / weights[rows].mean()
        self._batches = {shape: _ceil(self.passes * joined[shape] / batch_size) for shape in self._rows}
        # Two epochs are kept, because batches of the next are prepared while those of one are read.
        self._kept_epochs, self._lock = functools.lru_cache(maxsize=2)(self._shuffled), threading.Lock()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(self._batches.values())

    @property
    def kept(self) -> list[int]:
        """The numbers of the shapes that batches have."""
        return list(self._rows)

    def epoch(self, number: int) -> Epoch:
        """An epoch; several threads may ask for it, and one of them makes it."""
        with self._lock:
            return self._kept_epochs(number)

    def _shuffled(self, epoch: int) -> Epoch:
        rng = np.random.default_rng((self._seed, 0, epoch))
        rows = np.concatenate([
            self._rows[shape][_spread(rng, self._weights[shape], count * self._batch_size)]
            for shape, count in self._batches.items()])
        targets = (rng.random(len(rows)) * self._targets[rows]).astype(np.int32)
        shapes = np.repeat(list(self._batches), list(self._batches.values()))
        batches = rng.permutation(len(shapes))
        return Epoch(*(x.reshape(len(shapes), -1)[batches] for x in (rows, targets)), shapes[batches])


def _spread(rng: np.random.Generator, weights: np.ndarray, length: int) -> np.ndarray:
    """Numbers [length] of rows, each about as often as its weight says and evenly spread: of equal ones, all are shown
    once, then all in another order, and so on."""
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    # With one random offset for all, each is expected to be shown as often as its weight says, rounded up or down.
    ends = np.floor(ends * (length / ends[-1]) + rng.uniform(0, 0.999)).astype(np.int64)
    ends[-1] = length
    counts = np.diff(ends, prepend=0)
    counts, order = counts[counts > 0], order[counts > 0]
    copies = np.arange(length) - np.repeat(np.cumsum(counts) - counts, counts)
    places = (copies + rng.random(length)) / np.repeat(counts, counts)
    return np.repeat(order, counts)[np.argsort(places)]


def _shapes_of_rows(index: Index, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of the shape of most targets of each row: int16 [N]."""
    first = np.repeat(index.pictures[:-1] - np.cumsum(index.targets, dtype=np.int64) + index.targets, index.targets)
    of_targets = buckets_of(index.sizes[first + np.arange(len(first))], sizes)
    found = of_targets[np.cumsum(index.targets, dtype=np.int64) - index.targets]
    most = np.zeros(len(index), np.int64)
    for shape in np.unique(of_targets) if (index.targets > 1).any() else ():
        rows = np.repeat(np.arange(len(index)), index.targets)[of_targets == shape]
        count = np.bincount(rows, minlength=len(index))
        found[count > most] = shape
        most = np.maximum(most, count)
    return found


def _kept(rows: np.ndarray, batch_size: int) -> tuple[int, np.ndarray]:
    """(passes, bool [K] of the shapes that are kept) where there are `rows` float [K] of each shape."""
    few = np.sort(rows[rows > 0])
    least = few[np.cumsum(few) > _JOINING * few.sum()][0]
    passes = max(1, _ceil(batch_size / (2 * least)))
    return passes, passes * rows >= batch_size / 2 - 1e-6


def _ceil(number: float) -> int:
    """Rounded up, but for what rounding of floats adds."""
    return int(np.ceil(number - 1e-6))


def _checked(weights: np.ndarray | None, rows: int) -> np.ndarray:
    weights = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"The weights of the rows are not {rows} numbers, 0 or more.")
    if not weights.any():
        raise ValueError("The dataset has no row to show: give pictures that can be read.")
    return weights
