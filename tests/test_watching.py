"""A training that is watched: what its program takes as inputs, what it compiles when, and what it says of itself."""

import dataclasses
import json
import logging
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import SETTINGS, Layered, Regression

from realcustom_jax.sampling.solvers import betas
from realcustom_jax.training.checkpoints import Checkpoints
from realcustom_jax.training.loop import fit
from realcustom_jax.training.losses import Mean, NoisyLatents, by_timestep, denoising_error
from realcustom_jax.training.optimizer import learning_rate, step_inputs
from realcustom_jax.training.reports import Findings, Report, averaged
from realcustom_jax.training.scored import find_judge, scored_pictures
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.step import init_state, make_train_step

QUIET = dataclasses.replace(SETTINGS, sample_every=0)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -------------------- inputs of the program


@pytest.mark.parametrize("options", [
    {}, {"warmup": 0}, {"decay": 0.0}, {"decay": 1.0}, {"warmup": 15}, {"warmup": 30}, {"steps": 1, "warmup": 0}])
def test_the_rate_of_a_step_rises_stays_and_falls(options):
    settings = TrainSettings(**{"steps": 20, "learning_rate": 0.1, "warmup": 4} | options)
    falling = max(1, round(settings.decay * settings.steps))
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, 0.1, settings.warmup), optax.constant_schedule(0.1),
         optax.linear_schedule(0.1, 0.0, falling)],
        [settings.warmup, max(settings.warmup, settings.steps - falling)])
    for step in range(settings.steps + 5):
        assert learning_rate(settings, step) == pytest.approx(float(schedule(step)), abs=1e-7)


def lowered(settings):
    task = Layered()
    state = jax.eval_shape(lambda: init_state({"to_q": {"kernel": jnp.ones((8, 4))}}, settings))
    step = make_train_step(task.loss, settings)
    return step.trace(state, task.frozen, task.batch(0), step_inputs(settings, 3)).lower().as_text()


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_what_may_change_while_a_run_goes_on_is_no_constant_of_its_program(optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    text = lowered(settings)
    for name, value in {"learning_rate": 0.7, "steps": 900, "warmup": 0, "decay": 0.9, "clip": 0.1, "ema": 0.3,
                        "weight_decay": 0.2, "seed": 5, "save_every": 1}.items():
        assert lowered(dataclasses.replace(settings, **{name: value})) == text, name
    assert lowered(dataclasses.replace(settings, accumulate=2)) != text


@pytest.mark.usefixtures("optimised")
def test_the_numbers_are_those_of_a_program_with_constants(tmp_path):
    """Recorded before the rate was an input."""
    options = {"weight_decay": 0.1, "clip": 0.5, "decay": 0.7, "seed": 7, "ema": 0.5}
    ema = fit("same", Regression(), dataclasses.replace(QUIET, **options), tmp_path)
    found = [record["loss"] for record in records(tmp_path)]
    np.testing.assert_allclose(found, [
        0.9431821703910828, 0.5118442177772522, 1.1911205053329468, 4.641109943389893, 4.509138107299805,
        0.7954232096672058, 4.335738658905029, 0.7992869019508362, 0.8420232534408569, 2.240936756134033,
        0.42837488651275635, 0.8773040771484375], rtol=1e-6)
    np.testing.assert_allclose(ema["w"], [0.718996524810791, 1.2325458526611328, -0.049551136791706085], rtol=1e-6)
    rates = [record["learning_rate"] for record in records(tmp_path)]
    assert rates[:3] == pytest.approx([0, 0.05, 0.1]) and rates[-1] == pytest.approx(0.1 / 8)


# -------------------- shapes


class Shaped(Regression):
    """Batches of two shapes, and of a third one that was not foretold, at step 7."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def example_shapes(self):
        return [{"x": jax.ShapeDtypeStruct((3, n), jnp.float32), "y": jax.ShapeDtypeStruct((), jnp.float32)}
                for n in (1, 2)]

    def batch(self, step):
        self.asked.append(step)
        batch = super().batch(step)
        return batch | {"x": np.repeat(batch["x"][..., None], 3 if step == 7 else 1 + step % 2, axis=2)}

    def loss(self, params, frozen, batch, key):
        return super().loss(params, frozen, batch | {"x": batch["x"].mean(-1)}, key)


def test_every_shape_is_compiled_before_the_first_step_and_another_when_it_comes(tmp_path, capsys, monkeypatch):
    task, compiled, before = Shaped(), [], jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args, **options: (
        compiled.append(len(task.asked)) or before(*args, **options)))
    fit("shaped", task, QUIET, tmp_path)
    assert compiled == [0, 0, 8], "how many batches had been asked for"
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "compiled the step" in line]
    assert [line.split("batch of ")[1].split(" in ")[0] for line in told] == ["4×3×1", "4×3×2", "4×3×3"]
    assert [record["shape"] for record in records(tmp_path)][5:9] == ["4×3×2", "4×3×1", "4×3×3", "4×3×1"]


# -------------------- the loss by timestep


def test_the_loss_of_each_quarter_of_the_timesteps():
    errors, t = jnp.array([1.0, 3.0, jnp.inf, 5.0]), jnp.array([0, 249, 250, 999])
    found = {name: (float(mean.total), float(mean.count)) for name, mean in by_timestep(errors, t, 1000).items()}
    assert found == {"loss/t0-250": (4, 2), "loss/t250-500": (math.inf, 1), "loss/t500-750": (0, 0),
                     "loss/t750-1000": (5, 1)}


@pytest.mark.parametrize("options", [{}, {"snr_limit": 5.0}, {"coverage": True}])
def test_the_quarters_make_up_the_loss(options):
    """As it is weighed: of examples whose places weigh alike, the mean over all of them is the loss."""
    rng = np.random.default_rng(0)
    target, predicted = rng.normal(size=(2, 8, 4, 4, 2)).astype(np.float32)
    sample = NoisyLatents(jnp.zeros(()), jnp.arange(8) * 140, jnp.asarray(target))
    options = options | ({"coverage": jnp.zeros((8, 4, 4))} if "coverage" in options else {})
    value, found = denoising_error(jnp.asarray(predicted), sample, betas=betas(), prediction="epsilon", **options)
    assert sum(mean.count for mean in found.values()) == 8
    assert float(sum(mean.total for mean in found.values())) / 8 == pytest.approx(float(value), rel=1e-6)
    if not options:
        of_each = ((predicted - target) ** 2).mean(axis=(1, 2, 3))
        assert float(found["loss/t250-500"].total) == pytest.approx(of_each[[2, 3]].sum(), rel=1e-6)


def test_a_mean_is_over_all_parts_and_of_nothing_left_out():
    parts = [{"loss": 1.0, "a": Mean(2.0, 1.0), "b": Mean(0.0, 0.0)}, {"loss": 2.0, "a": Mean(4.0, 3.0),
                                                                     "b": Mean(0.0, 0.0)}]
    assert averaged(parts) == {"loss": 1.5, "a": 1.5}


# -------------------- what a record says


class Watched(Regression):
    """With everything that a task may have."""

    def held_out(self, number):
        return self.batch(1000 + number) if number < 2 else None

    def scalars(self, step):
        return {"epoch": step / 4}

    def captions(self):
        return ["a line"]

    def loss(self, params, frozen, batch, key):
        value, metrics = super().loss(params, frozen, batch, key)
        return value, metrics | by_timestep(jnp.full(4, value), jnp.arange(4) * 300, 1000)


def test_a_record_says_what_one_wants_to_watch(tmp_path):
    fit("watched", Watched(), dataclasses.replace(QUIET, log_every=5), tmp_path)
    first, middle, last = records(tmp_path)
    assert [first["step"], middle["step"], last["step"]] == [0, 5, 10]
    assert middle.keys() >= {
        "learning_rate", "loss", "gradient_norm", "update_norm", "parameters_finite", "average_finite", "input_wait",
        "input_wait_share", "examples_per_second", "step_seconds", "epoch", "shape", "eta_seconds", "goodput",
        "loss/t0-250", "loss/t250-500", "loss/t500-750", "loss/t750-1000"}
    assert middle["epoch"] == 1.25 and middle["shape"] == "4×3" and middle["parameters_finite"] == 1
    assert middle["loss/t0-250"] != pytest.approx(middle["loss"]), "the mean of five steps"
    assert 0 < middle["update_norm"] < 1 and 0 < last["goodput"] < 1 and last["eta_seconds"] < 60


@pytest.mark.slow
def test_the_held_out_loss_is_the_same_before_and_after_a_resume(tmp_path):
    settings = dataclasses.replace(QUIET, evaluate_every=3)
    fit("whole", Watched(), settings, tmp_path / "whole")
    with pytest.raises(FloatingPointError):
        fit("halves", type("Poisoned", (Watched,), {})(poison=7), settings, tmp_path / "halves")
    fit("halves", Watched(), settings, tmp_path / "halves")
    whole, halves = ({r["step"]: r for r in records(tmp_path / name) if "held_out/loss" in r}
                     for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() == {2, 5, 8, 11}
    for step, record in whole.items():
        assert record["held_out/loss"] == halves[step]["held_out/loss"]
        assert record["held_out/loss/t0-250"] == pytest.approx(record["held_out/loss"], rel=1e-6)
    again, task = Checkpoints(tmp_path / "whole" / "checkpoints"), Watched()
    with again:
        state = again.restore(jax.eval_shape(lambda: init_state({"w": jnp.ones(3)}, settings)))
    expected = [task.loss(state.ema, task.frozen, task.held_out(i), jax.random.fold_in(jax.random.key(0), i))[0]
                for i in range(2)]
    assert whole[11]["held_out/loss"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_a_held_out_loss_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluate_every is 3, and there are no held-out examples"):
        fit("none", Regression(), dataclasses.replace(QUIET, evaluate_every=3), tmp_path)


def test_reports_come_on_their_schedule_and_after_the_last_step(tmp_path):
    seen = []

    def look(params):
        seen.append(params["w"].copy())
        return Findings({"seen": float(len(seen))})

    averaged = fit("looked", Regression(), QUIET, tmp_path, reports=(Report(5, look), Report(0, look)))
    assert [(r["step"], r["seen"]) for r in records(tmp_path) if "seen" in r] == [(4, 1), (9, 2), (11, 3)]
    np.testing.assert_array_equal(seen[-1], averaged["w"])


@pytest.mark.slow
def test_the_bar_says_how_much_time_steps_wait_for_batches(tmp_path, capsys, monkeypatch):
    class Slow(Regression):
        def batch(self, step):
            import time

            time.sleep(0.02)
            return super().batch(step)

    fit("slow", Slow(), QUIET, tmp_path)
    shown = capsys.readouterr().err
    assert "waits_for_input=" in shown and "images_per_s=" in shown and "loss=" in shown


# -------------------- numbers that are none


def test_a_bad_step_is_told_from_a_bad_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 2: .*no checkpoint yet. The parameters before this step were "
                                                 "finite, so it is the step"):
        fit("bad", Regression(poison=2), QUIET, tmp_path)
    with pytest.raises(FloatingPointError, match="at step 6: training stopped; the last checkpoint is intact"):
        fit("bad", Regression(poison=6), QUIET, tmp_path)


def test_parameters_that_a_finite_gradient_makes_infinite_are_not_saved(tmp_path):
    class Steep(Regression):
        def init(self, key):
            return {"w": jnp.full(3, 3e38)}

        def loss(self, params, frozen, batch, key):
            return -(params["w"] * 1e-4).sum(), {}

    settings = dataclasses.replace(QUIET, learning_rate=3e38, warmup=0, save_every=1)
    with pytest.raises(FloatingPointError, match="the parameters are not finite after step 0"):
        fit("steep", Steep(), settings, tmp_path)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


# -------------------- profile, console, settings


def test_a_profile_of_some_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    class Noting(Regression):
        def batch(self, step):
            calls.append(step)
            return super().batch(step)

    fit("profiled", Noting(), dataclasses.replace(QUIET, profile_steps="5:7"), tmp_path)
    assert calls == [*range(6), ("start", str(tmp_path / "profile")), 6, "stop", *range(7, 12)]


@pytest.mark.parametrize("value, message", [
    *[(value, "expected FIRST:LAST, two numbers of steps of which the second is larger, such as 100:105")
      for value in ("5", "7:5", "5:5", "a:b", "-1:3", "5:7:9", "5:", " ")],
    ("5:13", "the training has 12 steps; give steps that it has")])
def test_profile_steps_that_cannot_be_are_named(value, message):
    with pytest.raises(ValueError, match=f"^profile_steps is '{value}'.*{message}"):
        dataclasses.replace(SETTINGS, profile_steps=value)


def test_weights_and_biases_that_is_missing_is_said_when_the_settings_are_read(monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^wandb is 'toys', .* pip install wandb, or leave it empty"):
        TrainSettings(steps=1, wandb="toys")


@pytest.mark.slow
def test_orbax_is_heard_where_it_was_asked_for(tmp_path, caplog):
    def heard():
        caplog.clear()
        fit("quiet", Regression(), QUIET, tmp_path / str(len(list(tmp_path.iterdir()))))
        return [record for record in caplog.records if "orbax" in record.pathname]

    with caplog.at_level(logging.INFO):
        assert not heard()  # whose level nobody has set
    with caplog.at_level(logging.INFO, "absl"):
        assert heard()


def test_scored_pictures_need_a_judge(tmp_path):
    assert find_judge(0, tmp_path) is None and scored_pictures(0, None, None) == ()
    with pytest.raises(ValueError, match=f"evaluate_pictures_every is 5, and {tmp_path} has no judge .*; set it to 0"):
        find_judge(5, tmp_path)
