"""The index of a dataset: what has to be known of every row before one is read, as a few flat arrays.

A million rows are some 50 MB, which are read at the start of a run instead of the records.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from realcustom_jax.data.records import Entry

_FLAT = {"pictures": "sizes", "choices": "choice"}
"""Arrays that say where each row begins in another one."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Of N rows with P pictures and C possible references, in the records' order:

    pictures int64 [N + 1]: row i has the pictures pictures[i] … pictures[i + 1] − 1 of sizes. sizes int32 [P, 2]:
    (height, width) of each picture. targets int32 [N]: from how many of its first pictures a target is drawn.
    captions int32 [N]: how many captions it has. choices int64 [N + 1]: row i has choices[i] … choices[i + 1] − 1 of
    choice. choice int32 [C, 2]: (subject, picture of the row, or `records.CUT_OUT`, `records.PLACED_ANEW`). identity
    uint64 [N]: equal for rows of one subject. score float32 [N], NaN where a row has none.
    """

    pictures: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray
    captions: np.ndarray
    choices: np.ndarray
    choice: np.ndarray
    identity: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Index":
        """The index of some rows."""
        return cls(
            pictures=_starts([len(entry.sizes) for entry in entries]),
            sizes=np.array([size for entry in entries for size in entry.sizes], np.int32).reshape(-1, 2),
            targets=np.array([entry.targets for entry in entries], np.int32),
            captions=np.array([entry.captions for entry in entries], np.int32),
            choices=_starts([len(entry.choices) for entry in entries]),
            choice=np.array([choice for entry in entries for choice in entry.choices], np.int32).reshape(-1, 2),
            identity=np.array([entry.identity for entry in entries], np.uint64),
            score=np.array([entry.score for entry in entries], np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence["Index"]) -> "Index":
        """The index of all rows of several, one after the other."""
        together = {}
        for name in (field.name for field in dataclasses.fields(cls)):
            arrays = [getattr(part, name) for part in parts]
            if name in _FLAT:
                together[name] = _starts(np.concatenate([np.diff(array) for array in arrays]))
            else:
                together[name] = np.concatenate(arrays)
        return cls(**together)

    def to_bytes(self, **others: np.ndarray) -> bytes:
        """The content of an .npz file, with other arrays besides."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, **others)
        return buffer.getvalue()

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Index":
        """Of the arrays of such a file. Raises KeyError: one is missing."""
        return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})


def _starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
