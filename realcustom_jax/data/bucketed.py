"""Batches of a folder's dataset (module `folder`): pictures of one size each, in an order that is a pure function."""

import functools

import numpy as np

from realcustom_jax.curriculum import Curriculum
from realcustom_jax.data.loader import Split

_FIELDS = ("target", "caption", "word", "original_size", "crop_top_left", "references", "difficulty")


class BucketBatches:
    """`batches[step]` is the batch of a step: a function of (seed, step), so that nothing has to be replayed to resume.

    An epoch shows every row: rows are shuffled within their bucket, a bucket's last batch is filled up from its
    beginning, and the batches of all buckets are shuffled. Each row's reference is drawn as the curriculum says.

    Args:
        folder: of the dataset, as `folder.write` returns it.
        steps: of the whole training, along which the curriculum moves.
    Raises:
        ValueError: the dataset is empty.
    """

    def __init__(self, folder, *, batch_size: int, seed: int, curriculum: Curriculum, steps: int):
        self._rows, self._seed, self._batch_size = Split(folder, "train", fields=_FIELDS), seed, batch_size
        self._curriculum, self._steps = curriculum, steps
        only_buckets = Split(folder, "train", fields=("bucket",))
        buckets = np.array([int(only_buckets[i]["bucket"]) for i in range(len(only_buckets))], np.int64)
        if not len(buckets):
            raise ValueError(f"The dataset in {folder} is empty: none of its rows could be read.")
        self._buckets = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        # One epoch is kept at a time.
        self._epoch = functools.lru_cache(maxsize=1)(self._shuffled)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(rows) // self._batch_size) for rows in self._buckets)

    def __getitem__(self, step: int) -> dict[str, np.ndarray | list[str]]:
        """target uint8 [B,H,W,3]; caption, word: B texts; original_size, crop_top_left int32 [B,2] (vertical first);
        reference uint8 [B,S,S,3]."""
        epoch, number = divmod(step, len(self))
        rows = [self._rows[i] for i in self._epoch(epoch)[number]]
        rng = np.random.default_rng((self._seed, 1, step))
        batch = {name: np.stack([row[name] for row in rows]) for name in ("target", "original_size", "crop_top_left")}
        texts = {name: [str(row[name]) for row in rows] for name in ("caption", "word")}
        return batch | texts | {"reference": np.stack([self._reference(row, step, rng) for row in rows])}

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Row numbers [batches, B]."""
        rng = np.random.default_rng((self._seed, 0, epoch))
        size = self._batch_size
        filled = [np.resize(rng.permutation(rows), (-(-len(rows) // size), size)) for rows in self._buckets]
        return rng.permutation(np.concatenate(filled))

    def _reference(self, row, step: int, rng: np.random.Generator) -> np.ndarray:
        weights = self._curriculum.weights(step, self._steps, row["difficulty"])
        return row["references"][rng.choice(len(weights), p=weights)]
