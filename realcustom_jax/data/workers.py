"""A pool of worker processes that cannot hang: what happens to a worker is told, and no worker outlives its user."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from realcustom_jax import interruption

_LOOK = 0.3  # seconds between two looks at how far the workers are
_counter: Any = None


def count() -> None:
    """Says, in a worker, that one more thing is done."""
    with _counter.get_lock():
        _counter.value += 1


def in_workers(work: Callable, tasks: Sequence[tuple], workers: int, on_count: Callable[[int], None],
               name: str) -> Iterator[int]:
    """Calls `work(*task)` of each task in worker processes; yields the number of each task when it is done.

    Workers are spawned, so `work` and tasks have to be picklable. They end with the loop, however that ends: when it is
    left early or interrupted, and when this process is killed. A task is begun only when a worker is free for it.

    Args:
        on_count: is told, about three times a second, how often workers called `count` altogether.
        name: of what the workers do, for the message.
    Raises:
        What `work` raises; OSError: a worker died.
    """
    context, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    counter = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (counter,))
    try:
        waiting, running = list(range(len(tasks)))[::-1], {}
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop()
                running[pool.submit(work, *tasks[number])] = number
            done, _ = concurrent.futures.wait(running, _LOOK, concurrent.futures.FIRST_COMPLETED)
            on_count(counter.value)
            for future in done:
                number = running.pop(future)
                future.result()
                yield number
    except BrokenProcessPool:
        raise OSError(f"A worker process that was {name} was ended from outside, mostly because the machine's memory "
                      "was used up. What is finished is kept: give the same command again, with fewer workers or more "
                      "memory.") from None
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        with contextlib.suppress(BrokenProcessPool):
            pool.shutdown(cancel_futures=True)


def _begin(counter: Any) -> None:
    global _counter
    _counter = counter
    interruption.ignored()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
