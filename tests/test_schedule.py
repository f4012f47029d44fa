"""A model folder's scheduler chooses how it is sampled; and the form for few steps that a folder may bring."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
import sample
from realcustom_jax.files import write_json
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.schedule import read_solver
from realcustom_jax.model_files.source import ModelSource

DOG, PROMPT = ASSETS / "references" / "dog.png", "a dog on the beach"


@pytest.mark.parametrize("config, expected", [
    ({}, {}),
    ({"_class_name": "DPMSolverSinglestepScheduler"}, {"name": "dpm_single", "spacing": "trailing", "order": 2}),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "solver_order": 3},
     {"name": "dpm_multi", "spacing": "linspace", "karras": True, "order": 3}),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1,
      "interpolation_type": "linear", "use_karras_sigmas": False, "sample_max_value": 1.0},
     {"name": "euler", "spacing": "leading", "steps_offset": 1}),
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "steps_offset": 1},
     {"name": "euler_ancestral", "spacing": "trailing"}),
    ({"_class_name": "DDIMScheduler", "steps_offset": 1}, {"name": "ddim", "spacing": "leading", "steps_offset": 1}),
    ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, {"name": "lcm", "original_steps": 100}),
])
def test_schedulers_are_solvers(config, expected, recwarn):
    assert read_solver(config) == expected and not recwarn.list
    rc.make_solver(**expected, steps=4)


@pytest.mark.parametrize("config, what", [
    ({"_class_name": "PNDMScheduler"}, "is PNDMScheduler, which is not supported: it is sampled with dpm_single"),
    ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler"),
    ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
     "DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver\\+\\+'"),
    ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "with use_beta_sigmas=True"),
])
def test_what_is_not_supported_is_said(config, what):
    with pytest.warns(UserWarning, match=what):
        assert read_solver(config) == {}


def test_spacings_that_are_none():
    with pytest.raises(ValueError, match="Unknown timestep_spacing 'even'"):
        read_solver({"_class_name": "DDIMScheduler", "timestep_spacing": "even"})


@pytest.fixture
def folder(mini_folder, tmp_path):
    return shutil.copytree(mini_folder, tmp_path / "model")


@pytest.mark.slow
def test_a_pipeline_samples_as_its_scheduler_says(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {
        "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1,
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    write_json(file, config)
    pipeline = rc.Pipeline.load(folder)
    expected = rc.make_solver("euler", 5, spacing="leading", steps_offset=1, betas=pipeline.betas,
                              prediction=pipeline.prediction)
    for name in (None, "euler"):
        assert np.array_equal(pipeline.make_solver(5, name).timesteps, expected.timesteps)
    other = pipeline.make_solver(5, "ddim")
    assert np.array_equal(other.timesteps, rc.make_solver("ddim", 5, spacing="trailing").timesteps)
    released = rc.Pipeline.load(folder, preset={"solver": "dpm_single", "steps": 3})
    assert len(released(DOG, PROMPT, "dog").masks) == 3


# -------------------- few steps


@pytest.fixture
def with_few_steps(folder):
    """The folder with a LoRA that adds one to the first convolution, for 2 steps of ddim without guidance."""
    kernel = ModelSource.open(folder).tensors("unet")["conv_in.weight"]
    up, down = np.ones((len(kernel), 1, 1, 1), np.float32), np.ones((1, *kernel.shape[1:]), np.float32)
    bundle.save_few_steps(folder, {"steps": 2, "solver": "ddim", "guidance_scale": 1.0, "freeze_mask_step": 1},
                          {"unet.conv_in.lora_A.weight": down, "unet.conv_in.lora_B.weight": up})
    return folder


@pytest.mark.slow
def test_the_form_for_few_steps(with_few_steps):
    plain, few = rc.Pipeline.load(with_few_steps), rc.Pipeline.load(with_few_steps, few_steps=True)
    assert (few.preset.steps, few.preset.solver, few.preset.guidance_scale) == (2, "ddim", 1.0)
    assert (plain.preset.steps, plain.preset.solver) == (25, None)
    before, after = (weights.to_torch(pipeline.unet.params)["conv_in.weight"] for pipeline in (plain, few))
    np.testing.assert_allclose(after, before + 1, atol=1e-6)
    result = few(DOG, PROMPT, "dog")
    assert len(result.masks) == 2 and np.array_equal(result.masks[0], result.masks[1])
    assert len(few(DOG, PROMPT, "dog", steps=3).masks) == 3


def test_a_model_without_one(folder, with_few_steps):
    shutil.rmtree(with_few_steps / "few_steps")
    with pytest.raises(FileNotFoundError, match="brings no form for few steps .*--lora"):
        rc.Pipeline.load(folder, few_steps=True)
    with pytest.raises(FileNotFoundError, match="brings no form for few steps"):
        path = folder / "single.safetensors"
        safetensors.numpy.save_file({"x": np.zeros(1)}, path)
        ModelSource.open(path).few_steps()


@pytest.mark.parametrize("steps, used", [("2", True), ("1", True), ("3", False), (None, False)])
def test_sample_uses_it_for_as_few_steps(with_few_steps, monkeypatch, tmp_path, capsys, steps, used):
    loaded = {}

    def load(model, adapter, **options):
        loaded.update(options)
        raise ValueError("stop")

    monkeypatch.setattr(rc.Pipeline, "load", load)
    arguments = ["--model", str(with_few_steps), "--out", str(tmp_path / "out")]
    assert sample.main(arguments + (["--steps", steps] if steps else [])) == 2
    assert loaded["few_steps"] is used
