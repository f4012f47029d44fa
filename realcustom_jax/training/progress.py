"""What whoever watches a training sees: the bar on the console, the log in its folder, and the end of one whose numbers
are no numbers any more."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from realcustom_jax.staging import Staging
from realcustom_jax.training.log import Log
from realcustom_jax.training.losses import Mean
from realcustom_jax.training.meter import Meter
from realcustom_jax.training.reports import Findings, averaged
from realcustom_jax.training.settings import TrainSettings

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_UPLOAD_EVERY = 30.0  # seconds, of what is logged of a run in a bucket
_WORTH_SAYING = 0.05  # share of the steps' time that they wait for their batches
_CHECKED = ("loss", "gradient_norm", "parameters_finite", "average_finite")


class Progress:
    """Of one training from step `start` on, a context manager. Only the first process writes and shows; all of them
    look at the numbers.

    Args:
        workdir: gets the log; into a bucket it is copied every half minute, by `keep` and at the end.
        peak: operations a second of all devices together, or None.
    Attributes:
        folder: of this host; what is written there gets to `workdir` with the log.
    """

    def __init__(self, name: str, settings: TrainSettings, start: int, workdir: "AnyPath", *, peak: float | None):
        self._name, self._settings, self._start = name, settings, start
        self._first = jax.process_index() == 0
        self.meter = Meter(steps=settings.steps, start=start, batch_size=settings.batch_size, peak=peak)
        self._staging = Staging(workdir, "metrics.jsonl", "wandb_run.txt", process=jax.process_index())
        self.folder = self._staging.local
        self._log = Log(self.folder, start, wandb=settings.wandb) if self._first else None
        self._recent: list[Mapping[str, Any]] = []

    def __enter__(self):
        self._bar = tqdm(total=self._settings.steps, initial=self._start, desc=self._name, unit="step", smoothing=0.05,
                         mininterval=2, disable=not self._first)
        return self

    def __exit__(self, *exception):
        self._bar.close()
        self.meter.close()
        with self._staging:
            if self._log:
                self._log.__exit__(*exception)
            self.keep()

    def compiled(self, shape: str, seconds: float) -> None:
        """Another program is there; the time that it took is no step's."""
        self.meter.skip()
        self._bar.unpause()
        if self._first:
            tqdm.write(f"{self._name}: compiled the step for a batch of {shape} in {seconds:.1f} s", file=sys.stderr)

    def keep(self) -> None:
        """Copies what is written so far to the run's folder, where that is in a bucket."""
        self._staging.upload()

    def started(self) -> None:
        """Another step is on its way."""
        self._bar.update()

    def finished(self, step: int, metrics: Mapping[str, Any], operations: Callable[[], int],
                 known: Mapping[str, float | str]) -> None:
        """A step is done, as soon as its metrics are there; `known` is what the host knows of it.

        Raises FloatingPointError if its numbers are not finite.
        """
        self._check(step, jax.device_get({name: metrics[name] for name in _CHECKED}))
        self.meter.finished(operations)
        self._staging.upload(every=_UPLOAD_EVERY)
        if self._log is None:
            return
        self._recent.append(metrics)
        if step % self._settings.log_every == 0:
            recent = jax.device_get(self._recent)
            self._recent.clear()
            # What is a mean is one over all steps since the last record; the rest is of this step.
            means = [{name: x for name, x in record.items() if isinstance(x, Mean)} for record in recent]
            values = {name: float(x) for name, x in recent[-1].items() if not isinstance(x, Mean)} | averaged(means)
            shown = {"loss": f"{values['loss']:.4f}", "images_per_s": f"{self.meter.examples_per_second():.3g}"}
            if self.meter.input_wait_share() > _WORTH_SAYING:
                shown["waits_for_input"] = f"{self.meter.input_wait_share():.0%}"
            self._bar.set_postfix(shown)
            self._log.write(step, {**known, **values, **self.meter.values(step)})

    def found(self, step: int, findings: Findings) -> None:
        """What a report says after a step."""
        if self._log is None:
            return
        if findings.scalars:
            self._log.write(step, findings.scalars)
        if findings.picture is not None:
            self._log.picture(step, "samples", findings.picture, findings.captions)

    def _check(self, step: int, found: Mapping[str, Any]) -> None:
        loss, norm = float(found["loss"]), float(found["gradient_norm"])
        kept = ("the last checkpoint is intact" if self._start or step >= self._settings.save_every
                else "there is no checkpoint yet")
        if not (np.isfinite(loss) and np.isfinite(norm)):
            what = f"the loss is {loss} and its gradient's norm {norm} at step {step}"
        elif not (found["parameters_finite"] and found["average_finite"]):
            broken = "average" if found["parameters_finite"] else "parameters"
            what = f"the {broken} are not finite after step {step}, whose loss is {loss} and its gradient's norm {norm}"
        else:
            return
        raise FloatingPointError(
            f"{what}: training stopped; {kept}. The parameters before this step were finite, so it is the step that is "
            f"bad, not a checkpoint. Lower the learning rate ({self._settings.learning_rate:g}), or look at the "
            "examples of this step, and run the same command again.")


