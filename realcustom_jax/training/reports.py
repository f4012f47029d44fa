"""What is looked at on a schedule while a training goes on: sample grids, the held-out loss, scores of pictures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from realcustom_jax.training.losses import Mean
from realcustom_jax.training.tasks import Batch, Params, Task, captions, held_out_batches


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a report says: numbers for the log and, if it drew one, a picture with the captions of its parts."""

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    picture: Image.Image | None = None
    captions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """One look at the averaged parameters.

    every: how many steps lie between two of them, and after the last step there is one too; 0: never.
    make: what it finds. It is given the parameters in the host's memory and called by the first process alone or,
        `on_devices`, those on the devices, and is called by every process.
    """

    every: int
    make: Callable[[Params], Findings]
    on_devices: bool = False

    def due(self, done: int, steps: int) -> bool:
        """Whether it is to be made after `done` of so many steps."""
        return self.every > 0 and (done % self.every == 0 or done == steps)


def preview(task: Task, every: int) -> Report:
    """The task's picture."""
    return Report(every, lambda params: Findings(picture=task.preview(params), captions=captions(task)))


def held_out_loss(task: Task, frozen: Params, every: int, place: Callable[[Batch], Batch]) -> Report:
    """The loss of the task's held-out batches, always with the same noise and timesteps: held_out/loss, and what else
    the task's loss reports. `place` brings a batch to the devices.

    Raises ValueError where it is asked for and the task holds nothing out.
    """
    if every and next(held_out_batches(task), None) is None:
        raise ValueError(f"evaluate_every is {every}, and there are no held-out examples whose loss could be computed; "
                         "hold some out, or set it to 0.")

    @jax.jit
    def evaluate(params, frozen, batch, number):
        value, metrics = task.loss(params, frozen, batch, jax.random.fold_in(jax.random.key(0), number))
        return {"loss": value, **metrics}

    def make(params: Params) -> Findings:
        found = [evaluate(params, frozen, place(batch), number)
                 for number, batch in enumerate(held_out_batches(task))]
        return Findings({f"held_out/{name}": value for name, value in averaged(jax.device_get(found)).items()})

    return Report(every, make, on_devices=True)


def averaged(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means over records of scalars and `Mean`s; a `Mean` of nothing is left out."""
    found = {}
    for name in records[0]:
        values = [record[name] for record in records]
        if not isinstance(values[0], Mean):
            found[name] = float(np.mean(values))
        elif count := sum(value.count for value in values):
            found[name] = float(sum(value.total for value in values) / count)
    return found
