"""What a call of a pipeline may ask of the sampler, and the noise that its seed stands for."""

import functools
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.devices.programs import jit_kept
from realcustom_jax.errors import check_choice, quoted
from realcustom_jax.models.context import check_blocks
from realcustom_jax.sampling.guidance import MODES, Guidance
from realcustom_jax.sampling.lanes import VisionScale
from realcustom_jax.sampling.sampler import BRANCHES, check_freeze
from realcustom_jax.sampling.solvers import SOLVERS, Solver

SHARED_REFERENCES = ("whole", "cropped")
"""What several phrases of one reference are given: all of them the whole, or each its part (module `locating`)."""


def check_options(*, seed: int = 0, num_images: int = 1, steps: int | None = None, guidance_scale: float | None = None,
                  scope: float | None = None, freeze_mask_step: int | None = None, branches: str | None = None,
                  solver: str | None = None, vision_scale: VisionScale = 1.0, guidance_mode: str = "none_direct",
                  text_guidance: float | None = None, rescale: float = 0.0, strength: float | None = None,
                  shared_reference: str | None = None, masks: Any = None, init_image: Any = None,
                  mask_image: Any = None) -> None:
    """Raises ValueError for options of `Pipeline.__call__` that no model takes; None is as the preset says. Of the
    pictures only which of them are given."""
    if not (isinstance(seed, Integral) and 0 <= seed < 2**32):
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to {2**32 - 1}.")
    if not (isinstance(num_images, Integral) and num_images >= 1):
        raise ValueError(f"num_images is {num_images}; expected a whole number, at least 1.")
    if steps is not None and not (isinstance(steps, Integral) and steps >= 1):
        raise ValueError(f"steps is {steps}; expected a whole number, at least 1.")
    if guidance_scale is not None and not _is_number(guidance_scale):
        raise ValueError(f"guidance_scale is {quoted(guidance_scale)}; expected a finite number.")
    if freeze_mask_step is not None:
        check_freeze(freeze_mask_step)
    if branches is not None:
        check_choice("branches", branches, BRANCHES)
    if solver is not None:
        check_choice("solver", solver, SOLVERS)
    if shared_reference is not None:
        check_choice("shared_reference", shared_reference, SHARED_REFERENCES)
    for scale in vision_scale.values() if isinstance(vision_scale, Mapping) else [vision_scale]:
        if not _finite(scale):
            raise ValueError(f"vision_scale is {quoted(vision_scale)}; expected a finite number, one for each "
                             "reference, or either of them for each of some blocks.")
    check_blocks(vision_scale)
    check_choice("guidance_mode", guidance_mode, MODES)
    cascade = Guidance(guidance_mode).needs_text
    if text_guidance is not None and not (cascade and _is_number(text_guidance)):
        raise ValueError(f"text_guidance is {quoted(text_guidance)}; " + (
            "expected a finite number." if cascade else
            f"the guidance mode {guidance_mode!r} does not use it, choose none, naive or naive_global."))
    if cascade and guidance_scale == 1 and text_guidance in (None, 1):
        raise ValueError(f"guidance_scale is 1, which is no guidance, but the mode {guidance_mode!r} "
                         "guides; give another scale, one of the text (text_guidance), or leave the mode out.")
    if not (_is_number(rescale) and 0 <= rescale <= 1):
        raise ValueError(f"rescale is {quoted(rescale)}; expected a share, from 0 (the guided prediction as it is) to "
                         "1.")
    if rescale and not guidance_mode.startswith("naive"):
        raise ValueError(f"rescale is {rescale}, but the guidance mode {guidance_mode!r} does not use it; choose "
                         "naive, naive_global or naive_global_direct.")
    if strength is not None and not (_is_number(strength) and 0 < strength <= 1):
        raise ValueError(f"strength is {quoted(strength)}; expected the share of the steps that init_image is changed "
                         "by, above 0 (hardly at all) up to 1 (made anew).")
    if init_image is None and (strength is not None or mask_image is not None):
        raise ValueError(f"{'strength' if mask_image is None else 'mask_image'} is given without init_image, the "
                         "picture that it is about; give that too.")
    if scope is not None and not (_is_number(scope) and 0 < scope <= 1):
        raise ValueError(f"scope is {quoted(scope)}; expected the share of the picture that a mask covers, in (0, 1].")


def skipped_steps(steps: int, strength: float | None, *, begins: bool, masked: bool) -> int:
    """How many of the first steps are left out where a picture `begins` the call and is changed with this strength in
    (0, 1]: all but int(steps · strength) of them, as diffusers has it, and at least one is made. None: the strength is
    0.8 where all of a picture is changed, and 1 where a part of it is painted anew (`masked`) or there is none."""
    if strength is None:
        strength = 0.8 if begins and not masked else 1.0
    return steps - max(1, min(int(steps * strength), steps))


def seeded_noise(seed: int, count: int, shape: tuple[int, ...]) -> jax.Array:
    """The initial noise [count, *shape] of a seed; image i has the same whatever the count is."""
    return _normal(np.uint32(seed), count, None, shape)


def noise_of_steps(solver: Solver, seed: int, count: int, shape: tuple[int, ...]) -> jax.Array | None:
    """The noise [steps, count, *shape] of a seed for a solver that draws some in each step; None for others."""
    if solver.fresh is None:
        return None
    return _normal(np.uint32(seed), count, solver.steps, shape)


def given_noise(latents, shape: tuple[int, ...]) -> jax.Array:
    """The initial noise that a caller gives. Raises ValueError for another shape, and what is no finite number."""
    if np.shape(latents) != shape:
        raise ValueError(f"latents have shape {np.shape(latents)}; expected {shape}.")
    if not _finite(latents):
        raise ValueError("latents hold what is no finite number; expected noise of unit variance.")
    return jnp.asarray(latents, jnp.float32)


@functools.partial(jit_kept, static_argnums=(1, 2, 3))
def _normal(seed: jax.Array, count: int, steps: int | None, shape: tuple[int, ...]) -> jax.Array:
    """Unit normal [count, *shape] of a key for each image; or [steps, count, *shape] of a key for each of its steps,
    which are counted from 1."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))
    of_images = jax.vmap(lambda key: jax.random.normal(key, shape))
    if steps is None:
        return of_images(keys)
    of_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return jax.vmap(lambda step: of_images(of_step(keys, step)))(jnp.arange(1, steps + 1))


def _finite(value: Any) -> bool:
    """Whether this is a number, or several, all of them finite."""
    try:
        return np.asarray(value).dtype.kind not in "bSU" and bool(np.isfinite(np.asarray(value, np.float64)).all())
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    """Whether this is one finite number."""
    return _finite(value) and np.ndim(value) == 0
