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
    "dpm_single": ("DPMSolverSinglestepScheduler", {}),
}
ENDS = {"beta_start": 0.00085, "beta_end": 0.012}
MODULES = {"euler_ancestral": "scheduling_euler_ancestral_discrete", "lcm": "scheduling_lcm"}
CASES = [("ddim", "trailing", False), ("ddim", "leading", False), ("euler", "trailing", False),
         ("euler", "linspace", False), ("euler", "leading", False), ("euler", "trailing", True),
         ("euler", "linspace", True), ("euler_ancestral", "trailing", False), ("euler_ancestral", "linspace", False),
         ("lcm", "trailing", False), ("dpm_multi", "trailing", False), ("dpm_multi", "trailing", True)]




def compare(monkeypatch, name, steps, options, *, exactly=2e-3, **ours):
    """Our solver and diffusers' scheduler, from one noise and with one model."""
    scheduler = getattr(diffusers, SCHEDULERS[name][0])(beta_schedule="scaled_linear", **options)
    solver = rc.make_solver(name, steps, prediction=options["prediction_type"], **ours)
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
    np.testing.assert_allclose(solver.timesteps, scheduler.timesteps, atol=exactly)
    return np.abs(ours - theirs.numpy()).max() / np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("steps", [1, 4, 8, 16, 25])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name, spacing, karras", CASES)
def test_a_solver_is_diffusers(monkeypatch, name, spacing, karras, prediction, steps):
    if steps == 16 and name in ("ddim", "dpm_multi") and not karras:
        pytest.skip("the released schedules round halves the other way")
    offset = 1 if spacing == "leading" else 0
    options = SCHEDULERS[name][1] | {"prediction_type": prediction}
    if name != "lcm":  # whose scheduler has Stable Diffusion's betas and spacing of its own
        options |= ENDS | {"timestep_spacing": spacing, "steps_offset": offset}
    if karras:
        options |= {"use_karras_sigmas": True, "final_sigmas_type": "zero"}
    assert compare(monkeypatch, name, steps, options, spacing=spacing, steps_offset=offset, karras=karras) < 1e-4


@pytest.mark.parametrize("steps", [1, 3, 7, 16, 25])
@pytest.mark.parametrize("name, spacing, order, karras", [
    ("ddim", "trailing", 2, False), ("ddim", "leading", 2, False), ("ddim", "linspace", 2, False),
    *(("dpm_multi", spacing, order, False) for spacing in ("trailing", "leading", "linspace") for order in (1, 2, 3)),
    ("dpm_multi", "leading", 3, True), *(("dpm_single", "linspace", order, False) for order in (1, 2, 3))])
def test_a_scheduler_of_a_folder_is_diffusers(monkeypatch, name, spacing, order, karras, steps):
    """With the defaults that files have: DPM-Solver's last noise level is zero."""
    options = ENDS | {"prediction_type": "epsilon"}
    options |= {"clip_sample": False} if name == "ddim" else {"solver_order": order, "use_karras_sigmas": karras}
    if name != "dpm_single":
        options["timestep_spacing"] = spacing
    given = {"spacing": spacing, "order": order, "karras": karras, "as_diffusers": True}
    assert compare(monkeypatch, name, steps, options, **given) < 1e-4


@pytest.mark.parametrize("steps", [2, 4, 25])
@pytest.mark.parametrize("name, karras", [("euler", False), ("euler", True), ("euler_ancestral", False),
                                          ("dpm_multi", False), ("ddim", False)])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_from_pure_noise_a_solver_is_diffusers(monkeypatch, name, karras, spacing, steps):
    options = ENDS | {"prediction_type": "v_prediction", "timestep_spacing": spacing, "rescale_betas_zero_snr": True}
    options |= {"clip_sample": False} if name == "ddim" else {"use_karras_sigmas": True} if karras else {}
    apart = compare(monkeypatch, name, steps, options, spacing=spacing, karras=karras, as_diffusers=True,
                    betas=rc.betas(terminal_pure_noise=True))
    assert apart < 2e-3  # theirs subtract numbers 4096 times as large as the sample, in float32
