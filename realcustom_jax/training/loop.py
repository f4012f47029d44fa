"""The training loop of every stage: one jitted step, checkpoints, resume, metrics, sample grids.

A stage is a `Task`: how its parameters begin, its loss, its batches, and a picture of how it is doing. The batch and
the random key of a step are pure functions of the step, so that a run that is stopped anywhere continues with the
same numbers.
"""

import contextlib
import dataclasses
import functools
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers
from PIL import Image
from tqdm import tqdm

from realcustom_jax.devices import sharding
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.sharding import AxisRules
from realcustom_jax.errors import check_choice
from realcustom_jax.files import png, write_file
from realcustom_jax.staging import staged
from realcustom_jax.training.checkpoints import ON_EXISTING
from realcustom_jax.training.log import Log
from realcustom_jax.training.staged_checkpoints import open_checkpoints

_UPLOAD_EVERY = 30.0  # seconds, of what is logged of a run in a bucket

Params = Any
Batch = dict[str, np.ndarray]


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(value))


# Each limit of `TrainSettings` is given in words, as a test, and with the fields that it holds for.
_LIMITS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a whole number, at least 1": (
        lambda x: _whole(x) and x >= 1, ("steps", "batch_size", "accumulate", "save_every", "log_every", "keep")),
    "a whole number, 0 or more": (
        lambda x: _whole(x) and x >= 0, ("warmup", "sample_every", "keep_every", "seed")),
    "a number from 0 to 1": (lambda x: _finite(x) and 0 <= x <= 1, ("decay", "ema")),
    "a number above 0": (lambda x: _finite(x) and x > 0, ("learning_rate", "clip")),
    "a number, 0 or more": (lambda x: _finite(x) and x >= 0, ("weight_decay",)),
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How one stage is optimised. The learning rate warms up linearly, stays, and falls to 0 over the last `decay` of
    the steps. `accumulate` parts of a batch are computed one after the other, for batches that memory does not hold at
    once (a loss that compares examples, as a contrast does, then sees a part's only); the rest is about checkpoints
    (module `checkpoints`) and what is written how often, in steps; 0 for `sample_every`: no sample grids.

    Raises ValueError for a value with which no training can run; names the field and says what was expected."""

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
    keep_every: int = 0
    on_existing: str = "resume"
    accumulate: int = 1

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, ("adamw", "muon"))
        check_choice("on_existing", self.on_existing, ON_EXISTING)
        for expected, (fits, names) in _LIMITS.items():
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size} evenly.")


class Task(Protocol):
    """What a stage brings to `fit`."""

    frozen: Params
    """Parameters that the loss reads and nothing trains."""

    def init(self, key: jax.Array) -> Params:
        """The trainable parameters at step 0; not jitted, so that those that are there already are no constants of a
        program."""

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar to minimise, scalars to report); jitted, pure."""

    def batch(self, step: int) -> Batch:
        """The numpy batch of a step: the same arrays whenever it is asked for. All its examples or, where reading them
        is work, those that `sharding.examples_here` names."""

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


def make_train_step(loss: Callable, settings: TrainSettings, placed: TrainState | None = None) -> Callable:
    """The jitted (state, frozen, batch) → (state, metrics); the state's buffers are donated, and its arrays stay where
    `placed`, a state of shardings, says."""
    optimizer = make_optimizer(settings)
    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        """The mean over the parts of what `gradient` gives."""
        # Part i is every accumulate-th example from the i-th on, so that each device keeps examples that it has.
        parts = jax.tree.map(lambda x: x.reshape(-1, settings.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, settings.accumulate)
        total = jax.eval_shape(gradient, params, frozen, jax.tree.map(lambda x: x[0], parts), key)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, frozen, *part)), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total)
        return jax.tree.map(lambda x: x / settings.accumulate, jax.lax.scan(add, zeros, (parts, keys))[0])

    def train_step(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        compute = gradient if settings.accumulate == 1 else accumulated
        (value, metrics), gradients = compute(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short run would otherwise average over its random start.
        decay = jnp.minimum(settings.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **metrics}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=None if placed is None else (placed, None))


def init_state(params: Params, settings: TrainSettings) -> TrainState:
    """The state before the first step."""
    # Both are copied, because the step donates its buffers and no two leaves may share one.
    params, ema = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, make_optimizer(settings).init(params))


def fit(name: str, task: Task, settings: TrainSettings, workdir: Path, *, mesh: Mesh | None = None,
        rules: AxisRules = AxisRules(), run: Mapping[str, Any] | None = None) -> Params:
    """Trains (or resumes) one stage to its last step and returns the averaged (EMA) parameters, on the host.

    On `mesh` (by default all devices, along `data`) arrays lie as `rules` say. Writes to `workdir`: `checkpoints/`
    (Orbax), what `log.Log` writes, `samples/STEP.png`. On SIGTERM, as a machine that goes away sends, it saves and
    exits. `run` says what the run is about: checkpoints of another one are not continued.

    Raises:
        FloatingPointError: the loss is not finite; names the step. The last checkpoint before it is intact.
        ValueError: the batch or a parameter cannot be divided over the devices; the checkpoints are another run's.
        SystemExit: with code 0, after SIGTERM; the same command continues.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    shares = sharding.batch_sharding(mesh, settings.batch_size // settings.accumulate, rules)
    with open_checkpoints(workdir / "checkpoints", keep=settings.keep, keep_every=settings.keep_every,
                          on_existing=settings.on_existing, run=run) as checkpoints, Interruption() as interruption:
        begin = functools.partial(init_state, settings=settings)
        key = jax.random.key(settings.seed)
        fresh = jax.eval_shape(begin, jax.eval_shape(task.init, key))
        placed = choose_shardings(fresh, mesh, rules)
        state = checkpoints.restore(sharding.shapes(fresh, placed))
        if state is None:
            params = sharding.distribute(jax.device_get(task.init(key)), placed.params)
            state = jax.jit(begin, out_shardings=placed)(params)
        frozen = sharding.distribute(jax.tree.map(np.asarray, task.frozen), choose_shardings(task.frozen, mesh, rules))
        start = int(state.step)
        train_step = make_train_step(task.loss, settings, placed)
        first = jax.process_index() == 0  # the process that writes and shows; the others only compute
        peak = Platform.of(mesh.devices.flat[0]).peak

        def load(step):
            return sharding.distribute_batch(task.batch(step), shares, settings.batch_size)

        def operations():
            with jax.set_mesh(mesh):
                return flops(train_step.trace(state, frozen, load(start)).jaxpr.jaxpr)

        with tqdm(total=settings.steps, initial=start, desc=name, unit="step", smoothing=0.05, mininterval=2,
                  disable=not first) as bar, \
                staged(workdir, "metrics.jsonl", process=jax.process_index()) as watched, \
                Log(watched.local, start, peak=peak and peak * mesh.size, operations=operations) if first \
                else contextlib.nullcontext() as log:
            pending = None
            for step in range(start, settings.steps):
                batch = load(step)
                with jax.set_mesh(mesh):
                    state, metrics = train_step(state, frozen, batch)
                # The numbers of the step before are read while this one runs, so that dispatch never waits.
                if pending is not None:
                    _report(*pending, settings, bar, log)
                pending = (step, metrics)
                bar.update()
                watched.upload(every=_UPLOAD_EVERY)
                done = step + 1
                stop = interruption.asks(done)
                if done % settings.save_every == 0 or done == settings.steps or stop:
                    _report(*pending, settings, bar, log)
                    pending = None
                    if log:
                        log.pause()
                    watched.upload()  # what a checkpoint continues is kept before it
                    checkpoints.save(done, state)
                if stop:
                    checkpoints.wait()
                    print(f"\n{name}: stopped after step {done} of {settings.steps} as asked, and saved; the same "
                          "command continues.", file=sys.stderr)
                    sys.exit(0)
                if settings.sample_every and (done % settings.sample_every == 0 or done == settings.steps):
                    averaged = sharding.collect(state.ema, mesh)
                    if first:
                        write_file(watched.local / "samples" / f"{done:06d}.png", png(task.preview(averaged)))
                        log.pause()
        return sharding.collect(state.ema, mesh)


def choose_shardings(tree, mesh: Mesh, rules: AxisRules):
    """Shardings of a tree: by the rules, or, on a mesh that divides no parameter, a copy on every device."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return jax.tree.map(lambda _: sharding.replicated(mesh), tree)
    return sharding.shardings(tree, mesh, rules)


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


def _report(step: int, metrics: dict[str, jax.Array], settings: TrainSettings, bar: tqdm, log: Log | None) -> None:
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if not (np.isfinite(loss) and np.isfinite(norm)):
        raise FloatingPointError(
            f"the loss is {loss} and its gradient's norm {norm} at step {step}: training stopped; the last checkpoint "
            f"is intact. Lower the learning rate ({settings.learning_rate:g}) and run the same command again.")
    if log is None:
        return
    log.finished()
    if step % settings.log_every == 0:
        rate = bar.format_dict["rate"] or 0.0
        bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{rate * settings.batch_size:.0f}")
        log.write(step, {name: float(value) for name, value in metrics.items()})
