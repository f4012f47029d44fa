"""What collecting the target word's maps costs in memory: the sampler's step compiled for one chip.

    pip install libtpu
    python -m benchmarks.compiling.map_memory --kind sdxl --side 1024 --json FILE     # for a TPU v5e, on any machine
    python -m benchmarks.compiling.map_memory --kind sdxl --side 1024 --topology here # for this machine's own
    python -m benchmarks.compiling.map_memory --kind sdxl --side 1024 --topology h100 # see `gpu_program`

Nothing is run and no weight is made. The step is the three-lane one; compared are temporaries and outputs

    without maps    the same step, no target word
    with maps       as the sampler collects them
    whole weights   with the weights [heads, T, h·w] of every layer handed out, as a plain implementation would
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks.common import CONFIGS, TOKENS, latent_side, parser_of
from benchmarks.compiling.absent_cudnn import absent_cudnn
from benchmarks.compiling.gpu_program import h100
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.topology import tpu_devices
from realcustom_jax.files import write_json
from realcustom_jax.model_files import weights
from realcustom_jax.models import attention
from realcustom_jax.models.attention_kernels import attention_weights, target_maps
from realcustom_jax.models.context import for_platform
from realcustom_jax.models.unet import UNet, UNetConfig


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=sorted(CONFIGS), default="sdxl")
    parser.add_argument("--side", type=int, help="of the picture, in pixels (what the model was made for)")
    parser.add_argument("--topology", default="v5e:2x2", help="whose first chip to compile for; here: this one's; h100")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    side = latent_side(options.kind, options.side)
    machine = contextlib.nullcontext()
    if options.topology == "h100":
        device, machine = h100(), absent_cudnn()
    else:
        device = (jax.devices() if options.topology == "here" else tpu_devices(options.topology))[0]
    with machine:  # an H100 that is only described does not say that it can do cuDNN's attention
        compare_maps(options, side, device, Platform.of("gpu" if options.topology == "h100" else device))


def compare_maps(options: argparse.Namespace, side: int, device, platform: Platform) -> None:
    """Prints and writes the figures of the step on `device`, of a platform."""
    figures = {"kind": options.kind, "side": side, "chip": device.device_kind}
    for name, target, collect in (
        ("without maps", False, target_maps), ("with maps", True, target_maps),
        ("whole weights", True, whole_weights),
    ):
        with mock.patch.object(attention, "target_maps", collect):
            figures[name] = compiled(options.kind, side, target, device, platform)
        print(json.dumps({name: figures[name]}), flush=True)
    plain = figures["without maps"]
    for name in ("with maps", "whole weights"):
        figures[name]["more than without"] = round(
            sum(figures[name][part] - plain[part] for part in _COUNTED) / sum(plain[part] for part in _COUNTED), 4)
        print(f"{name}: {figures[name]['more than without']:+.2%} of temporaries and outputs")
    if options.json:
        write_json(options.json, figures)


_COUNTED = "temporaries", "outputs"


def compiled(kind: str, side: int, target: bool, device, platform: Platform) -> dict:
    """Bytes of the compiled step on a chip, and how long it took to compile."""
    settings = {"image_prompt_settings": {"vision_projection_type": "custom"}}
    unet = UNet(UNetConfig.from_config(CONFIGS[kind] | settings), jnp.bfloat16, platform)
    config, (text, vision) = unet.config, TOKENS[kind]

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    args, kwargs = weights.unet_inputs(config)
    shapes = jax.eval_shape(lambda params: for_platform(params, platform),
                            weights.parameter_shapes(unet, *args, **kwargs))
    params = jax.tree.map(lambda x: array(*x.shape), shapes)
    width = config.cross_attention_dim
    inputs = {
        "sample": array(3, side, side, config.in_channels, dtype=jnp.float32), "timestep": array(3, dtype=jnp.int32),
        "text": array(3, text, width), "vision": array(2, 1, vision, width), "mask": array(2, 1, side // 2, side // 2),
        "target": array(1, 1, text) if target else None}
    if config.addition_embed:
        inputs |= {"pooled": array(3, config.pooled_dim), "time_ids": array(3, 6)}
    start = time.monotonic()
    step = jax.jit(lambda params, inputs: unet.apply({"params": params}, guidance_lanes=1, **inputs))
    memory = step.lower(params, inputs).compile(compiler_options=dict(platform.compiler_options)).memory_analysis()
    return {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes, "compile_seconds": round(time.monotonic() - start, 1)}


def whole_weights(query, key, target, platform):
    """`target_maps` with every head's and token's weights [B, heads·T, N] as the maps."""
    return attention_weights(query, key).swapaxes(2, 3).reshape(len(query), -1, query.shape[1])


if __name__ == "__main__":
    main()
