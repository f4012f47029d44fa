"""Reads a written dataset and serves it in batches whose order is a pure function of (seed, step).

Batch `s` is `batches(...)[s]`: nothing has to be replayed to resume a run at any step, and the order does not depend
on what was read before.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds

Arrays = Mapping[str, np.ndarray]


class _Skip(tfds.decode.SkipDecoding):
    """TFDS's own skips single features only, not sequences, when it decodes with NumPy."""

    def decode_batch_example_np(self, examples):
        return examples


class Split:
    """Random access to the rows of one split: `len(split)`, `split[i]` -> dict of arrays (texts as `str`).

    `fields` names the features to read; the others are not decoded.
    """

    def __init__(self, folder: str | os.PathLike, split: str, *, fields: Sequence[str] | None = None):
        if not (Path(folder) / "dataset_info.json").is_file():
            raise FileNotFoundError(f"There is no finished dataset in {folder}; write one first.")
        builder = tfds.builder_from_directory(folder)
        known = {"split": list(builder.info.splits), "field": sorted(builder.info.features)}
        self.fields = tuple(fields or known["field"])
        for what, name in (("split", split), *(("field", field) for field in self.fields)):
            if name not in known[what]:
                raise ValueError(f"The dataset has no {what} {name!r}; it has {', '.join(known[what])}.")
        skipped = set(known["field"]) - set(self.fields)
        self._rows = builder.as_data_source(
            split=split, decoders={name: _Skip() for name in skipped}
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self._rows[int(index)]
        return {field: _as_array(row[field]) for field in self.fields}


def _as_array(value) -> np.ndarray:
    if isinstance(value, bytes):
        return np.array(value.decode())
    if isinstance(value, list):
        return np.stack([_as_array(item) for item in value])
    return np.asarray(value)


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    # Each field leaves the rows as it is stacked, so that a whole split is never in memory twice.
    return {field: np.stack([row.pop(field) for row in rows]) for field in tuple(rows[0])}


def load_arrays(
    folder: str | os.PathLike, split: str, *, fields: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads a whole split (or some fields of it) into memory; every array has the rows on its first axis."""
    rows = Split(folder, split, fields=fields)
    return _stack([rows[i] for i in range(len(rows))])


def rows_without(nouns: np.ndarray, excluded: Sequence[int]) -> np.ndarray:
    """Indices of the rows none of whose `nouns` [N, subjects] is in `excluded`."""
    return np.flatnonzero(~np.isin(nouns, excluded).any(1))


def batches(
    source: Split | Arrays,
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
) -> grain.MapDataset:
    """Shuffled batches of `source` without end, indexable by step.

    Args:
      source: a `Split`, or a dict of arrays with the rows on their first axis.
      batch_size: rows of a batch.
      seed: of the order; every epoch has its own, and serves each row once.
      rows: indices of the rows to serve; all by default.

    Returns:
      A Grain dataset of dicts of arrays [batch_size, ...].
    """
    if isinstance(source, Mapping):
        gather = functools.partial(_gather, source)
        length = len(next(iter(source.values())))
    else:
        gather = functools.partial(_read, source)
        length = len(source)
    rows = np.arange(length) if rows is None else np.asarray(rows)
    if not len(rows):
        raise ValueError("There are no rows to make batches of.")
    return grain.MapDataset.source(rows).shuffle(seed).repeat().batch(batch_size, drop_remainder=True).map(gather)


def _gather(arrays: Arrays, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {field: array[indices] for field, array in arrays.items()}


def _read(split: Split, indices: np.ndarray) -> dict[str, np.ndarray]:
    return _stack([split[i] for i in indices])
