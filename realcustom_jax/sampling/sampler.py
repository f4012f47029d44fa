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

Without guidance there is no negative lane, and with given masks no guidance lane.
Both orders evaluate as many lanes, K + 2T. Fused needs T + 1 calls instead of T + K, each large enough to fill
the chip; in return its steps 1 … K − 1 see a mask one step old. What the latents do not change is computed before
the loops (module `models.context`): the keys and values of text and vision tokens in every layer, and what each
step's timestep adds in every residual block.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from realcustom_jax.devices.compilation import jit_sampler
from realcustom_jax.devices.sharding import vmapped_axes
from realcustom_jax.errors import check_choice
from realcustom_jax.models import context
from realcustom_jax.models.unet import UNet, UNetOutput
from realcustom_jax.sampling.masks import classifier_free_guidance, subject_mask
from realcustom_jax.sampling.solvers import Solver

BRANCHES = "fused", "sequential"


@flax.struct.dataclass
class Conditioning:
    """What the UNet sees beside the latents.

    text: [B, T, D] text tokens. pooled: [B, P] pooled text and time_ids: [B, 6] (SDXL's kind of UNet only).
    vision: [B, R, L, D] projected tokens of R references.
    """

    text: jax.Array
    pooled: jax.Array | None = None
    time_ids: jax.Array | None = None
    vision: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How the guidance lane's maps become masks; hashable. The options are `masks.subject_mask`'s, and

    downscale: the mask's size is the latents', divided by this.
    refine_at: (h, w) of the self-attention layers whose maps refine the mask; None does not refine. The paper
        takes the highest resolution that has attention.
    """

    scope: float = 0.25
    normalize: str = "max_norm"
    select: str = "topk"
    binary: bool = False
    overlap: str = "sum"
    downscale: int = 2
    refine_at: tuple[int, int] | None = None
    normalize_self: str | None = None

    def size(self, latents: jax.Array) -> tuple[int, int]:
        """(h, w) of the masks of latents [B, H, W, C]."""
        return latents.shape[1] // self.downscale, latents.shape[2] // self.downscale

    def masks_of(self, output: UNetOutput, size: tuple[int, int]) -> jax.Array:
        """The masks [B, R, h, w] of a UNet evaluation with target maps (and self maps at `refine_at`)."""
        if self.refine_at and not output.self_maps:
            sizes = sorted({m.shape[-2:] for m in output.maps}, reverse=True)
            raise ValueError(f"refine_at={self.refine_at}: no self-attention layer has that size; there are {sizes}.")
        return subject_mask(
            output.maps, size=size, scope=self.scope, normalize=self.normalize, select=self.select,
            binary=self.binary, overlap=self.overlap, self_maps=output.self_maps, normalize_self=self.normalize_self)


@flax.struct.dataclass
class Samples:
    """latents: the last x_0 prediction [B, H, W, C]; masks: the mask used in each step [steps, B, R, h, w]; float32."""

    latents: jax.Array
    masks: jax.Array


def sample_latents(
    unet: UNet,
    params,
    noise: jax.Array,
    positive: Conditioning,
    negative: Conditioning | None,
    target: jax.Array,
    *,
    solver: Solver,
    guidance_scale: ArrayLike | None = 3.5,
    mask: MaskConfig | None = MaskConfig(),
    freeze_mask_step: int = 12,
    branches: str = "fused",
    masks: jax.Array | None = None,
    vision_scale: ArrayLike = 1.0,
    noise_per_step: jax.Array | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Samples:
    """Customised latents from pure noise; pure, to be jitted as a whole (but see `on_step`).

    Args:
        unet, params: the UNet with visual attention, for the platform that it carries. A GPU's layers are taken apart
            if they are not (`models.context.layers_apart`), which copies them in every call: load them apart.
        noise: [B, H, W, C] of unit variance.
        positive, negative: with vision tokens, and of equal shapes; negative may be None without guidance.
        target: [B, R, T] 0/1, the tokens of each reference's phrase in the positive text.
        guidance_scale: s; None is the generation lane alone, as 1 is, but runs no negative lane.
        mask: None lets the image act everywhere: masks of ones, no guidance lane.
        freeze_mask_step: K ≥ 1, the first step that reuses its predecessor's mask; K ≥ steps never freezes.
        branches: "fused" | "sequential", see the module.
        masks: [B, R, h, w] of any size, instead of those of the guidance lane, which then is not run.
        vision_scale: the strength of each reference's visual term, one number or [R]; 0 is the text alone.
        noise_per_step: [steps, B, H, W, C] of unit variance, for a solver that draws noise in each step.
        on_step: called with the number of each finished step. The loop then runs on the host, one compiled call a step,
            so the function must not be traced with it; the result is the same.
    Raises:
        ValueError: an unknown option, an impossible number, or arrays that do not fit together.
    """
    check_choice("branches", branches, BRANCHES)
    _check(noise, positive, target, guidance_scale, freeze_mask_step)
    solver.check_noise(noise_per_step, noise.shape)
    config = mask or MaskConfig()
    size = config.size(noise)
    if min(size) < 1:
        raise ValueError(f"noise has shape {noise.shape}, too small for a mask downscaled by {config.downscale}.")
    make = _Lanes.make if on_step is None else _make_alone
    params = context.for_platform(params, unet.platform)
    lanes = make(unet, params, positive, None if guidance_scale is None else _given(negative), solver)
    steps = _Steps(unet, config, params, lanes, target, solver, guidance_scale,
                   _strengths(vision_scale, target.shape[1]), noise_per_step)
    freeze = 0 if mask is None or masks is not None else min(freeze_mask_step, solver.steps)
    fresh = freeze if branches == "sequential" else min(freeze, 1)
    first = jnp.ones((*target.shape[:2], *size), jnp.float32) if masks is None else _given_masks(masks, target)
    carry, used_masks = (solver.init(noise), first), []
    for kind, start, stop in (
        (_Steps.sequential, 0, fresh), (_Steps.fused, fresh, freeze), (_Steps.frozen, freeze, solver.steps),
    ):
        if kind is _Steps.frozen:
            # The guidance lane leaves before the loop, because within it all tokens would be copied in each step.
            steps = steps.replace(lanes=steps.lanes.generating())
        if start < stop and on_step is None:
            carry, used = _scan(functools.partial(kind, steps), carry, start, stop)
            used_masks.append(used)
        elif start < stop:
            for i in range(start, stop):
                carry, used = jax.block_until_ready(_step_alone(unet, kind, steps, carry, i))
                used_masks.append(used[None])
                on_step(i)
    return Samples(carry[0].x0, jnp.concatenate(used_masks))


def sample_text_only(
    unet: UNet,
    params,
    noise: jax.Array,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    solver: Solver,
    guidance_scale: ArrayLike | None = 3.5,
    noise_per_step: jax.Array | None = None,
) -> jax.Array:
    """Latents of the base model, without visual term: the last x_0 prediction, float32 [B, H, W, C].

    Arguments as in `sample_latents`; vision tokens are ignored.
    """
    solver.check_noise(noise_per_step, noise.shape)
    params = context.for_platform(params, unet.platform)
    negative = None if guidance_scale is None else _given(negative).replace(vision=None)
    lanes = _Lanes.make(unet, params, positive.replace(vision=None), negative, solver).generating()

    def step(state, i):
        predictions = lanes.evaluate(unet, params, state.x, i, None, None).noise
        return solver.step(state, i, _guided(predictions, guidance_scale), _of_step(noise_per_step, i)), None

    return jax.lax.scan(step, solver.init(noise), jnp.arange(solver.steps))[0].x0


@flax.struct.dataclass
class _Steps:
    """What no step changes, and the kinds of step: ((solver state, mask), number) -> ((state, mask), mask used)."""

    unet: UNet = flax.struct.field(pytree_node=False)
    config: MaskConfig = flax.struct.field(pytree_node=False)
    params: Any
    lanes: "_Lanes"
    target: jax.Array
    solver: Solver
    guidance_scale: ArrayLike | None
    strengths: jax.Array
    noise: jax.Array | None

    def frozen(self, carry, i):
        state, mask = carry
        out = self._evaluate(self.lanes.generating(), state, i, mask)
        return (self._advance(state, i, out.noise), mask), mask

    def sequential(self, carry, i):
        state, mask = carry
        out = self._evaluate(self.lanes.guidance(), state, i, mask)
        return self.frozen((state, self._new_mask(out, mask)), i)

    def fused(self, carry, i):
        state, mask = carry
        out = self._evaluate(self.lanes, state, i, mask)
        return (self._advance(state, i, out.noise), self._new_mask(out, mask)), mask

    def _evaluate(self, lanes, state, i, mask):
        mask = mask * self.strengths[:, None, None]
        return lanes.evaluate(self.unet, self.params, state.x, i, mask, self.target, self.config.refine_at)

    def _advance(self, state, i, predictions):
        return self.solver.step(state, i, _guided(predictions, self.guidance_scale), _of_step(self.noise, i))

    def _new_mask(self, out, old):
        return self.config.masks_of(out, old.shape[-2:])


# The host calls these steps one by one, so that each kind is a program that the persistent cache keeps. The cache would
# refuse a scan that calls back.
_step_alone = jit_sampler(lambda unet, kind, steps, carry, i: kind(steps, carry, i), static_argnums=(0, 1))


@flax.struct.dataclass
class _Lanes:
    """The lanes of each image, which are the batch of its UNet call. The first `guided` of them make maps and have no
    visual term.

    All arrays have a leading axis of images. texts: of the lanes. vision: of those with a visual term. tokens: the
    context that no step changes. shifts: the context of every step.
    """

    guided: int = flax.struct.field(pytree_node=False)
    texts: Conditioning
    vision: jax.Array | None
    tokens: dict
    shifts: dict

    @classmethod
    def make(
        cls, unet: UNet, params, positive: Conditioning, negative: Conditioning | None, solver: Solver
    ) -> "_Lanes":
        """Guidance, generation and, where there is one, negative."""
        generating = [positive] if negative is None else [positive, negative]
        for field in dataclasses.fields(Conditioning):
            given, other = (getattr(c, field.name) for c in (positive, generating[-1]))
            if (shape := getattr(given, "shape", None)) != (other_shape := getattr(other, "shape", None)):
                raise ValueError(f"positive and negative differ in the shape of {field.name}: {shape}, {other_shape}.")

        def image(generating):
            texts = (c.replace(vision=None) for c in (generating[0], *generating))
            texts = jax.tree.map(lambda *x: jnp.stack(x), *texts)
            vision = None if generating[0].vision is None else jnp.stack([c.vision for c in generating])
            tokens = context.project_tokens(unet, params, texts.text, vision)

            def shifts(t):
                each = jnp.broadcast_to(t, len(texts.text))
                return context.project_time(unet, params, each, texts.pooled, texts.time_ids)

            return cls(1, texts, vision, tokens, jax.vmap(shifts)(jnp.asarray(solver.timesteps)))

        return jax.vmap(image)(generating)

    def guidance(self) -> "_Lanes":
        """The guidance lane alone."""
        return self._take(slice(None, 1), guided=1, vision=None)

    def generating(self) -> "_Lanes":
        """All lanes but the guidance lane."""
        return self._take(slice(1, None), guided=0) if self.guided else self

    def _take(self, lanes: slice, **changes) -> "_Lanes":
        def of_text(path, tokens):
            return tokens if path[-1].key.endswith("vision") else tokens[..., lanes, :, :]

        return self.replace(
            texts=jax.tree.map(lambda x: x[:, lanes], self.texts),
            tokens=jax.tree_util.tree_map_with_path(of_text, self.tokens),
            shifts=jax.tree.map(lambda x: x[:, :, lanes], self.shifts), **changes)

    def evaluate(self, unet: UNet, params, x, step, mask, target, self_maps_at=None) -> UNetOutput:
        """One UNet call, on the latents x [B, H, W, C] in every lane; mask [B, R, h, w], target [B, R, T].

        noise [B, lanes, H, W, C]; maps and self maps are of the guidance lane, [B, …].
        """
        def image(lanes, x, mask, target):
            count = len(lanes.texts.text)
            known = context.merge(lanes.tokens, jax.tree.map(lambda shift: shift[step], lanes.shifts))
            if lanes.vision is None:
                mask = None
            else:
                mask = jnp.broadcast_to(mask, (count - self.guided, *mask.shape))
            maps_of = {"target": target[None], "self_maps_at": self_maps_at} if self.guided else {}
            out = unet.apply(
                {"params": params, "context": known}, jnp.broadcast_to(x, (count, *x.shape)), None, lanes.texts.text,
                vision=lanes.vision, mask=mask, guidance_lanes=self.guided, **maps_of)
            return jax.tree.map(lambda maps: maps[0], out).replace(noise=out.noise)

        along = vmapped_axes(len(x), self.texts.text.shape[1])
        return jax.vmap(image, spmd_axis_name=along)(self, x, mask, target)


_make_alone = jit_sampler(_Lanes.make, static_argnums=0)


def check_freeze(freeze_mask_step: int) -> None:
    """Raises ValueError for a step before the first."""
    if freeze_mask_step < 1:
        raise ValueError(f"freeze_mask_step is {freeze_mask_step}; it must be at least 1, or no mask is ever made.")


def _check(noise, positive, target, guidance_scale, freeze_mask_step) -> None:
    if noise.ndim != 4:
        raise ValueError(f"noise has shape {noise.shape}; expected [B,H,W,C].")
    if positive.vision is None:
        raise ValueError("positive has no vision tokens; without a reference image, use sample_text_only.")
    if target.shape[:2] != positive.vision.shape[:2]:
        raise ValueError(f"target has shape {target.shape} and positive.vision {positive.vision.shape}: "
                         "give one target phrase for each reference ([B,R,T] and [B,R,L,D]).")
    check_freeze(freeze_mask_step)
    if guidance_scale is not None and not isinstance(guidance_scale, jax.Array) and not np.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale}; it must be a finite number, or None for no guidance.")


def _given(negative: Conditioning | None) -> Conditioning:
    if negative is None:
        raise ValueError("negative is None, but a guidance_scale is given; give both, or guidance_scale=None.")
    return negative


def _given_masks(masks: jax.Array, target: jax.Array) -> jax.Array:
    if masks.ndim != 4 or masks.shape[:2] != target.shape[:2]:
        raise ValueError(f"masks have shape {masks.shape} and target {target.shape}: give one mask for each reference "
                         "([B,R,h,w] and [B,R,T]).")
    return jnp.asarray(masks, jnp.float32)


def _strengths(vision_scale: ArrayLike, references: int) -> jax.Array:
    """One strength for each reference, float32 [R]."""
    scale = jnp.asarray(vision_scale, jnp.float32)
    if scale.shape not in ((), (references,)):
        raise ValueError(f"vision_scale has shape {scale.shape}; expected one number, or one for each of the "
                         f"{references} reference(s).")
    return jnp.broadcast_to(scale, (references,))


def _of_step(noise: jax.Array | None, i) -> jax.Array | None:
    return None if noise is None else noise[i]


def _guided(predictions: jax.Array, scale: ArrayLike | None) -> jax.Array:
    """Of predictions [B, lanes, H, W, C], the last two of each image: generation and negative; or without a scale, the
    last one: generation."""
    if scale is None:
        return predictions[:, -1].astype(jnp.float32)
    generation, negative = predictions[:, -2:].astype(jnp.float32).swapaxes(0, 1)
    return classifier_free_guidance(text=None, text_image=generation, uncond=negative, text_scale=1.0,
                                    image_scale=scale, mode="none_direct")


def _scan(step, carry, start: int, stop: int):
    """Steps start … stop − 1; a single one needs no loop."""
    if stop - start > 1:
        return jax.lax.scan(step, carry, jnp.arange(start, stop))
    carry, y = step(carry, start)
    return carry, y[None]
