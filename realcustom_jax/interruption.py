"""A process that is asked to stop: SIGTERM, as a machine that goes away, a time limit or an operator sends it.

Three ways to answer, as nested `with` blocks of the main thread:

    raised()    the signal stops the work at once, like Ctrl-C, as a `Preempted` that a command ends with 75 for
    noted()     the signal is only noted; who does the work asks `came` or `check()` where stopping costs nothing
    ignored()   for worker processes: whoever started them ends them

Another SIGTERM changes nothing, because launchers (`timeout`, SLURM, Kubernetes) send it to a process and to its group.
Ctrl-C stops at once in all of them. Nothing here needs JAX.
"""

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: not done, and the same command again goes on. Schedulers restart it."""

_STOPPED = "stopped as asked (SIGTERM); what was finished is kept, and the same command goes on."


class Preempted(SystemExit):
    """The work was stopped from outside, in good order. Where nobody catches it, the process ends with 75."""

    def __init__(self, message: str = _STOPPED):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Noted:
    """Whether a signal came within a `noted` block."""

    came = False


_noting: list[Noted] = []


def check(message: str = _STOPPED) -> None:
    """Raises Preempted, which says `message`, if SIGTERM came within the `noted` block that is being run; from any
    thread. Elsewhere it does nothing."""
    if any(block.came for block in tuple(_noting)):
        raise Preempted(message)


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """Notes SIGTERM until the block ends; what came too late for the block to act on is then answered as outside of it.
    In a thread other than the main one it notes nothing."""
    block = Noted()

    def note() -> None:
        block.came = True

    _noting.append(block)
    try:
        with _handling(note):
            yield block
    finally:
        _noting.remove(block)
    if block.came and threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGTERM raises Preempted in the main thread, once, so that it does not disturb the cleaning up after itself."""
    came = False

    def stop() -> None:
        nonlocal came
        if not came:
            came = True
            raise Preempted

    with _handling(stop):
        yield


def ignored() -> None:
    """Signals that a whole group of processes gets are not for this one; the initializer of a pool of workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _handling(answer: Callable) -> Iterator[None]:
    """Answers SIGTERM within the block, beside a handler that is not Python's: each of several JAX processes has one,
    through which it tells the others that it has to go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    native = _native_handler()

    def handle(*_) -> None:
        for tell in _natives:
            tell(signal.SIGTERM)
        answer()

    before = signal.signal(signal.SIGTERM, handle)
    # Python's own is one function for all signals, which is no other's.
    foreign = native and native != _native_handler()
    if foreign:
        _natives.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(native))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if foreign:
            _natives.pop()
            _set_native_handler(native)


_natives: list[Callable[[int], None]] = []


def _native_handler() -> int | None:
    """The address of what the operating system calls; Python neither tells nor restores what is not its own."""
    if not sys.platform.startswith("linux"):
        return None
    address = _set_native_handler(None)
    _set_native_handler(address)
    return address


def _set_native_handler(address: int | None) -> int | None:
    """Puts a handler in place, None for the default, and returns the address of the one before."""
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return library.signal(signal.SIGTERM, address)
