"""Batches of a folder's dataset (module `folder`): pictures of one size each, in an order that is a pure function."""

import functools

import numpy as np

from realcustom_jax.data.loader import Split
from realcustom_jax.training.curriculum import Curriculum

_FIELDS = ("target", "caption", "word", "original_size", "crop_top_left", "references")


class BucketBatches:
    """`batches[step]` is the batch of a step: a function of (seed, step), so that nothing has to be replayed to resume.

    An epoch shows every row: rows are shuffled within their bucket, a bucket's last batch is filled up from its
    beginning, and the batches of all buckets are shuffled. Each row's reference is drawn as the curriculum says.

    Args:
        folder: of the dataset, as `folder.make_dataset` returns it.
        steps: of the whole training, along which the curriculum moves.
        examples: those of every batch that are served, as indices; None: all. Pictures of others are not read.
    Raises:
        ValueError: the dataset is empty.
    """

    def __init__(self, folder, *, batch_size: int, seed: int, curriculum: Curriculum, steps: int,
                 examples: np.ndarray | None = None):
        self._rows, self._seed, self._batch_size = Split(folder, "train", fields=_FIELDS), seed, batch_size
        self._curriculum, self._steps = curriculum, steps
        self._examples = np.arange(batch_size) if examples is None else examples
        small = Split(folder, "train", fields=("bucket", "difficulty"))
        if not len(small):
            raise ValueError(f"The dataset in {folder} is empty: none of its rows could be read.")
        buckets, self._difficulty = zip(*((int(row["bucket"]), row["difficulty"]) for row in (
            small[i] for i in range(len(small)))), strict=True)
        self.buckets = [np.flatnonzero(np.equal(buckets, bucket)) for bucket in np.unique(buckets)]
        """The rows of each bucket."""
        self._levels = np.unique(np.concatenate(self._difficulty)).tolist()
        self.references = np.array([len(difficulty) for difficulty in self._difficulty])
        """How many references each row has."""
        # One epoch is kept at a time.
        self._epoch = functools.lru_cache(maxsize=1)(self._shuffled)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(rows) // self._batch_size) for rows in self.buckets)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of the targets of each bucket."""
        return [self._rows[int(rows[0])]["target"].shape[:2] for rows in self.buckets]

    def scalars(self, step: int) -> dict[str, float]:
        """The epoch of a step, with its fraction, and the curriculum's (`Curriculum.scalars`) for the difficulties that
        there are."""
        return {"epoch": step / len(self), **self._curriculum.scalars(step, self._steps, self._levels)}

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row, which of its references) of each example of a batch, int [B] each."""
        epoch, number = divmod(step, len(self))
        rows = self._epoch(epoch)[number][self._examples]
        references = [self._reference(row, step, example) for row, example in zip(rows, self._examples, strict=True)]
        return rows, np.array(references)

    def __getitem__(self, step: int) -> dict[str, np.ndarray | list[str]]:
        """target uint8 [B, H, W, 3]; caption, word: B texts; original_size, crop_top_left int32 [B, 2] (vertical
        first); reference uint8 [B, S, S, 3]."""
        numbers, references = self.chosen(step)
        rows = [self._rows[i] for i in numbers]
        batch = {name: np.stack([row[name] for row in rows]) for name in ("target", "original_size", "crop_top_left")}
        texts = {name: [str(row[name]) for row in rows] for name in ("caption", "word")}
        return batch | texts | {"reference": np.stack([
            row["references"][i] for row, i in zip(rows, references, strict=True)])}

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Row numbers [batches, B]."""
        rng = np.random.default_rng((self._seed, 0, epoch))
        size = self._batch_size
        filled = [np.resize(rng.permutation(rows), (-(-len(rows) // size), size)) for rows in self.buckets]
        return rng.permutation(np.concatenate(filled))

    def _reference(self, row: int, step: int, example: int) -> int:
        rng = np.random.default_rng((self._seed, 1, step, example))
        weights = self._curriculum.weights(step, self._steps, self._difficulty[row])
        return int(rng.choice(len(weights), p=weights))
