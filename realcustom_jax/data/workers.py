"""Worker processes that cannot hang: what happens to one is told, and none outlives its user.

    this process, a thread for each worker ──task──▶ worker: `python -m realcustom_jax.data.workers`
                                           ◀──("count", n), then ("done", None) or ("failed", exception)──

They are processes of their own rather than those of `multiprocessing`, which import the program that starts them anew:
that of the training brings JAX with it, and a script or notebook may not be made for it.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from realcustom_jax import interruption

_LOOK = 0.3  # seconds between two looks at how far the workers are
Work = Callable[..., None]
"""`work(*task, count)`, where `count()` says that one more thing is done."""


class _Worker:
    """A process, and how far it is."""

    def __init__(self, name: str):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.counted, self._name = 0, name
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env=environment)

    def do(self, task: bytes) -> None:
        """Does a task. Raises what it raises; OSError: the process died."""
        before = self.counted
        try:
            self._process.stdin.write(task)
            self._process.stdin.flush()
            while True:
                kind, value = pickle.load(self._process.stdout)
                if kind == "count":
                    self.counted = before + value
                elif kind == "failed":
                    raise value
                else:
                    return
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise OSError(
                f"A worker process that was {self._name} was ended from outside, mostly because the machine's memory "
                "was used up. What is finished is kept: give the same command again, with fewer workers or more "
                "memory.") from None

    def end(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def in_workers(work: Work, tasks: Sequence[tuple], workers: int, on_count: Callable[[int], None], name: str
               ) -> Iterator[int]:
    """Calls `work(*task, count)` of each task in worker processes; yields the number of each task when it is done.

    `work` and tasks have to be picklable, and may not be defined in `__main__`. The processes end with the loop,
    however that ends: when it is left early or interrupted, and when this process is killed.

    Args:
        on_count: is told, about three times a second, how often workers called `count` altogether.
        name: of what the workers do, for the message.
    Raises:
        What `work` raises; OSError: a worker died.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for number, task in enumerate(tasks):
        waiting.put((number, task))
    crew: list[_Worker] = []

    def keep_busy(worker: _Worker) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number, task = waiting.get_nowait()
                try:
                    worker.do(pickle.dumps((work, task)))
                except BaseException as error:
                    done.put((number, error))
                    return
                done.put((number, None))

    try:
        for _ in range(min(workers, len(tasks))):
            crew.append(_Worker(name))
            threading.Thread(target=keep_busy, args=(crew[-1],), daemon=True).start()
        left = len(tasks)
        while left:
            with contextlib.suppress(queue.Empty):
                number, error = done.get(timeout=_LOOK)
                if error is not None:
                    raise error
                left -= 1
                on_count(sum(worker.counted for worker in crew))
                yield number
            on_count(sum(worker.counted for worker in crew))
    finally:
        for worker in crew:
            worker.end()


def _serve(tasks: BinaryIO, replies: BinaryIO) -> None:
    """What a worker does until nobody gives it tasks any more."""
    interruption.ignored()
    asked = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                asked.put(pickle.load(tasks))
            except EOFError:
                os._exit(1)  # also in the middle of a task
            except Exception as error:  # a task that is not known here
                asked.put(error)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        task, counted = asked.get(), 0

        def count() -> None:
            nonlocal counted
            counted += 1
            _reply(replies, "count", counted)

        try:
            if isinstance(task, Exception):
                raise task
            work, given = task
            work(*given, count)
            _reply(replies, "done", None)
        except Exception as error:
            _reply(replies, "failed", error)


def _reply(replies: BinaryIO, kind: str, value: Any) -> None:
    try:
        content = pickle.dumps((kind, value))
        pickle.loads(content)  # not every exception can be made again
    except Exception:
        content = pickle.dumps((kind, RuntimeError(f"{type(value).__name__}: {value}")))
    try:
        replies.write(content)
        replies.flush()
    except BrokenPipeError:
        os._exit(1)  # whoever gave the task is gone, which the thread that listens may not have heard yet


if __name__ == "__main__":
    # Whatever else is printed goes to the user, not between the replies.
    with os.fdopen(os.dup(1), "wb") as opened:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, opened)
