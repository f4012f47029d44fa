"""A source whose rows need no files, and what may happen while they are read."""

import contextlib
import dataclasses
import io
import os
import signal
import time
from pathlib import Path

from PIL import Image

from realcustom_jax.data.rows import Row, Subject
from realcustom_jax.data.sources import BrokenRow


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of one colour."""

    colour: int
    name: str = "picture"

    def read(self):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12), (self.colour % 256, self.colour // 256, 0)).save(buffer, "PNG")
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class FakePart:
    """Rows numbered from `start` on; `broken` ones are BrokenRow. `does`: what happens at its second row."""

    start: int
    number: int
    broken: tuple[int, ...] = ()
    does: str = ""

    @property
    def name(self):
        return f"rows from {self.start}"

    def rows(self):
        for i in range(self.start, self.start + self.number):
            if i == self.start + 1:
                self._happen()
            if i in self.broken:
                yield BrokenRow(f"line {i + 1}", "it makes no sense")
            else:
                yield Row(f"line {i + 1}", (Picture(i), Picture(i + 1)), ("a dog",), (Subject("dog", views=(1,)),))

    def _happen(self):
        if self.does == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does == "fails":
            raise OSError("The disk with the pictures is gone.")
        elif self.does == "slow":
            time.sleep(60)
        elif self.does == "interrupted":
            raise KeyboardInterrupt


class FakeSource:
    """Eight rows in parts of two."""

    def __init__(self, *, broken=(), does=None, name="fake"):
        self._parts = [FakePart(i, 2, tuple(broken), (does or {}).get(i // 2, "")) for i in range(0, 8, 2)]
        self._name = name

    def parts(self):
        return self._parts

    def identity(self, seen):
        return self._name


def state(folder):
    """What would change if a shard was written anew."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
            for path in folder.glob("*array_record*")}


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


def wheres(dataset):
    return [dataset.record(i).where for i in range(len(dataset))]


LINES = [f"line {i + 1}" for i in range(8)]


def children(process):
    with contextlib.suppress(FileNotFoundError):
        return [int(i) for i in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []
