"""Reads batches ahead of the training, by worker threads, in order.

    step ──▶ its parts, such as examples ──Grain's threads──▶ in order ──one thread joins──▶ batch

Threads, not processes: what takes the time (decoding and resizing by Pillow, arithmetic by NumPy) runs without Python's
lock, a batch needs no copy between processes, and there is nothing that could outlive the training
(docs/training/data_reading.md has the figures).
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import grain.python as grain
from grain.experimental import ThreadPrefetchIterDataset

_MOST = 16  # threads that pay: more would wait for Python's lock


class InParts(Protocol):
    """Batches whose parts, such as examples, are read one by one, each by a pure function of (step, part)."""

    parts: int
    """How many a batch has."""

    def read(self, step: int, part: int) -> Any:
        """One part of a batch."""

    def join(self, parts: Sequence[Any]) -> Any:
        """The batch of all its parts, in order."""


class Prefetched:
    """Gives the batches of steps that are asked for one after the other, from whichever on, and reads ahead meanwhile.
    A step that comes again is read at once. Both give the same arrays, with any number of workers.

    As a context manager it ends its threads. What a worker raises is raised where its step is asked for.

    Args:
        batches: what is read.
        stop: the step after the last.
        workers: threads; 0: nothing is read ahead; -1: one for each core that this process may use, up to 16.
        prefetch: how many batches are read ahead, at least one.
    """

    def __init__(self, batches: InParts, stop: int, *, workers: int = -1, prefetch: int = 2):
        self._batches, self._stop, self._prefetch = batches, stop, prefetch
        self._workers = min(_cores(), _MOST) if workers < 0 else workers
        self._ahead, self._next = None, 0
        # Of metadata that Pillow skips. All threads share the filters, so that no worker can set them for itself.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *exception) -> None:
        self._end()

    def batch(self, step: int) -> Any:
        """The batch of a step."""
        if not self._workers or step >= self._stop or (self._ahead is not None and step < self._next):
            return self._batches.join([self._batches.read(step, part) for part in range(self._batches.parts)])
        if self._ahead is None or step > self._next:
            self._end()
            self._ahead = self._begin(step)
        self._next = step + 1
        try:
            return next(self._ahead)
        except BaseException:
            self._end()
            raise

    def _begin(self, start: int) -> grain.DatasetIterator:
        parts = self._batches.parts

        def read(number: int) -> Any:
            return self._batches.read(*divmod(number, parts))

        options = grain.ReadOptions(num_threads=self._workers,
                                    prefetch_buffer_size=max(self._workers, self._prefetch * parts))
        read_ahead = grain.MapDataset.range(start * parts, self._stop * parts).map(read).to_iter_dataset(options)
        joined = read_ahead.batch(parts, batch_fn=self._batches.join)
        return iter(ThreadPrefetchIterDataset(joined, prefetch_buffer_size=1))

    def _end(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
