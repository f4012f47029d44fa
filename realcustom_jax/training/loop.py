"""The training loop of every stage: one compiled step, checkpoints, resume, and reports on a schedule.

A stage is a `Task`: how its parameters begin, its loss, its batches, and a picture of how it is doing. The batch and
the random key of a step are pure functions of the step, so that a run that is stopped anywhere continues with the
same numbers.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from realcustom_jax.devices import sharding
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.shapes import batch_shapes
from realcustom_jax.devices.sharding import AxisRules
from realcustom_jax.interruption import Preempted
from realcustom_jax.training import tasks
from realcustom_jax.training.checkpoints import Checkpoints
from realcustom_jax.training.identity import RunIdentity
from realcustom_jax.training.interruption import Interruption
from realcustom_jax.training.optimizer import learning_rate, step_inputs
from realcustom_jax.training.profiling import Profile
from realcustom_jax.training.progress import Progress
from realcustom_jax.training.reports import Findings, Report, held_out_loss, preview
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.staged_checkpoints import StagedCheckpoints, open_checkpoints
from realcustom_jax.training.step import StepPrograms, TrainState, init_state, make_train_step
from realcustom_jax.training.tasks import Params, Task

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def fit(name: str, task: Task, settings: TrainSettings, workdir: "AnyPath", *, mesh: Mesh | None = None,
        rules: AxisRules = AxisRules(), run: Mapping[str, Any] | None = None,
        reports: Sequence[Report] = ()) -> Params:
    """Trains (or resumes) one stage to its last step and returns the averaged (EMA) parameters, on the host.

    On `mesh` (by default all devices, along `data`) arrays lie as `rules` say. Writes to `workdir`: `checkpoints/`
    (Orbax), what `log.Log` writes, `profile/`. On SIGTERM, as a machine that goes away sends, it saves and stops. `run`
    says what the run is about: checkpoints of another one are not continued. `reports` are made besides the
    task's picture and its held-out loss.

    Raises:
        FloatingPointError: the loss, the parameters or their average are not finite; names the step. The last
            checkpoint before that is intact.
        ValueError: the batch or a parameter cannot be divided over the devices; the checkpoints are another run's; a
            held-out loss is asked for and nothing is held out.
        Preempted: after SIGTERM, saved; a process that it ends has the exit code 75, and the same command continues.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    shares = sharding.batch_sharding(mesh, settings.batch_size // settings.accumulate, rules)
    with open_checkpoints(workdir / "checkpoints", keep=settings.keep, keep_every=settings.keep_every,
                          on_existing=settings.on_existing, run=RunIdentity.of(run, settings)) as checkpoints, \
            Interruption() as interruption:
        state, placed = _first_state(task, settings, checkpoints, mesh, rules)
        frozen = sharding.distribute(jax.tree.map(np.asarray, task.frozen), choose_shardings(task.frozen, mesh, rules))
        start = int(state.step)
        peak = Platform.of(mesh.devices.flat[0]).peak

        def place(batch):
            return sharding.distribute_batch(batch, shares, settings.batch_size)

        reports = [held_out_loss(task, frozen, settings.evaluate_every, place), preview(task, settings.sample_every),
                   *reports]
        with Progress(name, settings, start, workdir, peak=peak and peak * mesh.size) as progress, \
                Profile(settings.profiled, progress.folder / "profile") as profile:
            meter = progress.meter
            programs = StepPrograms(
                make_train_step(task.loss, settings, placed), state, frozen, step_inputs(settings, 0), mesh=mesh,
                rows=shares,
                said=lambda batch, seconds: progress.compiled(tasks.describe_shape(batch), seconds))
            for example in tasks.example_shapes(task) if start < settings.steps else ():
                programs.of(batch_shapes(example, settings.batch_size))
            pending = None
            for step in range(start, settings.steps):
                with meter.waiting():
                    batch = task.batch(step)
                batch = place(batch)
                program = programs.of(batch)
                with profile.step(step):
                    state, metrics = program.run(state, frozen, batch, step_inputs(settings, step))
                profile.done(step, metrics)
                # The numbers of the step before are read while this one runs, so that dispatch never waits.
                if pending is not None:
                    progress.finished(*pending)
                known = {"learning_rate": learning_rate(settings, step), "shape": tasks.describe_shape(batch),
                         **tasks.scalars(task, step)}
                pending = (step, metrics, program.operations, known)
                progress.started()
                done = step + 1
                stop = interruption.asks(done)
                due = [report for report in reports if report.due(done, settings.steps)]
                saves = done % settings.save_every == 0 or done == settings.steps or stop
                if not (saves or due):
                    continue
                progress.finished(*pending)
                pending = None
                with meter.paused():
                    if saves:
                        progress.keep()  # what is logged is kept before the checkpoint that it belongs to
                        checkpoints.save(done, state)
                    if stop:
                        checkpoints.wait()
                        raise Preempted(f"{name}: stopped after step {done} of {settings.steps} as asked, and saved; "
                                        "the same command continues.")
                    for report in due:
                        progress.found(step, _make(report, state, mesh))
        return sharding.collect(state.ema, mesh)


def _first_state(task: Task, settings: TrainSettings, checkpoints: Checkpoints | StagedCheckpoints, mesh: Mesh,
                 rules: AxisRules) -> tuple[TrainState, TrainState]:
    """The state that the run goes on from, and where its arrays lie."""
    begin = functools.partial(init_state, settings=settings)
    key = jax.random.key(settings.seed)
    fresh = jax.eval_shape(begin, jax.eval_shape(task.init, key))
    placed = choose_shardings(fresh, mesh, rules)
    state = checkpoints.restore(sharding.shapes(fresh, placed))
    if state is None:
        params = sharding.distribute(jax.device_get(task.init(key)), placed.params)
        return jax.jit(begin, out_shardings=placed)(params), placed
    return state, placed


def _make(report: Report, state: TrainState, mesh: Mesh) -> Findings:
    if report.on_devices:
        with jax.set_mesh(mesh):
            return report.make(state.ema)
    averaged = sharding.collect(state.ema, mesh)
    # The other processes only compute.
    return report.make(averaged) if jax.process_index() == 0 else Findings()


def choose_shardings(tree, mesh: Mesh, rules: AxisRules):
    """Shardings of a tree: by the rules, or, on a mesh that divides no parameter, a copy on every device."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return jax.tree.map(lambda _: sharding.replicated(mesh), tree)
    return sharding.shardings(tree, mesh, rules)
