"""A model folder's scheduler chooses how it is sampled."""

import json
import shutil

import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.files import write_json
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.schedule import read_schedule, read_solver

DOG, PROMPT = ASSETS / "references" / "dog.png", "a dog on the beach"


@pytest.mark.parametrize("config, expected", [
    ({}, {}),
    ({"_class_name": None}, {}),
    ({"_class_name": "DPMSolverSinglestepScheduler", "timestep_spacing": "trailing"},
     {"name": "dpm_single", "spacing": "trailing", "order": 2}),
    ({"_class_name": "DPMSolverSinglestepScheduler", "timestep_spacing": "leading"},
     {"name": "dpm_single", "spacing": "linspace", "order": 2, "as_diffusers": True}),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "solver_order": 3},
     {"name": "dpm_multi", "spacing": "linspace", "karras": True, "order": 3, "as_diffusers": True}),
    ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1, "solver_type": "bh2",
      "beta_schedule": "scaled_linear", "lower_order_final": False, "final_sigmas_type": "sigma_min"},
     {"name": "dpm_multi", "spacing": "linspace", "order": 2, "as_diffusers": True}),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1,
      "interpolation_type": "linear", "use_karras_sigmas": False, "sample_max_value": 1.0,
      "algorithm_type": "sde-dpmsolver++"},  # what is left of another class changes nothing
     {"name": "euler", "spacing": "leading", "steps_offset": 1}),
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "steps_offset": 1},
     {"name": "euler_ancestral", "spacing": "trailing"}),
    ({"_class_name": "DDIMScheduler", "steps_offset": 1},
     {"name": "ddim", "spacing": "leading", "steps_offset": 1, "as_diffusers": True}),
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
    ({"_class_name": "DPMSolverSinglestepScheduler", "use_karras_sigmas": True}, "with use_karras_sigmas=True"),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "with solver_order=4"),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "lower_order_final": False},
     "with lower_order_final=False"),
    ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1, "rescale_betas_zero_snr": True},
     "with lambda_min_clipped=-5.1"),
    ({"_class_name": "DDIMScheduler", "clip_sample": True}, "DDIMScheduler with clip_sample=True"),
])
def test_what_is_not_supported_is_said(config, what):
    with pytest.warns(UserWarning, match=what):
        assert read_solver(config) == {}


@pytest.mark.parametrize("config, what", [
    ({"timestep_spacing": "even"}, "Unknown timestep_spacing 'even'"),
    ({"timestep_spacing": "leading", "steps_offset": None}, "steps_offset is None; expected a whole number"),
    ({"_class_name": "LCMScheduler", "original_inference_steps": 0}, "original_inference_steps is 0; .* at least 1"),
    ({"_class_name": 5}, "_class_name is 5; expected the name of a scheduler"),
])
def test_values_that_no_scheduler_has(config, what):
    with pytest.raises(ValueError, match=what):
        read_solver({"_class_name": "DDIMScheduler"} | config)


@pytest.mark.parametrize("config, what", [
    ({"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'; expected a whole number, at least 1"),
    ({"beta_schedule": "sigmoid"}, "Unknown beta_schedule 'sigmoid': known are scaled_linear, squaredcos_cap_v2"),
    ({"trained_betas": [0.1, 0.2]}, "trained betas"),
])
def test_noise_that_is_not_stable_diffusions(config, what):
    with pytest.raises(ValueError, match=what):
        read_schedule(config)


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
