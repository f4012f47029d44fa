"""The training loop of every stage: one jitted step, checkpoints, resume, metrics, sample grids.

A stage is a `Task`: how its parameters begin, its loss, its batches, and a picture of how it is doing. The batch and
the random key of a step are pure functions of the step, so that a run that is stopped anywhere continues with the
same numbers.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers
from PIL import Image
from tqdm import tqdm

from realcustom_jax.choices import check_choice

Params = Any
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How one stage is optimised. The learning rate warms up linearly, stays, and falls to 0 over the last `decay` of
    the steps."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 250
    sample_every: int = 500
    log_every: int = 20
    keep: int = 2


class Task(Protocol):
    """What a stage brings to `fit`."""

    frozen: Params
    """Parameters that the loss reads and nothing trains."""

    def init(self, key: jax.Array) -> Params:
        """The trainable parameters at step 0."""

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar to minimise, scalars to report); jitted, pure."""

    def batch(self, step: int) -> Batch:
        """The numpy batch of a step: the same arrays whenever it is asked for."""

    def preview(self, params: Params) -> Image.Image:
        """A picture of what the parameters can do."""


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds: nothing frozen, nothing that the step determines."""

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """AdamW or Muon, with clipped gradients and a warm-up / constant / linear-decay learning rate.

    Muon (arXiv 2502.16982) orthogonalises the updates of matrices and convolution kernels, scaled so that AdamW's
    learning rates suit it; everything else is AdamW's. Three of its usual five Newton-Schulz iterations lift all but
    the smallest singular values; on a CPU five cost half as much as the gradients.
    """
    check_choice("optimizer", settings.optimizer, ("adamw", "muon"))
    decay_steps = max(1, round(settings.decay * settings.steps))
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, settings.learning_rate, settings.warmup),
         optax.constant_schedule(settings.learning_rate),
         optax.linear_schedule(settings.learning_rate, 0.0, decay_steps)],
        [settings.warmup, max(settings.warmup, settings.steps - decay_steps)])
    if settings.optimizer == "adamw":
        optimizer = optax.adamw(schedule, b2=0.99, weight_decay=settings.weight_decay)
    else:
        optimizer = optax.contrib.muon(
            schedule, ns_steps=3, weight_decay=settings.weight_decay, adam_b2=0.99, consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(_matrix_axes, params))
    return optax.chain(optax.clip_by_global_norm(settings.clip), optimizer)


def _matrix_axes(path, parameter: jax.Array) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's rows and columns: of kernels, the last axis is the output."""
    if getattr(path[-1], "key", None) != "kernel":
        return None
    # The leading axis of three is the layers' of a scanned stack; each is a matrix of its own.
    rows = {2: 0, 3: 1, 4: (0, 1, 2)}[parameter.ndim]
    return MuonDimensionNumbers(rows, parameter.ndim - 1)


def make_train_step(loss: Callable, settings: TrainSettings) -> Callable:
    """The jitted (state, frozen, batch) → (state, metrics); the state's buffers are donated."""
    optimizer = make_optimizer(settings)

    def train_step(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short run would otherwise average over its random start.
        decay = jnp.minimum(settings.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **metrics}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def init_state(params: Params, settings: TrainSettings) -> TrainState:
    """The state before the first step."""
    # Copies: the step donates its buffers, and no two leaves may share one.
    params, ema = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, make_optimizer(settings).init(params))


def fit(name: str, task: Task, settings: TrainSettings, workdir: Path) -> Params:
    """Trains (or resumes) one stage to its last step and returns the averaged (EMA) parameters, on the host.

    Every device holds all parameters and takes its share of each batch. Writes to `workdir`: `checkpoints/` (Orbax),
    `metrics.jsonl`, `samples/STEP.png`.

    Raises:
        FloatingPointError: the loss is not finite; names the step. The last checkpoint before it is intact.
        ValueError: the batch size is not a multiple of the number of devices.
    """
    whole, shares = _shardings(settings.batch_size)
    workdir.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=settings.keep, save_interval_steps=settings.save_every)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        state = init_state(jax.jit(task.init)(jax.random.key(settings.seed)), settings)
        state, frozen = jax.device_put((state, task.frozen), whole)
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        start = int(state.step)
        train_step = make_train_step(task.loss, settings)
        with tqdm(total=settings.steps, initial=start, desc=name, unit="step", smoothing=0.05, mininterval=2) as bar, \
                (workdir / "metrics.jsonl").open("a") as log:
            pending = None
            for step in range(start, settings.steps):
                state, metrics = train_step(state, frozen, jax.device_put(task.batch(step), shares))
                # The numbers of the step before are read while this one runs, so that dispatch never waits.
                if pending is not None:
                    _report(*pending, settings, bar, log)
                pending = (step, metrics)
                bar.update()
                done = step + 1
                if done % settings.save_every == 0 or done == settings.steps:
                    _report(*pending, settings, bar, log)
                    pending = None
                    manager.save(done, args=ocp.args.StandardSave(state), force=True)
                if done % settings.sample_every == 0 or done == settings.steps:
                    (workdir / "samples").mkdir(exist_ok=True)
                    task.preview(jax.device_get(state.ema)).save(workdir / "samples" / f"{done:06d}.png")
        manager.wait_until_finished()
    return jax.device_get(state.ema)


def _shardings(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
    """(a copy on every device, the batch axis divided over all devices)."""
    devices = jax.device_count()
    if batch_size % devices:
        raise ValueError(f"batch_size={batch_size} cannot be divided over {devices} devices; choose a multiple.")
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def _report(step: int, metrics: dict[str, jax.Array], settings: TrainSettings, bar: tqdm, log) -> None:
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}: training stopped; the last checkpoint is intact. Lower the learning "
            f"rate ({settings.learning_rate:g}) and run the same command again.")
    if step % settings.log_every == 0:
        rate = bar.format_dict["rate"] or 0.0
        bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{rate * settings.batch_size:.0f}")
        record = {"step": step, "time": round(time.time(), 1), **{k: float(v) for k, v in metrics.items()}}
        log.write(json.dumps(record) + "\n")
        log.flush()
