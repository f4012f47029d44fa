"""Reads batches ahead of the training, by worker threads, in order.

    step ──▶ its parts, such as examples ──Grain's threads──▶ in order ──one thread joins──▶ batch

Threads, not processes: what takes the time (decoding and resizing by Pillow, arithmetic by NumPy) runs without Python's
lock, a batch needs no copy between processes, and there is nothing that could outlive the training
(docs/training/data_reading.md has the figures).
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import grain.python as grain
from grain.experimental import ThreadPrefetchIterDataset

_MOST = 16
"""Threads that pay: beyond, they wait for Python's lock."""


class InParts(Protocol):
    """Batches whose parts, such as examples, are read one by one, each by a pure function of (step, part)."""

    parts: int
    """How many a batch has."""

    def read(self, step: int, part: int) -> Any:
        """One part of a batch."""

    def join(self, parts: Sequence[Any]) -> Any:
        """The batch of all its parts, in order."""


def default_workers() -> int:
    """As many as this process may use cores, up to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


class Prefetched:
    """`prefetched[step]` is the batch of a step: read ahead where steps are asked for one after the other, from
    whichever on; where one is asked for again, read at once. Both give the same arrays, with any number of workers.

    As a context manager it ends its threads. What a worker raises is raised where its step is asked for.

    Args:
        batches: what is read.
        stop: the step after the last.
        workers: threads; 0: nothing is read ahead.
        prefetch: how many batches are read ahead, at least one.
    """

    def __init__(self, batches: InParts, stop: int, *, workers: int, prefetch: int):
        self._batches, self._stop, self._workers, self._prefetch = batches, stop, workers, prefetch
        self._ahead, self._next = None, 0

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *exception) -> None:
        self._end()

    def __getitem__(self, step: int) -> Any:
        if not self._workers or step >= self._stop or self._ahead is not None and step < self._next:
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
