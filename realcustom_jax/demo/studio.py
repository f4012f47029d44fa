"""One model for everybody: a call at a time, told step by step, and stopped when nobody waits for it any more."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from realcustom_jax.demo.command import Option, command_line
from realcustom_jax.demo.settings import Settings
from realcustom_jax.memory import enough_memory
from realcustom_jax.pipeline import Pipeline, Result

Made = TypeVar("Made")
_FOR_A_PERSON = "choose a smaller width and height, or fewer pictures at once"


class _Stopped(Exception):
    """Raised within a call that nobody waits for."""


@dataclasses.dataclass(frozen=True)
class Studio:
    """The model, and the lock of the one call that may use it.

    Attributes:
        pipeline: the model.
        loading: the options that load it, see `command.loading_options`.
        few_steps: see `command.command_line`.
        busy: held by the call that runs.
    """

    pipeline: Pipeline
    loading: tuple[Option, ...] = ()
    few_steps: int = 0
    busy: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def make(self, settings: Settings) -> Iterator[int | Result]:
        """Yields the number of finished steps after each step, and then the result, without its latents.

        When the iterator is closed before its end, the call stops after the step that it is in. The next call begins
        when that has ended.

        Raises:
            ValueError, OSError: an input that cannot be used; what `settings.problems` finds can be told before.
        """
        references, targets = settings.subjects(self.pipeline.preset.match)

        def call(on_step: Callable[[int], None]) -> Result:
            with self.busy, enough_memory(_FOR_A_PERSON):
                result = self.pipeline(references, target=targets, on_step=on_step, **settings.arguments())
            # Results are kept as long as somebody looks at them.
            return dataclasses.replace(result, latents=np.zeros((0,), np.float32))

        return step_by_step(call)

    def command(self, settings: Settings) -> str:
        """The command line that makes the same."""
        return command_line(settings, self.loading, match=self.pipeline.preset.match, few_steps=self.few_steps)


def step_by_step(call: Callable[[Callable[[int], None]], Made]) -> Iterator[int | Made]:
    """Runs `call(on_step)` in a thread of its own, and yields the number of finished steps whenever it says that the
    step i (from 0) is finished, and at last what it returns. What it raises is raised here.

    When the iterator is closed, the next `on_step` ends the call.
    """
    said: queue.SimpleQueue = queue.SimpleQueue()
    stop = threading.Event()

    def on_step(step: int) -> None:
        if stop.is_set():
            raise _Stopped
        said.put((step + 1, None, False))

    def work() -> None:
        try:
            said.put((call(on_step), None, True))
        except _Stopped:
            pass
        except BaseException as error:
            said.put((None, error, True))

    threading.Thread(target=work, name="a call of the model", daemon=True).start()
    try:
        ended = False
        while not ended:
            value, error, ended = said.get()
            if error is not None:
                raise error
            yield value
    finally:
        stop.set()
