"""A model's form for a few steps: its folder's few_steps/, a LoRA and choices of its own."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax.commands import sample
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import merge_unet, split_unet
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.low_rank import init_low_rank, low_rank_tensors, merge_low_rank

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CHOICES = {"steps": 4, "solver": "ddim", "guidance_scale": 1.0, "freeze_mask_step": 2, "branches": "sequential"}
DOG = np.full((16, 16, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def low_rank(mini_pipeline):
    fresh = init_low_rank(jax.random.key(0), split_unet(mini_pipeline.unet.params)[1], 2, lambda path: True)
    rng = np.random.default_rng(0)
    return fresh | {"B": jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), fresh["B"])}


@pytest.fixture(scope="module")
def folder(mini_folder, low_rank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "model"
    shutil.copytree(mini_folder, folder)
    bundle.save_few_steps(folder, CHOICES, low_rank_tensors(low_rank))
    return folder


@pytest.fixture(scope="module")
def few(folder):
    return Pipeline.load(folder, few_steps=True)


@pytest.mark.slow
def test_the_file_gives_the_student_that_was_trained(few, mini_pipeline, low_rank):
    """Every layer, linear or convolution, as training merged it."""
    vision, base = split_unet(mini_pipeline.unet.params)
    student = merge_unet(vision, merge_low_rank(base, low_rank))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), few.unet.params, student)
    rng, (height, width, channels) = np.random.default_rng(1), few.latent_shape()
    x = jnp.asarray(rng.normal(size=(1, height, width, channels)), jnp.float32)
    text = few.encode_prompts("a dog on the beach")
    options = {"pooled": text.pooled, "time_ids": text.time_ids}
    ours, trained = (few.unet.module.apply({"params": params}, x, 500, text.text, **options).noise
                     for params in (few.unet.params, student))
    np.testing.assert_allclose(ours, trained, atol=1e-5)
    before = mini_pipeline.unet.module.apply({"params": mini_pipeline.unet.params}, x, 500, text.text, **options).noise
    assert np.abs(before - trained).max() > 1e-2


@pytest.mark.slow
def test_its_choices_go_before_the_models_and_a_calls_own_before_them(few, folder, mini_pipeline):
    assert few.preset == dataclasses.replace(mini_pipeline.preset, **CHOICES)
    made = few(DOG, "a dog on the beach", "dog", seed=3)
    said = Pipeline.load(folder, loras=[folder / "few_steps/lora.safetensors"])(
        DOG, "a dog on the beach", "dog", seed=3, **CHOICES)
    np.testing.assert_array_equal(made.latents, said.latents)
    assert len(made.masks) == 4
    assert len(few(DOG, "a dog on the beach", "dog", steps=2).masks) == 2


def test_the_model_itself_stays_as_it_is(folder, mini_pipeline):
    plain = Pipeline.load(folder)
    assert plain.preset == mini_pipeline.preset and plain.preset.steps == 25
    jax.tree.map(np.testing.assert_array_equal, plain.unet.params, mini_pipeline.unet.params)


@pytest.mark.parametrize("arguments, taken", [
    (["--steps", "4"], True), (["--steps", "2"], True), (["--steps", "5"], False), ([], False),
    (["--few-steps"], True), (["--steps", "8", "--few-steps"], True), (["--steps", "4", "--no-few-steps"], False),
    (["--steps", "4", "--preset", "paper"], False), (["--steps", "4", "--adapter", "other"], False),
    (["--steps", "4", "--unet", "other"], False),
])
def test_the_command_takes_it_for_as_few_steps(folder, arguments, taken):
    assert sample._suffices_few_steps(sample.parse(["--model", str(folder), *arguments])) is taken


@pytest.mark.slow
def test_the_command_says_so_in_one_line(folder, tmp_path, capsys):
    for arguments, steps in (["--steps", "4"], 4), (["--steps", "4", "--no-few-steps"], None):
        assert sample.main(["--model", str(folder), "--out", str(tmp_path / "out"), *arguments]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "few steps" in line]
        assert said == ([] if steps is None else [
            "For 4 steps its form for few steps is used: solver ddim, guidance 1, where you say nothing else; "
            "--no-few-steps takes the model itself."])


def test_without_one_few_steps_are_the_models_own(mini_folder):
    assert sample._suffices_few_steps(sample.parse(["--model", str(mini_folder), "--steps", "4"])) is False
    with pytest.raises(FileNotFoundError, match="brings no form for few steps .*--lora"):
        Pipeline.load(mini_folder, few_steps=True)


def test_a_single_file_brings_none(tmp_path):
    file = tmp_path / "single.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(1)}, file)
    with pytest.raises(FileNotFoundError, match="brings no form for few steps"):
        ModelSource.open(file).few_steps()


@pytest.mark.parametrize("choices, message", [
    ({"solver": "ddim"}, "few_steps/preset.json: steps is missing"),
    ({"steps": 0}, "few_steps/preset.json: steps is 0; expected a whole number"),
    ({"steps": 4, "solvr": "ddim"}, "few_steps/preset.json: .*did you mean 'solver'"),
    (None, "preset.json does not exist"),
])
def test_a_damaged_one_is_named(folder, tmp_path, choices, message):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "few_steps" / "preset.json"
    file.unlink() if choices is None else file.write_text(json.dumps(choices))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ModelSource.open(tmp_path / "model").few_steps()
