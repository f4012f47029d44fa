"""The training loop on a tiny regression: resuming after every kind of stop, averaging, meshes, damaged checkpoints."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AbstractMesh
from PIL import Image

from realcustom_jax.devices import platform
from realcustom_jax.devices.sharding import (  # noqa: F401  (of the scripts below)
    MESH_AXES,
    AxisRules,
    batch_sharding,
    examples_here,
    make_mesh,
)
from realcustom_jax.training.loop import choose_shardings, fit  # noqa: F401
from realcustom_jax.training.optimizer import make_optimizer, step_inputs
from realcustom_jax.training.settings import TrainSettings
from realcustom_jax.training.step import init_state, make_train_step

from fresh_process import free_port, run, start

SETTINGS = TrainSettings(steps=12, batch_size=4, learning_rate=0.1, warmup=2, save_every=4, sample_every=6, log_every=1)


class Regression:
    """y = x·w + b, with noise from the step's key, so that a wrong key on resuming would show."""

    frozen = {"b": jnp.ones(())}

    def __init__(self, poison=None):
        self.poison = poison

    def init(self, key):
        return {"w": jax.random.normal(key, (3,))}

    def batch(self, step):
        x = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
        return {"x": x * (np.nan if step == self.poison else 1), "y": x.sum(1) + 1}

    def loss(self, params, frozen, batch, key):
        predicted = batch["x"] @ params["w"] + frozen["b"] + 0.1 * jax.random.normal(key, (4,))
        return ((predicted - batch["y"]) ** 2).mean(), {"w0": params["w"][0]}

    def preview(self, params):
        jax.jit(lambda x: x * 2)(jnp.ones(3)).block_until_ready()  # by one process of several alone
        return Image.new("RGB", (4, 4))


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({r["step"] for r in records}) == len(records)
    return {r["step"]: r["loss"] for r in records}


def test_stopped_and_resumed_is_the_same_as_uninterrupted(tmp_path):
    whole = fit("whole", Regression(), SETTINGS, tmp_path / "whole")
    with pytest.raises(FloatingPointError):
        fit("halves", Regression(poison=6), SETTINGS, tmp_path / "halves")
    resumed = fit("halves", Regression(), SETTINGS, tmp_path / "halves")
    np.testing.assert_array_equal(whole["w"], resumed["w"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert sorted(p.name for p in (tmp_path / "whole" / "samples").iterdir()) == ["000006.png", "000012.png"]


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 5"):
        fit("nan", Regression(poison=5), SETTINGS, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["4"]


def test_training_learns_and_averages():
    task, state = Regression(), init_state({"w": jnp.zeros(3)}, SETTINGS)
    settings = TrainSettings(steps=300, learning_rate=0.05, warmup=5)
    train_step = make_train_step(task.loss, settings)
    for step in range(300):
        state, _ = train_step(state, task.frozen, task.batch(step), step_inputs(settings, step))
    np.testing.assert_allclose(state.params["w"], 1, atol=0.05)
    np.testing.assert_allclose(state.ema["w"], 1, atol=0.15)
    assert train_step._cache_size() == 1


class Layered(Regression):
    """The same, with parameters that a mesh divides."""

    frozen = {"net_2": {"kernel": jnp.ones((4, 8))}}

    def init(self, key):
        return {"to_q": {"kernel": jax.random.normal(key, (8, 4))}}

    def batch(self, step):
        return {name: np.resize(x, (4, 8) if name == "x" else 4) for name, x in super().batch(step).items()}

    def loss(self, params, frozen, batch, key):
        predicted = (batch["x"] @ params["to_q"]["kernel"] @ frozen["net_2"]["kernel"]).sum(-1)
        return ((predicted - batch["y"]) ** 2).mean() + 0.01 * jax.random.normal(key), {}


def run_on_four_devices(script, folder):
    prelude = "import sys, pathlib, jax; from test_training import *; assert jax.device_count() == 4;"
    run(prelude + script, folder, devices=4)


@pytest.mark.slow
def test_devices_share_the_batch_and_the_parameters(tmp_path):
    fit("one", Regression(), SETTINGS, tmp_path / "one")
    fit("one", Layered(), SETTINGS, tmp_path / "layered")
    run_on_four_devices(
        "folder = pathlib.Path(sys.argv[1]); fit('four', Regression(), SETTINGS, folder / 'four');"
        "mesh = make_mesh(fsdp=2, tensor=2);"
        "fit('divided', Layered(), SETTINGS, folder / 'divided', mesh=mesh);", tmp_path)
    for one, four in (("one", "four"), ("layered", "divided")):
        one, four = losses(tmp_path / one), losses(tmp_path / four)
        assert one.keys() == four.keys() == set(range(12))
        np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=1e-5)
    # What four devices wrote, one reads.
    longer = dataclasses.replace(SETTINGS, steps=13)
    assert fit("one", Layered(), longer, tmp_path / "divided")["to_q"]["kernel"].shape == (8, 4)
    assert len(losses(tmp_path / "divided")) == 13


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Two processes of two devices train as one process of four, and each reads the other's checkpoints."""
    run_on_four_devices("fit('one', Layered(), SETTINGS, pathlib.Path(sys.argv[1]) / 'one', mesh=make_mesh(fsdp=2))",
                        tmp_path)
    script = """
import pathlib, sys, jax
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from test_training import *
assert jax.device_count() == 4 and jax.local_device_count() == 2
folder = pathlib.Path(sys.argv[1])
class Partial(Layered):
    def batch(self, step):
        here = examples_here(batch_sharding(make_mesh(fsdp=2), 4), 4)
        assert here.tolist() == [[0, 1], [2, 3]][jax.process_index()]
        return {name: x[here] for name, x in super().batch(step).items()}
fit('two', Partial(), SETTINGS, folder / 'two', mesh=make_mesh(fsdp=2))
fit('on', Layered(), dataclasses.replace(SETTINGS, steps=16), folder / 'one', mesh=make_mesh(fsdp=2))
"""
    address = f"localhost:{free_port()}"
    processes = [start(script, tmp_path, address, i, devices=2) for i in range(2)]
    assert [process.wait(timeout=500) for process in processes] == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == set(range(16)) and two.keys() == set(range(12))
    np.testing.assert_allclose([two[i] for i in range(12)], [one[i] for i in range(12)], rtol=1e-5)
    # And the other way round: one process of one device continues what two wrote.
    again = fit("on", Layered(), dataclasses.replace(SETTINGS, steps=16), tmp_path / "two")
    np.testing.assert_allclose(list(losses(tmp_path / "two").values()), list(one.values()), rtol=1e-5)
    assert again["to_q"]["kernel"].shape == (8, 4)


def test_accumulated_parts_are_the_whole_batch():
    """Of a loss without noise: the mean of the parts' gradients is the batch's."""
    task = Regression()

    def loss(params, frozen, batch, key):
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean(), {}

    found = []
    for accumulate in (1, 2):
        settings = dataclasses.replace(SETTINGS, accumulate=accumulate, warmup=0)
        state, metrics = make_train_step(loss, settings)(
            init_state({"w": jnp.ones(3)}, settings), {}, task.batch(0), step_inputs(settings, 0))
        assert np.abs(state.params["w"] - 1).min() > 0.01
        found.append(np.array([*state.params["w"], metrics["loss"], metrics["gradient_norm"]]))
    np.testing.assert_allclose(*found, rtol=1e-5)
    with pytest.raises(ValueError, match="accumulate=3 does not divide batch_size=4"):
        TrainSettings(steps=1, batch_size=4, accumulate=3)


@pytest.mark.parametrize("name, value, expected", [
    *[(name, value, "a whole number, at least 1") for name in (
        "steps", "batch_size", "accumulate", "save_every", "log_every", "keep") for value in (0, -1, 1.5, True)],
    *[(name, -1, "a whole number, 0 or more") for name in ("warmup", "sample_every", "keep_every", "seed")],
    *[(name, 1.5, "a number from 0 to 1") for name in ("decay", "ema")],
    *[(name, value, "a number above 0") for name in ("learning_rate", "clip") for value in (0.0, float("nan"))],
    ("weight_decay", -0.1, "a number, 0 or more"),
])
def test_a_setting_with_which_no_training_can_run_is_named(name, value, expected):
    with pytest.raises(ValueError, match=f"^{name} is {value}; expected {expected}.$"):
        TrainSettings(**{"steps": 1, name: value})


def test_misspelt_choices_of_the_settings_are_named():
    with pytest.raises(ValueError, match="optimizer 'adamm'.*did you mean 'adamw'"):
        TrainSettings(steps=1, optimizer="adamm")
    with pytest.raises(ValueError, match="on_existing 'resum'.*did you mean 'resume'"):
        TrainSettings(steps=1, on_existing="resum")


def test_sigterm_saves_and_the_same_call_continues(tmp_path):
    class Evicted(Regression):
        def batch(self, step):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    whole = fit("whole", Regression(), SETTINGS, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        fit("evicted", Evicted(), SETTINGS, tmp_path / "evicted")
    assert stop.value.code == 75 and signal.getsignal(signal.SIGTERM) == before
    assert "stopped after step 7 of 12 as asked, and saved" in str(stop.value)
    np.testing.assert_array_equal(fit("again", Regression(), SETTINGS, tmp_path / "evicted")["w"], whole["w"])
    assert losses(tmp_path / "evicted") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_numbers(tmp_path):
    """SIGKILL in the middle of step 10; the checkpoint of step 8 is the newest."""
    whole = fit("whole", Regression(), SETTINGS, tmp_path / "whole")
    script = """
import os, pathlib, signal, sys
from test_training import *
class Killed(Regression):
    def batch(self, step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)
fit("killed", Killed(), SETTINGS, pathlib.Path(sys.argv[1]))
"""
    assert start(script, tmp_path / "killed").wait(timeout=500) == -signal.SIGKILL
    resumed = fit("again", Regression(), SETTINGS, tmp_path / "killed")
    assert whole["w"].tobytes() == resumed["w"].tobytes()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "emptied"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    whole = fit("whole", Regression(), SETTINGS, tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    for file in sorted(newest.rglob("*")):
        if file.is_file() and (damage == "emptied" or file.stat().st_size > 200):
            file.write_bytes(file.read_bytes()[:20] if damage == "truncated" else b"")
    with pytest.warns(UserWarning, match="12 cannot be read .* is kept as damaged-12, and the one before"):
        again = fit("whole", Regression(), SETTINGS, tmp_path)
    np.testing.assert_array_equal(again["w"], whole["w"])
    assert {"8", "12", "damaged-12"} <= {p.name for p in (tmp_path / "checkpoints").iterdir()}


def test_another_runs_checkpoint_is_refused_and_kept(tmp_path):
    class Wider(Regression):
        def init(self, key):
            return {"w": jnp.zeros(5)}

    fit("first", Regression(), SETTINGS, tmp_path)
    with pytest.raises(ValueError, match=r"12 was written by a run of other settings: ema/w is float32 \(3,\) "
                                         r"there and float32 \(5,\) here"):
        fit("wider", Wider(), SETTINGS, tmp_path)
    assert (tmp_path / "checkpoints" / "12").is_dir()


def test_when_nothing_can_be_read_nothing_is_begun(tmp_path):
    fit("first", Regression(), dataclasses.replace(SETTINGS, keep=1), tmp_path)
    for file in (tmp_path / "checkpoints" / "12").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="None of the checkpoints .* can be used"):
        fit("again", Regression(), SETTINGS, tmp_path)


def test_an_infinite_gradient_stops_before_it_is_saved(tmp_path):
    class Cliff(Regression):
        def loss(self, params, frozen, batch, key):
            return jnp.sqrt(jnp.maximum(params["w"][0] - params["w"][0], 0)), {}

    with pytest.raises(FloatingPointError, match="its gradient's norm nan at step 0"):
        fit("cliff", Cliff(), SETTINGS, tmp_path)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


@pytest.mark.slow
def test_a_divided_step_is_compiled_once_and_its_state_stays_in_place(tmp_path):
    run_on_four_devices("""
settings, task, mesh = dataclasses.replace(SETTINGS, optimizer='adamw'), Layered(), make_mesh(fsdp=2, tensor=2)
make = lambda: init_state({'to_q': {'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)}}, settings)
placed = choose_shardings(jax.eval_shape(make), mesh, AxisRules())
state = jax.jit(make, out_shardings=placed)()
loss = lambda p, f, b, k: (((b['x'] @ p['to_q']['kernel'] + p['to_q']['bias']) ** 2).mean(), {})
step = make_train_step(loss, settings, placed)
for i in range(3):
    state, _ = step(state, {}, {'x': np.ones((4, 8), np.float32)}, step_inputs(settings, i))
assert step._cache_size() == 1
assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, placed)))
""", tmp_path)


@pytest.mark.parametrize("problem", [
    OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on "
                                                       "device [os_error_code='28']")])
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(tmp_path, problem):
    whole = fit("whole", Regression(), SETTINGS, tmp_path / "whole")
    save = ocp.CheckpointManager.save

    def full(self, step, *args, **kwargs):
        if step > 4:
            raise problem
        return save(self, step, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(OSError, match="disk of .* full.* of step 4 is intact"):
        patched.setattr(ocp.CheckpointManager, "save", full)
        fit("full", Regression(), SETTINGS, tmp_path / "full")
    np.testing.assert_array_equal(fit("full", Regression(), SETTINGS, tmp_path / "full")["w"], whole["w"])


def test_which_checkpoints_stay_and_what_happens_to_old_ones(tmp_path):
    settings = dataclasses.replace(SETTINGS, save_every=2, keep=1, keep_every=6)
    fit("first", Regression(), settings, tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [6, 12]
    with pytest.raises(FileExistsError, match="resume or overwrite it \\(on_existing\\)"):
        fit("refused", Regression(), dataclasses.replace(settings, on_existing="refuse"), tmp_path)
    fit("anew", Regression(), dataclasses.replace(settings, steps=4, on_existing="overwrite"), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["4"]


def test_another_runs_checkpoints_are_not_continued(tmp_path):
    first, other = {"data": {"folder": "toys"}, "side": 512}, {"data": {"folder": "cars"}, "side": 512}
    fit("first", Regression(), SETTINGS, tmp_path, run=first)
    fit("again", Regression(), SETTINGS, tmp_path, run=first | {"new": 1})  # as of a later version
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another run: data is {'folder': 'toys'} there and {'folder': 'cars'} here"):
        fit("other", Regression(), SETTINGS, tmp_path, run=other)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "checkpoints" / "run.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="run.json.* is damaged; delete it"):
        fit("other", Regression(), SETTINGS, tmp_path, run=other)
    fit("other", Regression(), dataclasses.replace(SETTINGS, on_existing="overwrite"), tmp_path, run=other)


@pytest.mark.slow
def test_muon_makes_every_matrix_orthogonal_and_leaves_the_rest_to_adam():
    key = jax.random.key(0)
    shapes = {"dense": (8, 32), "conv": (3, 3, 4, 16), "layers": (2, 8, 8)}
    params = {name: {"kernel": jax.random.normal(key, shape), "bias": jnp.ones(shape[-1])}
              for name, shape in shapes.items()}
    gradients = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    inputs = step_inputs(TrainSettings(steps=10, learning_rate=1e-2, warmup=0, clip=1e9), 0)
    muon, adam = (make_optimizer(name, inputs) for name in ("muon", "adamw"))
    updates, _ = muon.update(gradients, muon.init(params), params)
    adams, _ = adam.update(gradients, adam.init(params), params)
    for name, shape in shapes.items():
        matrices = updates[name]["kernel"].reshape(-1 if name != "layers" else 2, *(
            (np.prod(shape[:-1]), shape[-1]) if name != "layers" else shape[1:]))
        for matrix in matrices:
            values = jnp.linalg.svd(matrix, compute_uv=False) / (1e-2 * 0.2 * max(matrix.shape) ** 0.5)
            assert 0.5 < values.min() and values.max() < 1.5
        np.testing.assert_array_less(updates[name]["bias"] * gradients[name]["bias"], 0)
        assert not np.allclose(updates[name]["kernel"], adams[name]["kernel"])
    with pytest.raises(ValueError, match="optimizer"):
        TrainSettings(steps=1, optimizer="lion")


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    mesh = AbstractMesh((3, 1, 1), MESH_AXES)
    with pytest.raises(ValueError, match="batch_size=4 cannot be divided over 3 devices"):
        fit("odd", Regression(), SETTINGS, tmp_path, mesh=mesh)


def test_on_a_device_of_known_peak_the_log_says_how_much_is_used(tmp_path, monkeypatch):
    monkeypatch.setitem(platform.PEAKS, "cpu", 1e6)
    fit("used", Regression(), SETTINGS, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    used = [record for record in records if "mfu" in record]
    # x·w of 4 examples and 3 weights, forward and backward: 2 products of 2 · 4 · 3 operations on each run
    for record in used:
        assert record["mfu"] * record["step_seconds"] * 1e6 * len(jax.devices()) == pytest.approx(48)
    assert used and all("step_seconds" in record for record in used)
