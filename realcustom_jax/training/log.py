"""What a run says about itself: metrics.jsonl, TensorBoard's files where tensorboardX is installed, and its speed."""

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from realcustom_jax.files import write_file


class Log:
    """Scalars of a run's steps, a context manager.

    Every record also has `step_seconds`, the median of the steps since the record before (without compiling, saving
    and sampling), and, on devices whose peak is known, `mfu`, the share of it that the step's operations use, including
    those that the backward pass does again.

    Args:
        folder: gets `metrics.jsonl` and `tensorboard/`; what they say of steps from `start` on is dropped.
        peak: operations a second of all devices together, or None.
        operations: counts those of one step; called once, if there is a peak.
    """

    def __init__(self, folder: Path, start: int, *, peak: float | None, operations: Callable[[], int]):
        _forget(folder / "metrics.jsonl", start)
        self._file = (folder / "metrics.jsonl").open("a")
        self._board = _tensorboard(folder / "tensorboard", start)
        self._peak, self._count, self._operations = peak, operations, None
        self._before, self._seconds = None, []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()
        if self._board is not None:
            self._board.close()

    def finished(self) -> None:
        """Another step is finished; to be called right after it."""
        now = time.perf_counter()
        if self._before is not None:
            self._seconds.append(now - self._before)
        self._before = now

    def pause(self) -> None:
        """What happens until the next step is finished is no step's time."""
        self._before = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The record of a step."""
        record = {"step": step, "time": round(time.time(), 1), **values}
        if self._seconds:
            record["step_seconds"] = statistics.median(self._seconds)
            if self._peak is not None:
                self._operations = self._operations or self._count()
                record["mfu"] = self._operations / record["step_seconds"] / self._peak
            self._seconds.clear()
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name in record.keys() - {"step", "time"}:
                self._board.add_scalar(name, record[name], step)
            self._board.flush()


def _tensorboard(folder: Path, start: int):
    with contextlib.suppress(ImportError):
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(folder), purge_step=start)
    return None


def _forget(log: Path, start: int) -> None:
    """Drops what a stopped run wrote after its last checkpoint: those steps are done again."""
    if log.is_file():
        kept = [line for line in log.read_text().splitlines(keepends=True) if _step_of(line) < start]
        write_file(log, "".join(kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the half of a line that a kill leaves
        return math.inf
