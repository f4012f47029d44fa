"""A diffusers `scheduler_config.json`: the noise that a model was trained with, and the solver that it is sampled with.

Of the solvers those are taken that `solvers.make_solver` has. For another one the configuration is warned of, and the
default is taken, because any solver of the ODE makes a model's pictures, only not the same.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from realcustom_jax.errors import check_choice
from realcustom_jax.model_files.prediction import PREDICTIONS
from realcustom_jax.sampling.solvers import betas

_SCHEDULES = {"scaled_linear": "squared_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' names → ours
_ENDS = (0.00085, 0.012)


def read_schedule(config: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """(betas [T], what the UNet predicts). Raises ValueError for a schedule that is not Stable Diffusion's."""
    kind = config.get("_class_name", "")
    if "FlowMatch" in kind or kind.startswith("EDM") or config.get("trained_betas") is not None:
        raise ValueError(f"this model was made for {kind or 'a schedule'} with another noise than Stable "
                         "Diffusion's (flow matching, EDM, trained betas), which is not supported.")
    # What a file leaves out is as the class that it names has it. Without a class it is as Stable Diffusion has it.
    ours = kind in ("", "LCMScheduler", "TCDScheduler")
    name = config.get("beta_schedule", "scaled_linear" if ours else "linear")
    ends = tuple(config.get(key, value) for key, value in zip(
        ("beta_start", "beta_end"), _ENDS if ours else (1e-4, 0.02), strict=True))
    if name == "linear" or name == "scaled_linear" and not np.allclose(ends, _ENDS):
        missing = [key for key in ("beta_schedule", "beta_start", "beta_end") if key not in config]
        without = f" ({kind}'s own, as the file lacks {', '.join(missing)})" if missing else ""
        raise ValueError(f"beta_schedule, beta_start, beta_end are {name}, {ends[0]:g}, {ends[1]:g}{without}; only "
                         f"Stable Diffusion's scaled_linear, {_ENDS[0]}, {_ENDS[1]} are supported.")
    values = betas(_SCHEDULES.get(name, name), config.get("num_train_timesteps", 1000),
                   terminal_pure_noise=config.get("rescale_betas_zero_snr", False))
    prediction = config.get("prediction_type", "epsilon")
    check_choice("prediction_type", prediction, PREDICTIONS)
    return values, prediction


_SOLVERS = {  # diffusers' classes → our names, and the spacing where the file says none
    "DPMSolverSinglestepScheduler": ("dpm_single", "trailing"),
    "DPMSolverMultistepScheduler": ("dpm_multi", "linspace"),
    "DDIMScheduler": ("ddim", "leading"), "EulerDiscreteScheduler": ("euler", "linspace"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"), "LCMScheduler": ("lcm", "trailing"),
}
_ONLY = {  # settings that change a solver → the values that ours have
    "algorithm_type": ("dpmsolver++",), "solver_type": ("midpoint",), "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,), "use_lu_lambdas": (False,), "use_flow_sigmas": (False,), "thresholding": (False,),
    "interpolation_type": ("linear",), "timestep_type": ("discrete",), "timestep_scaling": (10.0,),
    "sigma_min": (None,), "sigma_max": (None,), "variance_type": (None,),
}


def read_solver(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `solvers.make_solver` that this scheduler stands for; empty, with a warning, where there are
    none, and empty for a configuration that names no scheduler."""
    if not (kind := config.get("_class_name", "")):
        return {}
    other = {key: config[key] for key, known in _ONLY.items() if key in config and config[key] not in known}
    if kind not in _SOLVERS or other:
        what = kind if kind not in _SOLVERS else f"{kind} with {', '.join(f'{k}={v!r}' for k, v in other.items())}"
        warnings.warn(f"the model's scheduler is {what}, which is not supported: it is sampled with dpm_single and "
                      "trailing timesteps instead; choose another one with solver (--solver).", stacklevel=2)
        return {}
    name, spacing = _SOLVERS[kind]
    solver = {"name": name}
    if name == "lcm":
        return solver | {"original_steps": config.get("original_inference_steps", 50)}
    solver["spacing"] = config.get("timestep_spacing", spacing)
    check_choice("timestep_spacing", solver["spacing"], ("trailing", "linspace", "leading"))
    if solver["spacing"] == "leading":
        solver["steps_offset"] = config.get("steps_offset", 0)
    if name in ("euler", "dpm_multi") and config.get("use_karras_sigmas"):
        solver["karras"] = True
    if name.startswith("dpm"):
        solver["order"] = config.get("solver_order", 2)
    return solver
