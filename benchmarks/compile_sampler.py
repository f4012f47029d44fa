"""How long the full-size sampler takes to trace, lower and compile, and what memory it needs; no weights are made.

    python -m benchmarks.compile_sampler --kind sdxl --side 1024

The whole fused sampler, bfloat16, 25 steps, mask frozen at step 12, one reference, one picture, for this machine's
backend.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from realcustom_jax import single_file, weights
from realcustom_jax.diffusion import make_solver
from realcustom_jax.files import write_json
from realcustom_jax.memory import temporary_bytes
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling import Conditioning, sample_latents

VISION_TOKENS = 729  # of the released projector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("sdxl", "sd15"), default="sdxl")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    config = single_file.CONFIGS[options.kind]["unet"] | {"image_prompt_settings": {"vision_projection_type": "custom"}}
    unet = UNet(UNetConfig.from_config(config), jnp.bfloat16)
    args, kwargs = weights.unet_inputs(unet.config)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
                          weights.parameter_shapes(unet, *args, **kwargs))
    inputs = sampler_inputs(unet.config, options.side // 8)

    def sample(params, *inputs):
        return sample_latents(unet, params, *inputs, solver=make_solver()).latents

    figures = {"kind": options.kind, "side": options.side, "backend": jax.default_backend()}
    start = time.perf_counter()
    traced = jax.jit(sample).trace(params, *inputs)
    figures["trace_s"], start = round(time.perf_counter() - start, 1), time.perf_counter()
    lowered = traced.lower()
    figures["lower_s"], start = round(time.perf_counter() - start, 1), time.perf_counter()
    figures["estimated_bytes"] = temporary_bytes(traced.jaxpr.jaxpr, params)
    start = time.perf_counter()
    compiled = lowered.compile()
    figures["compile_s"] = round(time.perf_counter() - start, 1)
    memory = compiled.memory_analysis()
    figures |= {"argument_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes}
    print(json.dumps(figures, indent=2))
    if options.json:
        write_json(options.json, figures)


def sampler_inputs(config: UNetConfig, side: int):
    """Shapes of noise, positive, negative and target for latents of `side`."""
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    pooled = {"pooled": array(1, config.pooled_dim), "time_ids": array(1, 6)} if config.addition_embed else {}
    width = config.cross_attention_dim
    conditioning = Conditioning(array(1, 77, width), vision=array(1, 1, VISION_TOKENS, width), **pooled)
    return array(1, side, side, config.in_channels), conditioning, conditioning, array(1, 1, 77)


if __name__ == "__main__":
    main()
