"""Reads a written dataset: random access to its rows, without TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


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
