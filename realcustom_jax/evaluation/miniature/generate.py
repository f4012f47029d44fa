"""The methods that are compared, on batches of cases: the same prompts, references and noise for each.

    text_only    the base model: no reference
    described    the base model, told the attributes in words instead: what its cross-attention can draw of them, and so
                 about what an adapter can ask it for (the pooled text stays the prompt's)
    no_mask      the references act everywhere (M = 1)
    sequential   RealCustom++ in the released order
    fused        RealCustom++ with one UNet call a step

The pictures are those that `Pipeline` makes of a case's prompt, references and seed with its default options.

**Whose mask is scored.** Of sequential and fused, `masks` is the mask that the sampler froze and used to its end. The
others have none: there it is the mask that the guidance branch would compute for the finished picture, noised with its
own initial noise to the last step before the freeze. `maps` is of all methods that second mask, before its weaker part
is cut off (scope 1), so that it can be compared across methods.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.devices.compilation import jit_sampler
from realcustom_jax.errors import check_choice
from realcustom_jax.evaluation.miniature.cases import Case
from realcustom_jax.evaluation.miniature.judge import TrainedJudge, load_judge
from realcustom_jax.evaluation.miniature.scores import Generated
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.masks import MaskConfig
from realcustom_jax.sampling.options import noise_of_steps, seeded_noise
from realcustom_jax.sampling.sampler import sample_latents, sample_text_only
from realcustom_jax.sampling.solvers import Solver

METHODS: tuple[str, ...] = ("text_only", "described", "no_mask", "sequential", "fused")


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model and the judge that came with it; steps and solver, None: as the model's preset says. `options` replace
    what `sampler` says, for studies."""

    pipeline: Pipeline
    judge: TrainedJudge
    steps: int | None = None
    solver: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, model: str | Path, adapter: str | Path | None = None, **options) -> "Generator":
        """Loads a model folder, or the bundled miniature "mini"; options and errors as of `Pipeline.load`, errors of
        `load_judge` too."""
        pipeline = Pipeline.load(model, adapter, **options)
        return cls(pipeline, load_judge(ModelSource.open(model).root))

    @property
    def picture_size(self) -> int:
        """The side of the pictures that it makes, in pixels."""
        return self.pipeline.sizes.native

    def sampler(self, phrases: int) -> dict[str, Any]:
        """How sequential and fused sample: the pipeline's defaults."""
        preset, side = self.pipeline.preset, self.pipeline.sample_size
        return {"guidance_scale": None if preset.guidance_scale == 1 else preset.guidance_scale,
                "freeze_mask_step": preset.freeze_mask_step,
                "mask": preset.mask_config(side, side, phrases)} | self.options

    def __call__(self, cases: Sequence[Case], method: str) -> Generated:
        """Makes one picture of each case of a task. Batches of one length share a compilation."""
        check_choice("method", method, METHODS)
        positive, negative, target = self._conditionings(cases, method == "described")
        preset = self.pipeline.preset
        solver = self.pipeline.make_solver(self.steps or preset.steps, self.solver or preset.solver)
        options = self.sampler(target.shape[1])
        fresh = [noise_of_steps(solver, case.seed, 1, self.pipeline.latent_shape()) for case in cases]
        if solver.fresh is not None:
            options["noise_per_step"] = jnp.concatenate(fresh, axis=1)
        unet = self.pipeline.unet
        noise = _noise(self.pipeline, cases)
        inputs = unet.module, unet.params, noise, positive, negative
        kind = "text_only" if method == "described" else method
        latents, used = _generate(*inputs, target, kind=kind, solver=solver, **options)
        # The mask of the finished picture, noised again to the last step before the freeze.
        time = int(solver.timesteps[min(options["freeze_mask_step"], solver.steps) - 1])
        signal = float(np.sqrt(np.cumprod(1 - np.asarray(self.pipeline.betas, np.float64))[time]))
        masks, maps = _masks_of(unet.module, unet.params, latents, noise, positive, target, time, signal,
                                mask=options["mask"])
        masks = masks if used is None else used
        return Generated(self.pipeline.decode(latents), *map(np.asarray, (masks, maps, latents)))

    def in_batches(self, cases: Sequence[Case], method: str, batch_size: int,
                   done: Callable[[int], Any] = lambda count: None) -> Generated:
        """What a method makes of all cases of a task; `done` is told how many more pictures are finished."""
        parts = []
        for start in range(0, len(cases), batch_size):
            batch = cases[start : start + batch_size]
            # The last batch is filled up, so that one compilation serves all.
            made = self([*batch, *[batch[-1]] * (batch_size - len(batch))], method)
            parts.append([value[: len(batch)] for value in vars(made).values()])
            done(len(batch))
        return Generated(*map(np.concatenate, zip(*parts, strict=True)))

    def _conditionings(self, cases: Sequence[Case], described: bool) -> tuple[Conditioning, Conditioning, jax.Array]:
        """positive, negative and the marked tokens [N, R, T] of the cases' prompts."""
        pipeline = self.pipeline
        positive = pipeline.encode_prompts([str(case.prompt) for case in cases])
        texts = [str(case.description if described else case.prompt) for case in cases]
        positive = positive.replace(text=pipeline.encode_prompts(texts).text)
        negative = pipeline.encode_negative(None, positive)
        nouns = [[case.things[thing].noun for thing in case.targets] for case in cases]
        references = [reference for case, targets in zip(cases, nouns, strict=True)
                      for reference in pipeline.given_to_targets(
                          [x.astype(np.float32) / 255 for x in case.references], str(case.prompt), targets)]
        *tokens, nothing = pipeline.encode_references([*references, np.zeros_like(references[0])])
        vision = jnp.stack(tokens).reshape(len(cases), -1, *nothing.shape)
        vision = jnp.repeat(vision, len(nouns[0]) // vision.shape[1], axis=1)
        target = np.stack([pipeline.mark_targets(text, targets) for text, targets in zip(texts, nouns, strict=True)])
        return (positive.replace(vision=vision), negative.replace(vision=jnp.broadcast_to(nothing, vision.shape)),
                jnp.asarray(target))

    def autoencode(self, images: np.ndarray) -> np.ndarray:
        """Pictures uint8 [N,H,W,3] through the autoencoder and back: what no sampling of its latents can surpass."""
        vae = self.pipeline.vae
        means = [_encode(vae.module, vae.params, image[None]) for image in images]
        return np.concatenate([self.pipeline.decode(mean * vae.module.config.scaling_factor) for mean in means])


@functools.partial(jax.jit, static_argnums=0)
def _encode(vae, params, images: jax.Array) -> jax.Array:
    return vae.apply({"params": params}, from_uint8(images), method="encode").mean


def _noise(pipeline: Pipeline, cases: Sequence[Case]) -> jax.Array:
    return jnp.concatenate([seeded_noise(case.seed, 1, pipeline.latent_shape()) for case in cases])


@functools.partial(jit_sampler, static_argnums=0, static_argnames=("kind", "freeze_mask_step", "mask"))
def _generate(
    unet, params, noise: jax.Array, positive: Conditioning, negative: Conditioning, target: jax.Array, *,
    kind: str, solver: Solver, guidance_scale: float | None, freeze_mask_step: int, mask: MaskConfig,
    noise_per_step: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Latents [B, H, W, C] and the last masks [B, R, h, w]; None of methods that use none."""
    inputs = unet, params, noise, positive, negative
    options = {"solver": solver, "guidance_scale": guidance_scale, "noise_per_step": noise_per_step}
    if kind == "text_only":
        return sample_text_only(*inputs, **options), None
    if kind == "no_mask":
        return sample_latents(*inputs, target, mask=None, **options).latents, None
    samples = sample_latents(*inputs, target, branches=kind, mask=mask, freeze_mask_step=freeze_mask_step, **options)
    return samples.latents, samples.masks[-1]


@functools.partial(jax.jit, static_argnums=0, static_argnames="mask")
def _masks_of(unet, params, latents, noise, positive: Conditioning, target, time, signal, *,
              mask: MaskConfig) -> tuple[jax.Array, jax.Array]:
    """Masks and maps [B, R, h, w] of finished latents, noised to `time`, where √ᾱ is `signal`."""
    noised = signal * latents + jnp.sqrt(1 - signal**2) * noise
    guidance = unet.apply(
        {"params": params}, noised, time, positive.text, pooled=positive.pooled, time_ids=positive.time_ids,
        target=target, self_maps_at=mask.refine_at)
    size = mask.size_of(noise.shape[1:3])
    return mask.masks_of(guidance, size), dataclasses.replace(mask, scope=1.0, binary=False).masks_of(guidance, size)
