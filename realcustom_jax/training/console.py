"""What the libraries below checkpoints may say on a training's console: what they raise is told in one sentence."""

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

_ABSL = logging.getLogger("absl")


@contextlib.contextmanager
def sentences_only() -> Iterator[None]:
    """Without what is printed beside what is raised: Orbax logs it, after a line for every file that it opens, and
    TensorStore's threads print, at some later time, that nobody waits for a read any more. Whoever started the program
    with --verbosity=0 hears Orbax."""
    hooks = sys.excepthook, sys.unraisablehook

    def tell(*error) -> None:
        if str(error[1]) != "Event loop is closed":
            hooks[0](*error)

    def tell_of_unraisable(error) -> None:
        if str(error.exc_value) != "Event loop is closed":
            hooks[1](error)

    _ABSL.addFilter(_worth_saying)
    sys.excepthook, sys.unraisablehook = tell, tell_of_unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        _ABSL.removeFilter(_worth_saying)


@contextlib.contextmanager
def quiet_reads() -> Iterator[None]:
    """Without what asyncio tells of reads beside the first one that failed."""
    asyncio, hook = logging.getLogger("asyncio"), sys.unraisablehook
    asyncio.addFilter(_nothing)
    sys.unraisablehook = _nothing
    try:
        yield
        gc.collect()  # which is when it tells
    finally:
        sys.unraisablehook = hook
        asyncio.removeFilter(_nothing)


def _worth_saying(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts or logging.NOTSET < _ABSL.level <= logging.INFO


def _nothing(*_) -> bool:
    return False
