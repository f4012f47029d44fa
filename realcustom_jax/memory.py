"""What sampling will need of a device's memory, said before anything is compiled.

Counted: all parameters, the sampler's inputs, and the largest sum of arrays that are alive at once in the traced
sampler or, after it, in the decoder. That sum is an estimate: XLA fuses operations, and copies arrays to other layouts.
Its own figure costs a compilation.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from realcustom_jax.conditioning.references import vision_tokens
from realcustom_jax.devices.jaxprs import peak_bytes
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.shapes import array_shape, tree_shapes
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.presets import GuidanceScale
from realcustom_jax.sampling.decoding import decode_latents
from realcustom_jax.sampling.guidance import Guidance
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_latents

GIB = 2**30
_FOR_SAMPLING = ("choose a smaller width and height, fewer pictures at once, bfloat16 or offload; --memory says how "
                 "much is needed")


@contextlib.contextmanager
def enough_memory(otherwise: str = _FOR_SAMPLING) -> Iterator[None]:
    """Raises ValueError, one sentence that ends with `otherwise`, where a device's memory does not suffice within."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"A device's memory is too small ({str(error).splitlines()[0]}): {otherwise}.") from None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes, by what needs them; `available` is the device's, None where it does not tell."""

    parameters: dict[str, int]
    inputs: int
    sampler: int
    available: int | None
    decoder: int = 0

    @property
    def needed(self) -> int:
        return sum(self.parameters.values()) + self.inputs + max(self.sampler, self.decoder)

    @property
    def fits(self) -> bool:
        return self.available is None or self.needed <= self.available

    def __str__(self) -> str:
        lines = {f"parameters: {name}": size for name, size in self.parameters.items()}
        lines |= {"inputs of the sampler": self.inputs, "the sampler itself": self.sampler,
                  "the decoder, after it": self.decoder, "together": self.needed}
        if self.available is not None:
            lines["the device has"] = self.available
        return "\n".join(f"{name:32}{size / GIB:9.3f} GiB" for name, size in lines.items())


def sampler_memory(
    pipeline: Pipeline, *, width: int | None = None, height: int | None = None, num_images: int = 1,
    references: int = 1, branches: str | None = None, steps: int | None = None, scope: float | None = None,
    freeze_mask_step: int | None = None, guidance_scale: GuidanceScale = "preset", guidance_mode: str = "none_direct",
    solver: str | None = None, masks: bool = False, compiled: bool = False,
) -> Memory:
    """The memory of `pipeline(…)` with these arguments; `references` is the number of subjects, `masks` says whether
    all of them have given masks, and what is None is as the preset says.

    By default an estimate from shapes alone; `compiled` takes XLA's figure for this backend instead. Either way the
    weights are not needed: the pipeline may have been loaded under `tensors.headers_only`.
    """
    choices = pipeline.preset.with_call(scope=scope, freeze_mask_step=freeze_mask_step, guidance_scale=guidance_scale,
                                        steps=steps, solver=solver, branches=branches)
    shape = pipeline.latent_shape(width, height)
    noise, positive, target = _inputs(pipeline, num_images, references, shape)
    guidance = Guidance(guidance_mode)
    scale = None if guidance.needed(choices.guidance_scale) is None else array_shape()
    schedule = pipeline.make_solver(choices.steps, choices.solver)
    inputs = {
        "noise": noise, "positive": positive, "negative": None if scale is None else positive, "target": target,
        "guidance_scale": scale, "masks": array_shape(num_images, references, *shape[:2]) if masks else None,
        "noise_per_step": None if schedule.fresh is None else array_shape(schedule.steps, *noise.shape)}
    options = {
        "solver": schedule, "branches": choices.branches,
        "mask": choices.mask_config(*shape[:2], references),
        "freeze_mask_step": choices.freeze_mask_step, "guidance": guidance}

    def sample(params, inputs):
        return sample_latents(pipeline.unet.module, params, **inputs, **options)

    def temporary(function, params, *inputs):
        if compiled:
            return jax.jit(function).lower(params, *inputs).compile().memory_analysis().temp_size_in_bytes
        return temporary_bytes(jax.make_jaxpr(function)(params, *inputs).jaxpr, params, pipeline.unet.module.platform)

    sampler = temporary(sample, tree_shapes(pipeline.unet.params), inputs)
    tile = array_shape(*pipeline.decoded_at_once(noise.shape))
    decoder = temporary(functools.partial(decode_latents, pipeline.vae.module), tree_shapes(pipeline.vae.params), tile)
    parts = {"UNet": pipeline.unet, "autoencoder": pipeline.vae, "projector": pipeline.projector}
    if not pipeline.offload:
        parts |= {f"text encoder {i + 1}": encoder.network for i, encoder in enumerate(pipeline.text_encoders)}
        parts |= {"SigLIP encoder": pipeline.siglip, "DINOv2 encoder": pipeline.dino}
    parameters = {name: _bytes(part.params) for name, part in parts.items()}
    return Memory(parameters, _bytes(inputs), sampler, device_memory(), decoder)


def device_memory() -> int | None:
    """Bytes that the first device has, on a CPU what the machine can give; None where it is not known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _machine_memory()
    return (device.memory_stats() or {}).get("bytes_limit")


def _machine_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that new work can have without swapping. Linux counts among them what it holds only as a cache of files,
    which it gives back when asked; other systems tell what is free."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable:\s*(\d+) kB$", meminfo.read_text(), re.MULTILINE):
            return 1024 * int(found[1])
    known = {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys()
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None


def temporary_bytes(jaxpr: core.Jaxpr, params, platform: Platform) -> int:
    """The estimate of what a traced computation with these parameters needs beside them on a platform."""
    peak = peak_bytes(jaxpr)
    if platform.half_as_float32 and all(jnp.dtype(x.dtype).itemsize == 2 for x in jax.tree.leaves(params)):
        # The CPU computes half precision in float32, on copies of the weights that it keeps (benchmarks/RESULTS.md).
        return 2 * (peak + _bytes(params))
    return peak


def _inputs(pipeline: Pipeline, batch: int, references: int, latents: tuple[int, int, int]):
    """Shapes of the sampler's arguments: noise, positive, target."""
    unet, settings = pipeline.unet.module.config, pipeline.vision_settings
    networks = pipeline.siglip, pipeline.dino, pipeline.projector
    encode = functools.partial(vision_tokens, *(network.module for network in networks), settings)
    params = tree_shapes(tuple(network.params for network in networks))
    tokens = jax.eval_shape(encode, params, array_shape(1, settings.size, settings.size, 3))
    length = pipeline.tokenizer.model_max_length
    pooled = {"pooled": unet.pooled_dim, "time_ids": 6} if unet.addition_embed else {}
    conditioning = Conditioning(
        array_shape(batch, length, unet.cross_attention_dim), vision=array_shape(batch, references, *tokens.shape[1:]),
        **{name: array_shape(batch, width) for name, width in pooled.items()})
    return array_shape(batch, *latents), conditioning, array_shape(batch, references, length)


def _bytes(tree) -> int:
    return sum(int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
