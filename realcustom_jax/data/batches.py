"""Batches of a dataset: examples of one shape each, drawn and ordered by pure functions of (seed, step).

    step ──order──▶ rows and targets ──draw──▶ references, captions ──examples──▶ pictures ──join──▶ batch

Nothing has to be replayed to resume, and whoever reads an example, here or in a worker, reads the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realcustom_jax.data.examples import Drawn, Example, difficulties, read_example
from realcustom_jax.data.index import Index
from realcustom_jax.data.order import Order
from realcustom_jax.data.records import Record
from realcustom_jax.data.shapes import buckets
from realcustom_jax.training.curriculum import Curriculum

Batch = dict[str, np.ndarray | list[str]]


class Rows(Protocol):
    """What is read: `dataset.Dataset`, or several that are mixed."""

    index: Index

    def __len__(self) -> int:
        """How many."""

    def record(self, row: int) -> Record:
        """The record of a row, its pictures not decoded."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The examples of a batch, int [B] each: rows, and what of them is shown, as `examples.Drawn` says. choices: which
    of its row's references in the index each one is. shape: the number of the shape that all targets have."""

    shape: int
    rows: np.ndarray
    targets: np.ndarray
    choices: np.ndarray
    captions: np.ndarray


class BucketBatches:
    """`batches[step]` is the batch of a step.

    Rows come in the order that `order.Order` says. Which subject of a row, which reference of it (as the curriculum
    says) and which caption is shown, is drawn for each example anew.

    Args:
        rows: the dataset. side, reference_side: of a square target, and of references, in pixels.
        steps: of the whole training, along which the curriculum moves.
        examples: those of every batch that are served, as indices; None: all. Pictures of others are not read.
        weights: of the rows, see `Order`.
        placing: seed of how references are placed anew, which is always the same for a row.
    Raises:
        ValueError: there is no row, or the side is no multiple of 64.
    """

    def __init__(self, rows: Rows, *, side: int, reference_side: int, batch_size: int, seed: int,
                 curriculum: Curriculum, steps: int, examples: np.ndarray | None = None,
                 weights: np.ndarray | None = None, placing: int = 0):
        self.rows, self.index, self.reference_side = rows, rows.index, reference_side
        self.sizes = buckets(side)
        """The shapes that there may be, (width, height)."""
        self.order = Order(self.index, self.sizes, batch_size, seed, weights)
        self.examples = np.arange(batch_size) if examples is None else np.asarray(examples)
        self.parts = len(self.examples)
        self._seed, self._batch_size, self.placing = seed, batch_size, placing
        self._curriculum, self._steps = curriculum, steps
        self._levels = np.unique(difficulties(self.index.choice[:, 1]))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.order)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (height, width) of the targets that batches have."""
        return [self.sizes[shape][::-1] for shape in self.order.kept]

    def epoch(self, step: int) -> float:
        """How often a row was shown before a step, on average."""
        return step * self._batch_size / self.order.rows

    def scalars(self, step: int) -> dict[str, float]:
        """The epoch of a step, with its fraction, and the curriculum's (`Curriculum.scalars`) for the difficulties that
        there are."""
        return {"epoch": self.epoch(step), **self._curriculum.scalars(step, self._steps, self._levels)}

    def chosen(self, step: int) -> Chosen:
        """What the examples of a batch show."""
        drawn = [self.choose(step, part) for part in range(self.parts)]
        shapes, *columns = np.array(drawn, int).reshape(-1, 5).T
        return Chosen(int(shapes[0]), *columns)

    def choose(self, step: int, part: int) -> tuple[int, int, int, int, int]:
        """(shape, row, target, choice, caption) of one example, as `Chosen` has them."""
        number, batch = divmod(step, len(self))
        epoch, example = self.order.epoch(number), int(self.examples[part])
        row, target = int(epoch.rows[batch, example]), int(epoch.targets[batch, example])
        return int(epoch.shapes[batch]), row, target, *self._draw(row, target, example, step)

    def read(self, step: int, part: int) -> Example:
        """One of the examples that are served. Raises ValueError: a picture is damaged; names the row."""
        return self.read_row(*self.choose(step, part))

    def read_row(self, shape: int, row: int, target: int, choice: int, caption: int) -> Example:
        """A row with these of its targets, of the index's references and of its captions, in a shape."""
        subject, reference = self.index.choice[self.index.choices[row] + choice].tolist()
        drawn = Drawn(target, subject, reference, caption)
        return read_example(self.rows.record(row), drawn, self.sizes[shape], self.reference_side,
                            (self.placing, row, subject))

    def __getitem__(self, step: int) -> Batch:
        """target uint8 [B, H, W, 3]; caption, word: B texts; original_size, crop_top_left int32 [B, 2] (vertical
        first); reference uint8 [B, S, S, 3]."""
        return self.join([self.read(step, part) for part in range(self.parts)])

    def join(self, examples: Sequence[Example]) -> Batch:
        """The batch of its examples."""
        fields = {field.name: [getattr(example, field.name) for example in examples]
                  for field in dataclasses.fields(Example)}
        return {name: values if name in ("caption", "word") else np.stack(values) for name, values in fields.items()}

    def _draw(self, row: int, target: int, example: int, step: int) -> tuple[int, int]:
        """(choice, caption)."""
        rng = np.random.default_rng((self._seed, 1, step, example))
        subjects, references = self.index.choice[self.index.choices[row]:self.index.choices[row + 1]].T
        able = np.flatnonzero(references != target)
        able = able[subjects[able] == rng.choice(np.unique(subjects[able]))]
        weights = self._curriculum.weights(step, self._steps, difficulties(references[able]))
        return int(rng.choice(able, p=weights)), int(rng.integers(self.index.captions[row]))
