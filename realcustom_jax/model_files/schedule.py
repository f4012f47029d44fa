"""A diffusers `scheduler_config.json`: the noise that a model was trained with, and the solver that it is sampled with.

Of the solvers those are taken that `solvers.make_solver` has. For another one the configuration is warned of, and the
default is taken, because any solver of the ODE makes a model's pictures, only not the same.
"""

import math
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from realcustom_jax.errors import check_choice, quoted
from realcustom_jax.model_files.prediction import PREDICTIONS
from realcustom_jax.sampling.solvers import betas

_SCHEDULES = {"scaled_linear": "squared_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' names → ours
_ENDS = (0.00085, 0.012)


def read_schedule(config: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """(betas [T], what the UNet predicts). Raises ValueError for a schedule that is not Stable Diffusion's."""
    kind = _kind(config)
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
    check_choice("beta_schedule", name, _SCHEDULES)
    values = betas(_SCHEDULES[name], _whole(config, "num_train_timesteps", 1000, least=1),
                   terminal_pure_noise=config.get("rescale_betas_zero_snr", False))
    prediction = config.get("prediction_type", "epsilon")
    check_choice("prediction_type", prediction, PREDICTIONS)
    return values, prediction


def _kind(config: Mapping[str, Any]) -> str:
    """The name of the class; empty where there is none."""
    kind = config.get("_class_name") or ""
    if not isinstance(kind, str):
        raise ValueError(f"_class_name is {quoted(kind)}; expected the name of a scheduler of diffusers.")
    return kind


def _whole(config: Mapping[str, Any], key: str, default: int, *, least: int = 0) -> int:
    value = config.get(key, default)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key} is {quoted(value)}; expected a whole number, at least {least}.")
    return value


_DPM = {"algorithm_type": ("dpmsolver++", "deis"), "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "solver_order": (1, 2, 3), "thresholding": (False,), "variance_type": (None,),
        "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,), "use_flow_sigmas": (False,)}
# diffusers' classes → our names, the spacing where the file says none, and of the settings that change the class's
# pictures those values that ours have. What another class left in a file changes nothing.
_SOLVERS = {
    "DPMSolverSinglestepScheduler": ("dpm_single", "linspace", _DPM | {"use_karras_sigmas": (False,)}),
    "DPMSolverMultistepScheduler": ("dpm_multi", "linspace", _DPM | {"use_lu_lambdas": (False,)}),
    # DDIM's class clips unless the file says no, which nobody wants of latents: only a file that says yes means it.
    "DDIMScheduler": ("ddim", "leading", {"clip_sample": (False,), "thresholding": (False,)}),
    "EulerDiscreteScheduler": ("euler", "linspace", {
        "interpolation_type": ("linear",), "timestep_type": ("discrete",), "sigma_min": (None,), "sigma_max": (None,),
        "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,)}),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace", {}),
    "LCMScheduler": ("lcm", "leading", {
        "clip_sample": (False,), "thresholding": (False,), "timestep_scaling": (10.0,)}),
}
_LEAST_LAMBDA = -2.7  # ln(α / σ) at the end of Stable Diffusion's schedule


def read_solver(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `solvers.make_solver` that this scheduler stands for; empty, with a warning, where there are
    none, and empty for a configuration that names no scheduler. Raises ValueError for values that no scheduler has."""
    if not (kind := _kind(config)):
        return {}
    name, spacing, known = _SOLVERS.get(kind, ("", "", {}))
    other = {key: config[key] for key, values in known.items() if config.get(key) not in (*values, None)}
    if name.startswith("dpm"):
        other |= _other_of_dpm(name, config)
    if not name or other:
        what = f"{kind} with {', '.join(f'{k}={v!r}' for k, v in other.items())}" if name else kind
        warnings.warn(f"the model's scheduler is {what}, which is not supported: it is sampled with dpm_single and "
                      "trailing timesteps instead; choose another one with solver (--solver).", stacklevel=2)
        return {}
    solver = {"name": name}
    if name == "lcm":
        return solver | {"original_steps": _whole(config, "original_inference_steps", 50, least=1)}
    solver["spacing"] = config.get("timestep_spacing", spacing)
    check_choice("timestep_spacing", solver["spacing"], ("trailing", "linspace", "leading"))
    if name.startswith("dpm"):
        solver["order"] = config.get("solver_order") or 2
    if name == "dpm_single":
        # diffusers' class has no spacing but linspace. A file that says trailing is the miniature's or one like it, and
        # means the original's solver.
        return solver if solver["spacing"] == "trailing" else solver | {"spacing": "linspace", "as_diffusers": True}
    if solver["spacing"] == "leading":
        solver["steps_offset"] = _whole(config, "steps_offset", 0)
    if name in ("euler", "dpm_multi") and config.get("use_karras_sigmas"):
        solver["karras"] = True
    return solver | ({} if name.startswith("euler") else {"as_diffusers": True})


def _other_of_dpm(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a DPM solver those that count in some cases only, and do here."""
    other = {}
    clipped = config.get("lambda_min_clipped")
    if clipped is not None and (clipped > _LEAST_LAMBDA or clipped > -math.inf and (
            config.get("rescale_betas_zero_snr") or config.get("beta_schedule") != "scaled_linear")):
        other["lambda_min_clipped"] = clipped
    if name == "dpm_multi" and config.get("solver_order") == 3 and config.get("lower_order_final") is False:
        other["lower_order_final"] = False  # which of a lower order only concerns the last step, after the picture
    if name == "dpm_multi" and config.get("use_karras_sigmas") and config.get("beta_schedule") == "squaredcos_cap_v2":
        other["use_karras_sigmas"] = True  # whose timesteps are then cut instead of rounded
    return other
