"""A trace of some steps, as JAX's profiler writes it, for XProf and Perfetto."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the given steps to a folder, a context manager; of no steps it does nothing."""

    def __init__(self, steps: range, folder: Path):
        self._steps, self._folder, self._traces = steps, folder, False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def step(self, number: int):
        """A context manager around a step, for the trace to name it."""
        if number in self._steps and not self._traces:
            jax.profiler.start_trace(str(self._folder))
            self._traces = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number: int, outputs: Any) -> None:
        """The step is on its way; the trace ends after the last one, when its `outputs` are there."""
        if self._traces and number + 1 >= self._steps.stop:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        if self._traces:
            self._traces = False
            jax.profiler.stop_trace()
