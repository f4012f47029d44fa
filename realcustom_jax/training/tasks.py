"""What a stage brings to `loop.fit`: what it must have, and what it may have."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

Params = Any
Batch = dict[str, Any]


class Task(Protocol):
    """What every stage has."""

    frozen: Params
    """Parameters that the loss reads and nothing trains."""

    def init(self, key: jax.Array) -> Params:
        """The trainable parameters at step 0; not jitted, so that those that are there already are no constants of a
        program."""

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """(scalar to minimise, what to report: scalars or `losses.Mean`s); jitted, pure."""

    def batch(self, step: int) -> Batch:
        """The numpy batch of a step: the same arrays whenever it is asked for. All its examples or, where reading them
        is work, those that `sharding.examples_here` names."""

    def preview(self, params: Params) -> Image.Image:
        """A picture of what the parameters can do."""


class WatchedTask(Task, Protocol):
    """What a stage may have besides; each is asked for by a function of this module, which knows what none means."""

    def example_shapes(self) -> Sequence[Batch]:
        """The shapes (`jax.ShapeDtypeStruct`) of one example of every kind of batch: each is compiled before training
        begins. A kind that is not among them is compiled when it comes."""

    def held_out(self, number: int) -> Batch | None:
        """A batch of examples that no step trains on, the same whenever it is asked for; None after the last one."""

    def scalars(self, step: int) -> Mapping[str, float]:
        """What the host knows of a step, such as its epoch and the weights of its curriculum."""

    def captions(self) -> Sequence[str]:
        """Of the pictures of `preview`."""


def example_shapes(task: Task) -> Sequence[Batch]:
    """See `WatchedTask`; none are known."""
    return task.example_shapes() if hasattr(task, "example_shapes") else ()


def held_out_batches(task: Task) -> Iterator[Batch]:
    """All of `WatchedTask.held_out`."""
    if hasattr(task, "held_out"):
        yield from itertools.takewhile(lambda batch: batch is not None, map(task.held_out, itertools.count()))


def scalars(task: Task, step: int) -> Mapping[str, float]:
    """See `WatchedTask`; there are none."""
    return task.scalars(step) if hasattr(task, "scalars") else {}


def captions(task: Task) -> Sequence[str]:
    """See `WatchedTask`; there are none."""
    return task.captions() if hasattr(task, "captions") else ()


def describe_shape(batch: Batch) -> str:
    """The shape of a batch's largest array, such as 16×1024×1024×3."""
    return "×".join(map(str, max((np.shape(x) for x in jax.tree.leaves(batch)), key=np.prod, default=())))
