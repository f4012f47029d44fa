"""A run that is asked to stop: SIGTERM, as a machine that goes away sends it."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Notes SIGTERM instead of dying of it, within a `with` block of the main thread."""

    _came = False

    def __enter__(self):
        # Where there are several processes, JAX's own service notes the signal and lets all stop after the same step.
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, *exception):
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
            if self._came and kind is None:
                signal.raise_signal(signal.SIGTERM)  # it came too late for the loop to act on

    def asks(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in every process."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._came

    def _note(self, *_):
        self._came = True
