"""What a source says of one row: pictures that are not read yet, captions, and where which subject is.

A source (package `sources`) makes rows, `records` writes them, and nothing after that knows where they came from.
Everything here can be pickled, so that rows go to worker processes.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from realcustom_jax.conditioning.images import load_image

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


@contextlib.contextmanager
def called(name: str) -> Iterator[None]:
    """Around the decoding of a picture that is in memory: its ValueError then calls the picture by `name`."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for kind in ("BytesIO", "bytes"):
            said = said.replace(f"given as {kind}", name)
        raise ValueError(said) from None


class Stored(Protocol):
    """A picture's file, wherever it lies: on a disk, in a bucket, in a tar, in a table's cell."""

    @property
    def name(self) -> str:
        """Where it lies, for messages."""

    def read(self) -> bytes:
        """The file's content. Raises OSError."""


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A picture that is a file of its own."""

    path: "AnyPath"

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        return self.path.read_bytes()


class Mask(Protocol):
    """Where a subject is in its row's target."""

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """bool [H, W] for a target of `size` (height, width). Raises OSError, ValueError: it does not fit, is empty."""


@dataclasses.dataclass(frozen=True)
class MaskPicture:
    """White on black, of the target's size."""

    picture: Stored

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        with called(self.picture.name):
            mask = load_image(io.BytesIO(self.picture.read())).mean(axis=-1) > 0.5
        if mask.shape != tuple(size):
            raise ValueError(f"the mask {self.picture.name} is {mask.shape[1]} x {mask.shape[0]}, its target "
                             f"{size[1]} x {size[0]}")
        if not mask.any():
            raise ValueError(f"the mask {self.picture.name} is empty")
        return mask


@dataclasses.dataclass(frozen=True)
class Subject:
    """One subject of a row.

    word: the words of the captions that stand for it. views: the numbers of the row's pictures that show it, from
    which a reference is drawn; the target is never its own. box: (left, top, right, bottom) in pixels of the target. A
    mask or a box gives references too: cut out of the target, and with a mask also placed anew.
    """

    word: str
    views: tuple[int, ...] = ()
    mask: Mask | None = None
    box: tuple[float, float, float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    where: its place in its source, for messages, such as "line 7". pictures: the first `targets` of them are those from
    which a target is drawn: one picture, or all views of a *group*. captions: variants, of which one is drawn; each
    holds every subject's word. identity: the same text in all rows of the same subject, so that a held-out split does
    not share subjects with training; "" is a subject of its own. score: how good a row is, for a filter.
    """

    where: str
    pictures: tuple[Stored, ...]
    captions: tuple[str, ...]
    subjects: tuple[Subject, ...]
    targets: int = 1
    identity: str = ""
    score: float | None = None
