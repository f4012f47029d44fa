"""When a training loop stops before its last step: after a step that all processes agree on."""

import contextlib

import jax
from jax.experimental import multihost_utils

from realcustom_jax import interruption


class Interruption(contextlib.AbstractContextManager):
    """Notes SIGTERM instead of dying of it, within a `with` block of the main thread; see module `interruption`."""

    def __enter__(self):
        self._noting = interruption.noted()
        self._noted = self._noting.__enter__()
        return self

    def __exit__(self, *exception):
        return self._noting.__exit__(*exception)

    def asks(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in every process."""
        # Where there are several, JAX's own service hears of the signal and lets all stop after the same step.
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._noted.came
