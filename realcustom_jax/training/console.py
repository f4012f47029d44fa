"""What the libraries below a training may say on its console."""

import contextlib
import logging

_ABSL = logging.getLogger("absl")


@contextlib.contextmanager
def without_checkpoint_chatter():
    """Orbax tells of every file that it opens, 40 lines a checkpoint; within, it only warns, unless whoever started
    the program asked for more (--verbosity=0 of a command)."""
    _ABSL.addFilter(_worth_saying)
    try:
        yield
    finally:
        _ABSL.removeFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    chatter = record.levelno < logging.WARNING and "orbax" in record.pathname
    return not chatter or logging.NOTSET < _ABSL.level <= logging.INFO
