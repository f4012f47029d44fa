"""The training step: a pure function of state, frozen parameters, batch and numbers, compiled for each shape of batch.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.training.optimizer import StepInputs, make_optimizer, step_inputs
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.tasks import Batch, Params


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds: nothing frozen, nothing that the step determines."""

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def init_state(params: Params, settings: TrainSettings) -> TrainState:
    """The state before the first step."""
    # Both are copied, because the step donates its buffers and no two leaves may share one.
    params, ema = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params)
    optimizer = make_optimizer(settings.optimizer, step_inputs(settings, 0))
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def make_train_step(loss: Callable, settings: TrainSettings, placed: TrainState | None = None) -> Callable:
    """The jitted (state, frozen, batch, `optimizer.step_inputs`) → (state, metrics); the state's buffers are donated,
    and its arrays stay where `placed`, a state of shardings, says. Of the settings it depends on `optimizer` and
    `accumulate` alone."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    name, parts_of_batch = settings.optimizer, settings.accumulate

    def accumulated(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        """The mean over the parts of what `gradient` gives."""
        # Part i is every accumulate-th example from the i-th on, so that each device keeps examples that it has.
        parts = jax.tree.map(lambda x: x.reshape(-1, parts_of_batch, *x.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, parts_of_batch)
        total = jax.eval_shape(gradient, params, frozen, jax.tree.map(lambda x: x[0], parts), key)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, frozen, *part)), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total)
        return jax.tree.map(lambda x: x / parts_of_batch, jax.lax.scan(add, zeros, (parts, keys))[0])

    def train_step(state: TrainState, frozen: Params, batch: Batch, inputs: StepInputs):
        optimizer = make_optimizer(name, inputs)
        key = jax.random.fold_in(jax.random.wrap_key_data(inputs["key"]), state.step)
        compute = gradient if parts_of_batch == 1 else accumulated
        (value, metrics), gradients = compute(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short run would otherwise average over its random start.
        decay = jnp.minimum(inputs["ema"], (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), "update_norm": optax.tree.norm(updates),
                   "parameters_finite": all_finite(params), "average_finite": all_finite(ema), **metrics}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=None if placed is None else (placed, None))


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree of arrays is finite; a bool."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """The step for batches of one shape: `run` as `make_train_step` says, and `operations`, which counts those of
    one step."""

    run: Callable
    operations: Callable[[], int]


class StepPrograms:
    """A training step, compiled once for each shape of batch.

    Args:
        train_step: of `make_train_step`. state, frozen: its first arguments, of which only shapes are read.
        inputs: of any step. mesh, rows: where the step runs, and the sharding of a batch's arrays.
        said: is told of every compilation, (batch, seconds).
    """

    def __init__(self, train_step: Callable, state: TrainState, frozen: Params, inputs: StepInputs, *, mesh: Mesh,
                 rows: NamedSharding, said: Callable[[Batch, float], Any]):
        self._train_step, self._mesh, self._rows, self._said = train_step, mesh, rows, said
        self._state, self._frozen, self._inputs = (
            jax.tree.map(_shape_where_it_lies, tree) for tree in (state, frozen, inputs))
        self._found: dict[Any, StepProgram] = {}

    def of(self, batch: Batch) -> StepProgram:
        """The program for batches with the shapes of this one, of arrays or `jax.ShapeDtypeStruct`s; compiles it when
        it is new."""
        kind = _kind(batch)
        if kind not in self._found:
            start = time.monotonic()
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows), batch)
            with jax.set_mesh(self._mesh):
                traced = self._train_step.trace(self._state, self._frozen, shapes, self._inputs)
                run = traced.lower().compile()
            self._found[kind] = StepProgram(run, functools.cache(lambda: flops(traced.jaxpr.jaxpr)))
            self._said(batch, time.monotonic() - start)
        return self._found[kind]


def _kind(batch: Batch) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(batch)
    return structure, *((tuple(x.shape), jnp.dtype(x.dtype)) for x in leaves)


def _shape_where_it_lies(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
