"""What a run is about, compared before anything is built: the pictures, the settings, the model's kind."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.training.identity import RunIdentity, has_checkpoints
from realcustom_jax.training.miniature import stages
from realcustom_jax.training.published import pictures as training_pictures
from realcustom_jax.training.published import run as published

from test_config import load


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path, lines = tmp_path_factory.mktemp("toys"), []
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)).save(path / f"{i}.png")
        lines.append({"target": f"{i}.png", "caption": "a dog", "word": "dog", "box": [1, 1, 60, 60]})
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


class Built(Exception):
    """Something is built: all comparisons were passed."""


@pytest.fixture
def go_on(mini_folder, pictures, tmp_path, monkeypatch):
    """Continues a run of these pictures with some keys changed, up to where something would be built."""
    from test_published import get_config

    def build(*_, **__):
        raise Built

    def change(**changes):
        config = get_config("mini", mini_folder, pictures)
        for key, value in changes.items():
            config.update_from_flattened_dict({f"train.{key.replace('__', '.')}": value})
        return config

    check, checkpoints = RunIdentity.check, tmp_path / "run" / "checkpoints"

    def begin(self, at, on_existing):
        at.joinpath("1").mkdir(parents=True)
        self.note(at)

    monkeypatch.setattr(training_pictures, "build", build)
    with monkeypatch.context() as patched, pytest.raises(Built):
        patched.setattr(RunIdentity, "check", begin)
        published.train_adapter(change(), tmp_path / "run")
    assert has_checkpoints(checkpoints) and RunIdentity.check is check
    return lambda **changes: published.train_adapter(change(**changes), tmp_path / "run")


@pytest.mark.parametrize("changes, words", [
    ({"optimization__seed": 1}, "seed is 0 there and 1 here"),
    ({"optimization__batch_size": 4}, "batch_size is 2 there and 4 here"),
    ({"optimization__optimizer": "muon"}, "optimizer is 'adamw' there and 'muon' here"),
    ({"dtype": "bfloat16"}, "dtype is 'float32' there and 'bfloat16' here"), ({"side": 192}, "side is 64 there"),
    ({"snr_limit": 5.0}, "snr_limit is 0.0 there and 5.0 here"), ({"curriculum__start": 0.2}, "curriculum is "),
    ({"data__seed": 3}, "data is {'seed': 0} there and {'seed': 3} here"),
    ({"fresh__variant": "shallow"}, "fresh is {'variant': '.*'} there and {'variant': 'shallow'} here")])
def test_what_makes_another_run_is_refused_before_anything_is_built(go_on, changes, words):
    with pytest.raises(ValueError, match=f"belongs to another run: {words}"):
        go_on(**changes)


def test_a_held_out_loss_without_held_out_pairs_is_refused_before_anything_is_built(go_on):
    with pytest.raises(ValueError, match="evaluate_every is 2, and no pairs are held out"):
        go_on(optimization__evaluate_every=2)


def test_what_may_change_is_taken(go_on):
    with pytest.raises(Built):
        go_on(optimization__learning_rate=3e-4, optimization__steps=9, optimization__warmup=3, optimization__keep=5,
              optimization__accumulate=2, optimization__save_every=7, data__max_broken=2, precomputed=True)


def test_rows_that_are_gone_name_the_data(go_on, pictures, tmp_path):
    fewer = shutil.copytree(pictures, tmp_path / "fewer")
    lines = (fewer / "manifest.jsonl").read_text().splitlines()
    (fewer / "manifest.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(ValueError, match="another run: data is {'content': '[0-9a-f]*'} there and {'content': '"):
        go_on(data__folder=str(fewer))


def test_another_picture_under_the_same_name_names_the_data(go_on, pictures, tmp_path):
    other = shutil.copytree(pictures, tmp_path / "other")
    Image.new("RGB", (64, 64), "red").save(other / "1.png")
    with pytest.raises(ValueError, match="belongs to another run: data is "):
        go_on(data__folder=str(other))


def test_the_same_pictures_at_another_place_are_the_same(go_on, pictures, tmp_path):
    with pytest.raises(Built):
        go_on(data__folder=str(shutil.copytree(pictures, tmp_path / "moved")))


def test_what_is_there_may_be_refused_or_overwritten(go_on):
    with pytest.raises(FileExistsError, match="holds checkpoints of an earlier run: resume or overwrite it"):
        go_on(on_existing="refuse")
    with pytest.raises(Built):
        go_on(on_existing="overwrite", optimization__seed=1)


@pytest.mark.parametrize("stage, key, value, refused", [
    ("base", ("prediction",), "epsilon", True), ("base", ("models", "unet", "attention_head_dim"), [8, 8, 8], True),
    ("base", ("seed",), 1, True), ("base", ("data", "poses"), 2, True), ("judge", ("prediction",), "epsilon", False),
    ("encoders", ("optimization", "encoders", "accumulate"), 2, True),
    ("encoders", ("optimization", "encoders", "batch_size"), 64, True),
    ("encoders", ("optimization", "encoders", "learning_rate"), 1e-3, False)])
def test_likewise_of_a_stage_of_the_miniature(tmp_path, monkeypatch, stage, key, value, refused):
    def build(*_, **__):
        raise Built

    def begin(self, at, on_existing):
        at.joinpath("1").mkdir(parents=True)
        self.note(at)

    def go_on():
        stages.run(_Config(values), tmp_path)

    class _Config(dict):
        to_dict = dict.copy

    values = load("mini") | {"stage": stage}
    monkeypatch.setattr(stages, "_bank", build)
    with monkeypatch.context() as patched, pytest.raises(Built):
        patched.setattr(RunIdentity, "check", begin)
        go_on()
    within = values
    for name in key[:-1]:
        within = within[name]
    within[key[-1]] = value
    with pytest.raises(ValueError if refused else Built, match=key[0] if refused and len(key) == 1 else None):
        go_on()
