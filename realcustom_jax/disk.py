"""A disk that is full: told in one sentence, whoever notices it, and noticed before a page of memory cannot be kept."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = tuple(map(os.strerror, _NUMBERS))


def is_full(error: BaseException) -> bool:
    """Whether an exception says so: Python's by its number, those of libraries in C++ in their text."""
    return isinstance(error, OSError) and error.errno in _NUMBERS or any(text in str(error) for text in _TEXTS)


@contextlib.contextmanager
def enough_disk(where: str | Path) -> Iterator[None]:
    """Around work that writes to `where`: an exception by which it fails on a full disk becomes an OSError that says
    so. One that has said it already is left alone."""
    try:
        yield
    except Exception as error:
        if not is_full(error) or "is full" in str(error):
            raise
        reason = " ".join(str(error).split())[-200:]
        raise OSError(f"The disk of {where} is full ({reason}): what was finished is kept. Make room and run the same "
                      "command again.") from error


def allocate(path: Path) -> None:
    """Takes the room of a file that is all there but not written yet, as a memory map makes it. Otherwise a full disk
    kills the process when a page is written. Where the system cannot, it does nothing.

    Raises OSError: the disk has not that room.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, 1))
