"""The fused sampler's program for an NVIDIA H100 that is not there: how many kernels it has, and its memory.

    pip install --no-deps jax-cuda12-pjrt jax-cuda12-plugin    # of jax's own version; no CUDA library is needed
    JAX_PLATFORMS=cpu python -m benchmarks.compiling.gpu_program --kind sdxl --side 1024

XLA compiles for a GPU from its description, but tunes nothing, so that a kernel more or less is what this tells, and no
time. Between two kernels of an H100 lie 1.7 µs (RESULTS.md). One picture, 25 steps, the mask frozen at the 12th.
"""

import re
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.common import show
from benchmarks.compiling.absent_cudnn import absent_cudnn
from benchmarks.compiling.sampler import parse_size
from realcustom_jax.devices.ahead_of_time import Sampler, computations, executions
from realcustom_jax.devices.platform import Platform
from realcustom_jax.model_files import single_file

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_NO_KERNEL = {"get-tuple-element", "parameter", "bitcast", "constant", "tuple", "after-all", "while", "conditional"}
_OF_A_LAYER = 100
"""Kernels that the body of a loop over layers never has, and that of a loop over steps has many times over."""


def main() -> None:
    options, device = parse_size(__doc__), h100()
    platform = Platform.of("gpu")
    sampler = Sampler(single_file.CONFIGS[options.kind]["unet"], options.side, platform=platform)
    start = time.monotonic()
    with absent_cudnn():
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)),
            sampler.arguments())
        untuned = dict(platform.compiler_options) | {"xla_gpu_autotune_level": 0}
        compiled = sampler.function(None).lower(*arguments).compile(compiler_options=untuned)
    memory = compiled.memory_analysis()
    show({
        "kind": options.kind, "side": options.side, "jax": jax.__version__, **kernels(compiled.as_text()),
        "arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "seconds": round(time.monotonic() - start, 1)}, options.json)


def h100():
    """The device to compile for."""
    try:
        return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100).devices[0]
    except Exception as error:  # of many kinds, by what is missing
        raise SystemExit(f"XLA for CUDA is not there ({str(error).splitlines()[0]}): install it as the help of "
                         "benchmarks.compiling.gpu_program says") from None


def kernels(program: str) -> dict[str, Any]:
    """Kernels of a step in each loop over steps, by its rounds, and of everything outside these loops."""
    texts = computations(program)
    times = executions(texts)
    bodies = {name for text in texts.values() for name in re.findall(r"body=%([\w.-]+)", text)}
    count = {name: sum(map(_is_kernel, text.splitlines())) for name, text in texts.items()}
    *_, entry = texts
    steps = {name for name in bodies if count[name] > _OF_A_LAYER}
    outside = count[entry] + sum(times[name] * count[name] for name in bodies - steps)
    return {"kernels of a step": {f"{times[name]} steps": count[name] for name in steps}, "kernels outside": outside}


def _is_kernel(line: str) -> bool:
    operation = re.search(r" = (?:\(.*?\)|\S+) ([a-z][\w-]*)\(", line)
    return bool(operation) and operation[1] not in _NO_KERNEL and not operation[1].endswith("-done")


if __name__ == "__main__":
    main()
