"""Fingerprints: every weight counts, and nothing about where a model lies or how it is held in memory."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax.commands import sample
from realcustom_jax.model_files import fingerprint
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.models.context import layers_apart
from realcustom_jax.pipeline import Pipeline

from mini_bundle import train_anew

PARTS = {"text_encoder": "text encoders", "vae": "autoencoder", "unet": "UNet", "adapter": "adapter",
         "image_encoder_dinov2": "image encoders", "image_encoder_siglip": "image encoders"}


def test_every_number_its_precision_its_shape_and_its_name_count():
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}
    others = [{**tensors, "a": np.array([0, 1, 2, 4], np.float32)}, {**tensors, "a": np.arange(4, dtype=np.float16)},
              {**tensors, "b": np.zeros(4, np.float32)}, {"a": tensors["a"], "c": tensors["b"]}, {"a": tensors["a"]}]
    known = fingerprint.of_tensors(tensors)
    assert fingerprint.of_tensors(dict(reversed(tensors.items()))) == known
    assert len({known, *map(fingerprint.of_tensors, others)}) == 6


def test_layers_that_are_stacked_or_apart_are_the_same_layers():
    stacked = {"transformer_blocks": {"ff": {"kernel": jnp.arange(12.0).reshape(3, 2, 2)}}, "bias": jnp.ones(2)}
    known = fingerprint.of_parameters(stacked)
    assert fingerprint.of_parameters(layers_apart(stacked)) == known
    assert fingerprint.of_parameters(jax.tree.map(lambda x: x[::-1], stacked)) != known


def test_a_tokenizer_that_was_used_is_the_same_tokenizer(mini_pipeline):
    """The library notes in it how the last text was padded and cut."""
    tokenizer = mini_pipeline.tokenizer
    tokenizer("a dog")
    before = fingerprint.of_tokenizer(tokenizer)
    tokenizer(["a dog", "a"], padding="max_length", truncation=True, max_length=9)
    assert fingerprint.of_tokenizer(tokenizer) == before


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_was_trained_anew_is_told_from_the_one_before(mini_folder, mini_pipeline, tmp_path, part):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    train_anew(folder, part)
    before, after = mini_pipeline.fingerprints(), Pipeline.load(folder).fingerprints()
    assert {name for name in before if before[name] != after[name]} == {PARTS[part]}


def test_a_model_that_was_copied_is_the_same_and_another_schedule_is_not(mini_folder, mini_pipeline, tmp_path):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    assert Pipeline.load(folder, offload=True).fingerprints() == mini_pipeline.fingerprints()
    assert Pipeline.load(folder, dtype="bfloat16").fingerprints() != mini_pipeline.fingerprints()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}))
    assert Pipeline.load(folder).fingerprints()["UNet"] != mini_pipeline.fingerprints()["UNet"]


def test_a_batch_notices_that_its_model_was_trained_anew_and_not_that_it_was_moved(
        mini_folder, tmp_path, capsys, monkeypatch):
    painted = SimpleNamespace(images=[Image.new("RGB", (8, 8))])
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: painted)  # sampling has tests of its own
    folder, rows = shutil.copytree(mini_folder, tmp_path / "model"), tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(
        {"prompt": "a dog", "image": str(ASSETS / "references" / "dog.png"), "target": "dog"}))

    def make(model):
        code = sample.main(["--batch", str(rows), "--model", str(model), "--steps", "1", "--freeze-mask-step", "1",
                            "--out", str(tmp_path / "out")])
        return code, capsys.readouterr().err.splitlines()[-1]

    assert make(folder) == (0, f"1 made, 0 there already, 0 failed: {tmp_path / 'out'}")
    moved = folder.rename(tmp_path / "moved")
    assert make(moved) == (0, f"0 made, 1 there already, 0 failed: {tmp_path / 'out'}")
    train_anew(moved, "vae")
    code, said = make(moved)
    assert code == 2 and "0001.json holds results of another request" in said and "(other content)" in said
    (moved / "preset.json").write_text('{"scope": 0.5}')
    assert "(other content, preset)" in make(moved)[1]
