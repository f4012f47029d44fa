"""How fast a training goes, and what its time is spent on."""

import contextlib
import statistics
import time
from collections.abc import Callable


class _Process:
    """When the time begins that the next training's goodput is a share of: with this process, or, of several
    trainings in it, with the end of the one before."""

    began = time.perf_counter()


class Meter:
    """The times of a training's steps; `values` are those since it was last asked.

    Args:
        steps: of the whole training. start: the first one that is done now. batch_size: examples of a step.
        peak: operations a second of all devices together, or None where nobody knows it.
    """

    def __init__(self, *, steps: int, start: int, batch_size: int, peak: float | None):
        self._steps, self._start, self._batch_size, self._peak = steps, start, batch_size, peak
        self._before = self._since = time.perf_counter()
        self._waited, self._stepped, self._done = 0.0, 0.0, 0
        self._seconds: list[float] = []
        self._waits: list[float] = []
        self._operations: list[Callable[[], int]] = []
        self._process_began = _Process.began

    @contextlib.contextmanager
    def waiting(self):
        """Around what brings a batch."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def paused(self):
        """Around what is no step's work: saving, sampling, evaluating."""
        try:
            yield
        finally:
            self.skip()

    def skip(self) -> None:
        """What was done since the last step, such as compiling, is no step's work."""
        self._before, self._waited = time.perf_counter(), 0.0
        if not self._done:  # what comes before the first step comes once
            self._since = self._before

    def finished(self, operations: Callable[[], int]) -> None:
        """Another step is finished; to be called right after it. `operations` counts its own, and is only called
        where the peak is known."""
        now = time.perf_counter()
        self._seconds.append(now - self._before)
        self._waits.append(min(self._waited, now - self._before))
        self._operations.append(operations)
        self._stepped += now - self._before
        self._done += 1
        self._before, self._waited = now, 0.0

    def input_wait_share(self) -> float:
        """The share of the steps' time, since `values` was last asked for, in which they waited for a batch."""
        return sum(self._waits) / max(sum(self._seconds), 1e-9)

    def examples_per_second(self) -> float:
        """Of the steps since `values` was last asked for."""
        return len(self._seconds) * self._batch_size / max(sum(self._seconds), 1e-9)

    def values(self, step: int) -> dict[str, float]:
        """step_seconds (the median), examples_per_second, input_wait (seconds of a step), input_wait_share,
        eta_seconds, goodput and, where the peak is known, mfu, of the steps up to this one; nothing of none."""
        if not self._seconds:
            return {}
        now, total = time.perf_counter(), max(sum(self._seconds), 1e-9)
        found = {
            "step_seconds": statistics.median(self._seconds), "examples_per_second": self.examples_per_second(),
            "input_wait": sum(self._waits) / len(self._waits), "input_wait_share": self.input_wait_share(),
            "eta_seconds": (self._steps - step - 1) * (now - self._since) / self._done,
            "goodput": self._stepped / max(now - self._process_began, 1e-9)}
        if self._peak is not None:
            found["mfu"] = sum(count() for count in self._operations) / total / self._peak
        for window in (self._seconds, self._waits, self._operations):
            window.clear()
        return found

    def close(self) -> None:
        """What follows is not this training's time."""
        _Process.began = time.perf_counter()
