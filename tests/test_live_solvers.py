"""Our solvers against diffusers' schedulers, step by step on the same predictions. Needs torch and diffusers."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}), "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}), "lcm": ("LCMScheduler", {}),
    "dpm_multi": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
}
MODULES = {"euler_ancestral": "scheduling_euler_ancestral_discrete", "lcm": "scheduling_lcm"}
CASES = [("ddim", "trailing", False), ("ddim", "leading", False), ("euler", "trailing", False),
         ("euler", "linspace", False), ("euler", "leading", False), ("euler", "trailing", True),
         ("euler", "linspace", True), ("euler_ancestral", "trailing", False), ("euler_ancestral", "linspace", False),
         ("lcm", "trailing", False), ("dpm_multi", "trailing", False), ("dpm_multi", "trailing", True)]


@pytest.mark.parametrize("steps", [1, 4, 8, 25])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name, spacing, karras", CASES)
def test_a_solver_is_diffusers(monkeypatch, name, spacing, karras, prediction, steps):
    cls, options = SCHEDULERS[name]
    offset = 1 if spacing == "leading" else 0
    options = options | {"beta_schedule": "scaled_linear", "prediction_type": prediction}
    if name != "lcm":  # whose scheduler has Stable Diffusion's betas and spacing of its own
        options |= {"beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": spacing, "steps_offset": offset}
    if karras:
        options |= {"use_karras_sigmas": True, "final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, cls)(**options)
    solver = rc.make_solver(name, steps, prediction=prediction, spacing=spacing, steps_offset=offset, karras=karras)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    fresh = rng.standard_normal((steps, 3, 5)).astype(np.float32)
    if name in MODULES:
        drawn = iter(torch.from_numpy(fresh))
        module = importlib.import_module(f"diffusers.schedulers.{MODULES[name]}")
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))

    scheduler.set_timesteps(steps)
    theirs = torch.from_numpy(x)
    if name.startswith("euler"):  # whose samples have a variance that grows with the noise
        theirs = theirs * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(0.6 * torch.sin(3 * seen) + t.float() / 2000, t, theirs).prev_sample
    ours, _ = rc.integrate(lambda x, t: 0.6 * jnp.sin(3 * x) + t.astype(jnp.float32) / 2000, x, solver,
                           None if solver.fresh is None else fresh)
    np.testing.assert_allclose(solver.timesteps, scheduler.timesteps, atol=2e-3)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
