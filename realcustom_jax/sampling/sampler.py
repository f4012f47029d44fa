"""The dual-branch sampler of RealCustom++ (arXiv 2408.09744; released loop: `inference/pipeline.py`).

On the latent z_i of step i the UNet runs in up to three *lanes*:

    guidance     text alone; the target words' attention maps become the mask m_i (module `masks`)
    generation   text and image, the visual term weighted by a mask
    negative     negative text and image, the same mask; guided = negative + s · (generation − negative)

With T steps and the mask frozen from step K on. [lanes | mask] is one UNet call whose batch are the lanes; it is
vmapped over the images:

    step           sequential (as released)                           fused
    0              [guidance] → m_0, [generation negative | m_0]      the same
    1 … K − 1      [guidance] → m_i, [generation negative | m_i]      [guidance generation negative | m_{i−1}] → m_i
    K … T − 1      [generation negative | m_{K−1}]                    the same

Without guidance there is no negative lane, and with given masks no guidance lane. Where guidance takes the prediction
of the text alone (module `guidance`), the guidance lane runs to the end, and only its maps end with step K.
Both orders evaluate as many lanes, K + 2T. Fused needs T + 1 calls instead of T + K, each large enough to fill
the chip; in return its steps 1 … K − 1 see a mask one step old. What the latents do not change is computed before
the loops (module `models.context`): the keys and values of text and vision tokens in every layer, and what each
step's timestep adds in every residual block.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from realcustom_jax.arrays import Array
from realcustom_jax.devices.compilation import compile_ahead, jit_sampler
from realcustom_jax.devices.programs import jit_kept
from realcustom_jax.errors import check_choice
from realcustom_jax.models import context
from realcustom_jax.models.resize import resize_bilinear
from realcustom_jax.models.unet import UNet
from realcustom_jax.sampling.guidance import MODES, Guidance
from realcustom_jax.sampling.lanes import Conditioning, Lanes, VisionScale
from realcustom_jax.sampling.masks import MaskConfig
from realcustom_jax.sampling.solvers import Solver, SolverState

BRANCHES = "fused", "sequential"


@flax.struct.dataclass
class Samples:
    """What the loop gives.

    Attributes:
        latents: the last x_0 prediction, float32 [B, H, W, C].
        masks: the mask used in each step, float32 [steps, B, R, h, w]; of the given masks' size where all are given in
            one array.
    """

    latents: jax.Array
    masks: jax.Array


def sample_latents(
    unet: UNet,
    params,
    noise: Array,
    positive: Conditioning,
    negative: Conditioning | None,
    target: Array,
    *,
    solver: Solver,
    guidance_scale: ArrayLike | None = 3.5,
    mask: MaskConfig | None = MaskConfig(),
    freeze_mask_step: int = 12,
    branches: str = "fused",
    masks: Array | Sequence[Array | None] | None = None,
    vision_scale: VisionScale = 1.0,
    guidance: Guidance = Guidance(),
    init_latents: Array | None = None,
    region: Array | None = None,
    noise_per_step: Array | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Samples:
    """Customised latents from pure noise; pure, to be jitted as a whole (but see `on_step`).

    Args:
        unet, params: the UNet with visual attention, for the platform that it carries. A GPU's layers are taken apart
            if they are not, which copies them in every call: load them apart (`load_unet` with scan_layers=False).
        noise: [B, H, W, C] of unit variance.
        positive, negative: with vision tokens, and of equal shapes; negative may be None without guidance.
        target: [B, R, T] 0/1, the tokens of each reference's phrase in the positive text.
        guidance_scale: s; None or 1 is the generation lane alone, and runs no negative lane, unless 1 is traced.
        mask: None lets the image act everywhere: masks of ones, no guidance lane.
        freeze_mask_step: K ≥ 1, the first step that reuses its predecessor's mask; K ≥ steps never freezes. Steps that
            the solver leaves out at the start count.
        branches: "fused" | "sequential", the order of the lanes (docs/method.md).
        masks: [B, R, h, w] of any size, the same for all steps, instead of those of the guidance lane, which then is
            not run. Or one [B, h, w] for each reference, None where the guidance lane is to make it: unless
            `mask.overlap` is "sum", beside what was given.
        vision_scale: the strength of the visual term, see `context.scale_vision`; 0 is the text alone.
        guidance: how the lanes' predictions are combined, if not directly.
        init_latents: [B, H, W, C] of a picture from which the sampling starts, where the solver leaves out the first
            steps, and which stays outside of `region`.
        region: [B, H, W] in [0, 1], where the picture of `init_latents` is made anew; None: everywhere. The masks that
            the guidance lane makes lie in it.
        noise_per_step: [steps, B, H, W, C] of unit variance, for a solver that draws noise in each step.
        on_step: called with the number of each finished step. The loop then runs on the host, one compiled call a step,
            so the function must not be traced with it; the result is the same.
    Raises:
        ValueError: an unknown option, an impossible number, or arrays that do not fit together.
    """
    check_choice("branches", branches, BRANCHES)
    guidance_scale = guidance.needed(guidance_scale)
    _check(noise, positive, target, guidance_scale, freeze_mask_step, guidance)
    _check_start(noise, solver, init_latents, region)
    solver.check_noise(noise_per_step, noise.shape)
    config = mask or MaskConfig()
    size = config.size_of(noise.shape[1:3])
    if min(size) < 1:
        raise ValueError(f"noise has shape {noise.shape}, too small for a mask downscaled by {config.downscale}.")
    given = _given_masks(masks, target, size)
    all_given = given is not None and all(x is not None for x in given)
    make, begin, generating, end = (Lanes.make, _begin, Lanes.generating, _end) if on_step is None else _ALONE
    params = context.for_platform(params, unet.platform)
    lanes = make(unet, params, positive, None if guidance_scale is None else _needed(negative), solver, vision_scale)
    steps = _Steps(unet, config, params, lanes, target, solver, guidance_scale, guidance, given, noise, init_latents,
                   region, noise_per_step)
    freeze = 0 if mask is None or all_given else min(max(1, freeze_mask_step - solver.start), solver.steps)
    fresh = freeze if branches == "sequential" else min(freeze, 1)
    carry = begin((*target.shape[:2], *size), solver, noise, init_latents, given if all_given else None)
    # What is not needed any more leaves before the loop, because within it all tokens would be copied in each step.
    # Steps that make no masks have a guidance lane only where its prediction is used.
    rest = steps.replace(lanes=lanes if guidance.needs_text else generating(lanes), target=None)
    sequential, fused, frozen = (_Steps.sequential, steps), (_Steps.fused, steps), (_Steps.frozen, rest)
    if on_step is None or guidance.needs_text:
        first = [sequential]
    else:
        # The same in two programs, the second of which is the last steps' own and so need not be compiled.
        first = [(_Steps.guiding, steps), frozen]
    runs = [(first, 0, fresh), ([fused], fresh, freeze), ([frozen], freeze, solver.steps)]
    runs = [(parts, start, stop) for parts, start, stop in runs if start < stop]
    if on_step is not None:
        return end(*_run_alone(unet, runs, carry, on_step), region, init_latents)
    used_masks = []
    for [(kind, steps)], start, stop in runs:
        carry, used = _scan(functools.partial(kind, steps), carry, start, stop)
        used_masks.append(used)
    return end(carry[0], used_masks, region, init_latents)


def sample_text_only(
    unet: UNet,
    params,
    noise: Array,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    solver: Solver,
    guidance_scale: ArrayLike | None = 3.5,
    noise_per_step: Array | None = None,
) -> jax.Array:
    """Latents of the base model, without visual term: the last x_0 prediction, float32 [B, H, W, C].

    Arguments as in `sample_latents`; vision tokens are ignored.
    """
    solver.check_noise(noise_per_step, noise.shape)
    params = context.for_platform(params, unet.platform)
    guidance_scale = Guidance().needed(guidance_scale)
    negative = None if guidance_scale is None else _needed(negative).replace(vision=None)
    lanes = Lanes.make(unet, params, positive.replace(vision=None), negative, solver).generating()

    def step(state, i):
        predictions = lanes.evaluate(unet, params, state.x, i, None, None).noise
        guided = Guidance().guided(predictions, guidance_scale, None)
        return solver.step(state, i, guided, _of_step(noise_per_step, i)), None

    return jax.lax.scan(step, solver.init(noise), jnp.arange(solver.steps))[0].x0


@flax.struct.dataclass
class _Steps:
    """What no step changes, and the kinds of step: ((solver state, mask), number) -> ((state, mask), mask used).

    The fields are `sample_latents`' arguments; given: a mask [B, h, w] or None for each reference; fresh: the noise of
    the steps.
    """

    unet: UNet = flax.struct.field(pytree_node=False)
    config: MaskConfig = flax.struct.field(pytree_node=False)
    params: Any
    lanes: Lanes
    target: jax.Array | None
    solver: Solver
    guidance_scale: ArrayLike | None
    guidance: Guidance
    given: tuple[jax.Array | None, ...] | None
    noise: jax.Array
    init_latents: jax.Array | None
    region: jax.Array | None
    fresh: jax.Array | None

    def frozen(self, carry, i):
        state, mask = carry
        out = self._evaluate(self.lanes, state, i, mask)
        return (self._advance(state, i, out.noise, mask), mask), mask

    def guiding(self, carry, i):
        """The first half of a sequential step: its mask, and the prediction of the guidance lane."""
        state, mask = carry
        out = self._evaluate(self.lanes.guidance(), state, i, mask)
        return (state, self._new_mask(out, mask)), out.noise

    def sequential(self, carry, i):
        (state, mask), noise = self.guiding(carry, i)
        out = self._evaluate(self.lanes.generating(), state, i, mask)
        predictions = jnp.concatenate([noise, out.noise], axis=1)
        return (self._advance(state, i, predictions, mask), mask), mask

    def fused(self, carry, i):
        state, mask = carry
        out = self._evaluate(self.lanes, state, i, mask)
        return (self._advance(state, i, out.noise, mask), self._new_mask(out, mask)), mask

    def _evaluate(self, lanes, state, i, mask):
        return lanes.evaluate(self.unet, self.params, state.x, i, mask, self.target, self.config.refine_at)

    def _advance(self, state, i, predictions, mask):
        subjects = resize_bilinear(mask.max(axis=1)[..., None], state.x.shape[1:3])
        guided = self.guidance.guided(predictions, self.guidance_scale, subjects)
        state = self.solver.step(state, i, guided, _of_step(self.fresh, i))
        if self.region is None:
            return state
        picture = self.solver.noisy(self.init_latents, self.noise, i + 1)
        return dataclasses.replace(state, x=_within(self.region, state.x, picture))

    def _new_mask(self, out, old):
        made = self.config.masks_of(out, old.shape[-2:], self._allowed(old.shape))
        if self.given is None:
            return made
        return jnp.stack([made[:, r] if mask is None else mask for r, mask in enumerate(self.given)], axis=1)

    def _allowed(self, shape: tuple[int, ...]) -> jax.Array | None:
        """Where the masks of this shape [B, R, h, w] may lie, None: everywhere. In the region; and where masks are not
        to overlap, beside those that were given, whose references then own nothing else."""
        allowed = None if self.region is None else jnp.broadcast_to(
            resize_bilinear(self.region[..., None], shape[2:])[:, None, ..., 0], shape)
        if self.given is None or self.config.overlap == "sum":
            return allowed
        free = 1 - functools.reduce(jnp.maximum, (mask for mask in self.given if mask is not None))
        free = jnp.stack([free if mask is None else jnp.zeros_like(free) for mask in self.given], axis=1)
        return free if allowed is None else free * allowed


def _begin(
    shape: tuple[int, ...], solver: Solver, noise: jax.Array, picture: jax.Array | None, given: tuple | None,
) -> tuple[SolverState, jax.Array]:
    """Before the first step: pure noise, or where the solver leaves out steps, the picture with as much noise; and the
    masks of this shape [B, R, h, w], ones unless all are given."""
    first = jnp.ones(shape, jnp.float32) if given is None else jnp.stack(given, axis=1)
    return solver.init(noise if solver.start == 0 else solver.noisy(picture, noise, 0)), first


def _end(state: SolverState, masks: list[jax.Array], region: jax.Array | None, picture: jax.Array | None) -> Samples:
    """After the last step; the masks [steps, B, R, h, w] in parts."""
    latents = state.x0 if region is None else _within(region, state.x0, picture)
    return Samples(latents, jnp.concatenate(masks))


def _within(region: jax.Array, x: jax.Array, picture: jax.Array) -> jax.Array:
    """x [B, H, W, C] within the region, and the picture outside."""
    region = region[..., None]
    return region * x + (1 - region) * picture


# The host calls these steps one by one, so that each kind is a program that the persistent cache keeps. The cache would
# refuse a scan that calls back. What is around them is kept too: operation by operation, it would be compiled anew in
# each process.
@functools.partial(jit_sampler, static_argnums=(0, 1), returns=(SolverState,))
def _step_alone(unet, kind, steps, carry, i):
    carry, used = kind(steps, carry, i)
    return carry, used[None]


def _run_alone(unet: UNet, runs, carry, on_step: Callable[[int], None]) -> tuple[SolverState, list[jax.Array]]:
    """(the last state, the masks used) of all steps, called one by one. `runs`: (the parts of each step, one after the
    other, the first step, the end)."""
    used_masks, compiling = [], {}
    if unet.platform.compiles_ahead:
        kinds = {kind: steps for parts, *_ in runs for kind, steps in parts}
        lowered = (_step_alone.lower(unet, kind, steps, carry, 0) for kind, steps in kinds.items())
        compiling = dict(zip(kinds, compile_ahead(lowered), strict=True))
    for parts, start, stop in runs:
        for i in range(start, stop):
            for kind, steps in parts:
                if kind in compiling:
                    compiling.pop(kind).result()
                carry, used = _step_alone(unet, kind, steps, carry, i)
            jax.block_until_ready(carry)
            used_masks.append(used)
            on_step(i)
    return carry[0], used_masks


_ALONE = (
    jit_sampler(Lanes.make, static_argnums=0, returns=(Lanes, Conditioning)),
    jit_kept(_begin, static_argnums=0, returns=(SolverState,)),
    jit_kept(Lanes.generating, returns=(Lanes, Conditioning)),
    jit_kept(_end, returns=(SolverState, Samples)),
)


def check_freeze(freeze_mask_step: int) -> None:
    """Raises ValueError for a step before the first."""
    if freeze_mask_step < 1:
        raise ValueError(f"freeze_mask_step is {freeze_mask_step}; it must be at least 1, or no mask is ever made.")


def _check(noise, positive, target, guidance_scale, freeze_mask_step, guidance) -> None:
    if noise.ndim != 4:
        raise ValueError(f"noise has shape {noise.shape}; expected [B,H,W,C].")
    if positive.vision is None:
        raise ValueError("positive has no vision tokens; without a reference image, use sample_text_only.")
    if target.shape[:2] != positive.vision.shape[:2]:
        raise ValueError(f"target has shape {target.shape} and positive.vision {positive.vision.shape}: "
                         "give one target phrase for each reference ([B,R,T] and [B,R,L,D]).")
    check_freeze(freeze_mask_step)
    check_choice("guidance mode", guidance.mode, MODES)
    if guidance_scale is None and guidance.needs_text:
        raise ValueError(f"guidance_scale is None, but the guidance mode {guidance.mode!r} needs one; give a number, "
                         "or another mode.")
    if guidance_scale is not None and not isinstance(guidance_scale, jax.Array) and not np.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}; it must be a finite number, or None for no guidance.")


def _check_start(noise, solver, init_latents, region) -> None:
    if init_latents is None and (region is not None or solver.start):
        what = "region is given" if region is not None else f"the solver leaves out its first {solver.start} steps"
        raise ValueError(f"{what}, but init_latents, the picture to begin with, is None; give its latents.")
    if init_latents is not None and init_latents.shape != noise.shape:
        raise ValueError(f"init_latents have shape {init_latents.shape}; expected the noise's, {noise.shape}.")
    if region is not None and region.shape != noise.shape[:3]:
        raise ValueError(f"region has shape {region.shape}; expected {noise.shape[:3]}, a number for each pixel of the "
                         "latents.")
    if init_latents is not None and region is None and not solver.start:
        raise ValueError("init_latents are given, but nothing would be left of them: the solver begins with pure noise "
                         "and no region is given; make the solver with start=…, or give a region.")


def _needed(negative: Conditioning | None) -> Conditioning:
    if negative is None:
        raise ValueError("negative is None, but a guidance_scale is given; give both, or guidance_scale=None.")
    return negative


def _given_masks(masks, target: jax.Array, size: tuple[int, int]) -> tuple[jax.Array | None, ...] | None:
    """A mask [B, h, w] for each reference, float32, or None for one that the guidance lane makes; None where all are.
    Where it makes some, all have its size."""
    if masks is None:
        return None
    one_array = not isinstance(masks, Sequence)
    shapes = [masks.shape] if one_array else [mask.shape for mask in masks if mask is not None]
    images, references = target.shape[:2]
    expected = (images, references) if one_array else (images,)
    dimensions = 4 if one_array else 3
    if any(len(shape) != dimensions or shape[:len(expected)] != expected for shape in shapes) or (
            not one_array and len(masks) != references):
        raise ValueError(f"masks have shape {', '.join(map(str, shapes))} and target {target.shape}: give one mask for "
                         "each reference ([B,R,h,w], or one [B,h,w] or None for each, and [B,R,T]).")
    if not shapes:
        return None
    if one_array:
        return tuple(jnp.asarray(masks, jnp.float32).swapaxes(0, 1))
    return tuple(None if mask is None else resize_bilinear(jnp.asarray(mask, jnp.float32)[..., None], size)[..., 0]
                 for mask in masks)


def _of_step(noise: jax.Array | None, i) -> jax.Array | None:
    return None if noise is None else noise[i]


def _scan(step, carry, start: int, stop: int):
    """Steps start … stop − 1; a single one needs no loop."""
    if stop - start > 1:
        return jax.lax.scan(step, carry, jnp.arange(start, stop))
    carry, y = step(carry, start)
    return carry, y[None]
