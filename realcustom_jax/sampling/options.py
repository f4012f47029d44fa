"""What a call of a pipeline may ask of the sampler, and the noise that its seed stands for."""

import math
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.errors import check_choice
from realcustom_jax.sampling.sampler import BRANCHES, check_freeze
from realcustom_jax.sampling.solvers import SOLVERS, Solver


def check_options(*, seed: int = 0, num_images: int = 1, steps: int = 25, guidance_scale: float | None = None,
                  scope: float | None = None, freeze_mask_step: int | None = None, branches: str = "fused",
                  solver: str = "dpm_single", vision_scale: float = 1.0) -> None:
    """Raises ValueError for options of `Pipeline.__call__` that no model takes; None is as the preset says."""
    if not (isinstance(seed, Integral) and 0 <= seed < 2**32):
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to {2**32 - 1}.")
    if not (isinstance(num_images, Integral) and num_images >= 1):
        raise ValueError(f"num_images is {num_images}; expected a whole number, at least 1.")
    if not (isinstance(steps, Integral) and steps >= 1):
        raise ValueError(f"steps is {steps}; expected a whole number, at least 1.")
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}; expected a finite number.")
    if freeze_mask_step is not None:
        check_freeze(freeze_mask_step)
    check_choice("branches", branches, BRANCHES)
    check_choice("solver", solver, SOLVERS)
    if not np.isfinite(np.asarray(vision_scale, np.float64)).all():
        raise ValueError(f"vision_scale is {vision_scale}; expected a finite number, or one for each reference.")
    if scope is not None and not 0 < scope <= 1:
        raise ValueError(f"scope is {scope}; expected the share of the picture that a mask covers, in (0, 1].")


def seeded_noise(seed: int, count: int, shape: tuple[int, ...]) -> jax.Array:
    """The initial noise [count, *shape] of a seed; image i has the same whatever the count is."""
    return jnp.stack([jax.random.normal(key, shape) for key in _keys(seed, count)])


def noise_of_steps(solver: Solver, seed: int, count: int, shape: tuple[int, ...]) -> jax.Array | None:
    """The noise [steps, count, *shape] of a seed for a solver that draws some in each step; None for others."""
    if solver.fresh is None:
        return None
    return jnp.stack([
        jnp.stack([jax.random.normal(jax.random.fold_in(key, step), shape) for key in _keys(seed, count)])
        for step in range(1, solver.steps + 1)])


def given_noise(latents, shape: tuple[int, ...]) -> jax.Array:
    """The initial noise that a caller gives. Raises ValueError for another shape."""
    if latents.shape != shape:
        raise ValueError(f"latents have shape {latents.shape}; expected {shape}.")
    return jnp.asarray(latents, jnp.float32)


def _keys(seed: int, count: int) -> list[jax.Array]:
    return [jax.random.fold_in(jax.random.key(seed), i) for i in range(count)]
