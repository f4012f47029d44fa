"""The training loop on a tiny regression: resume, averaging, and the stop on a loss that is not finite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax.training import TrainSettings, fit, init_state, make_optimizer, make_train_step

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
        return Image.new("RGB", (4, 4))


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
    train_step = make_train_step(task.loss, TrainSettings(steps=300, learning_rate=0.05, warmup=5))
    for step in range(300):
        state, _ = train_step(state, task.frozen, task.batch(step))
    np.testing.assert_allclose(state.params["w"], 1, atol=0.05)
    np.testing.assert_allclose(state.ema["w"], 1, atol=0.15)
    assert train_step._cache_size() == 1


def test_devices_share_the_batch(tmp_path):
    fit("one", Regression(), SETTINGS, tmp_path / "one")
    script = "import sys, pathlib, jax; from test_training import *; assert jax.device_count() == 4;" \
             "fit('four', Regression(), SETTINGS, pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "four")], check=True, env=environment,
                   cwd=Path(__file__).parent)
    one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
    assert one.keys() == four.keys() == set(range(12))
    np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=1e-5)


def test_muon_makes_every_matrix_orthogonal_and_leaves_the_rest_to_adam():
    key = jax.random.key(0)
    shapes = {"dense": (8, 32), "conv": (3, 3, 4, 16), "layers": (2, 8, 8)}
    params = {name: {"kernel": jax.random.normal(key, shape), "bias": jnp.ones(shape[-1])}
              for name, shape in shapes.items()}
    gradients = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    muon, adam = (make_optimizer(TrainSettings(steps=10, learning_rate=1e-2, warmup=0, clip=1e9, optimizer=name))
                  for name in ("muon", "adamw"))
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
        make_optimizer(TrainSettings(steps=1, optimizer="lion"))


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=4 cannot be divided over 3 devices"):
        fit("odd", Regression(), SETTINGS, tmp_path)
