"""XLA's options for training, as public recipes have them: set in the environment before JAX starts a device.

    xla_flags.set_recipe(xla_flags.platform_here())

Recipes that are read (2026-11-27); none of the options has been timed here yet:

TPU   https://github.com/AI-Hypercomputer/maxtext/blob/main/MaxText/configs/v5e/16b.sh, whose comments stand in
      https://github.com/AI-Hypercomputer/maxtext/blob/main/benchmarks/xla_flags_library.py. MaxDiffusion's scripts for
      SDXL set nothing (end_to_end/tpu/test_sdxl_training_loss.sh).
GPU   https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance (NVIDIA JAX-Toolbox)

XLA ends the process of whoever gives an option that it does not know. So the options are tried before they are set, in
a short process that reads them and starts no accelerator; those that it does not know are left out.
"""

import glob
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping

VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}
RECIPES: dict[str, dict[str, str]] = {
    "tpu": {
        # Collectives go on beside matrix products, in several steps of a loop too.
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
        "xla_enable_async_all_gather": "true",
        # Of the sums of gradients between slices.
        "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
        "xla_tpu_data_parallel_opt_different_sized_ops": "true",
    },
    "gpu": {
        # Collectives begin early and end late, so that products hide them; in loops, one round ahead.
        "xla_gpu_enable_latency_hiding_scheduler": "true",
        "xla_gpu_enable_pipelined_all_gather": "true",
        "xla_gpu_enable_pipelined_reduce_scatter": "true",
        "xla_gpu_enable_pipelined_all_reduce": "true",
        # cuBLAS adds bias and residual itself, as `Platform` has it for the sampler.
        "xla_gpu_enable_triton_gemm": "false",
        # One collective for the parameters of a layer: a transformer layer of SDXL has 105 MB in bfloat16.
        "xla_gpu_all_gather_combine_threshold_bytes": "134217728",
        "xla_gpu_reduce_scatter_combine_threshold_bytes": "134217728",
        "xla_gpu_all_reduce_combine_threshold_bytes": "134217728",
    },
}
"""By platform, the options' values by their names."""

# MaxText's for the v6e (Trillium): what a fused kernel may take of the chip's scratch memory. Its v5e recipes leave it.
_OF_V6E = {"xla_tpu_scoped_vmem_limit_kib": "98304"}
_SECONDS = 120
_READS = {
    "tpu": "from realcustom_jax.devices.topology import tpu_devices; tpu_devices('v5e:2x2')",
    "gpu": "from jaxlib import xla_client; xla_client.make_cpu_client()",
}


def platform_here(environment: Mapping[str, str] = os.environ) -> str:
    """cpu, gpu or tpu: what JAX will find on this machine, without starting it."""
    wanted = environment.get("JAX_PLATFORMS", "").split(",")[0]
    if wanted:
        return {"cuda": "gpu", "rocm": "gpu"}.get(wanted, wanted)
    if importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")):
        return "tpu"
    plugins = (f"jax_cuda{version}_plugin" for version in (12, 13))
    return "gpu" if any(map(importlib.util.find_spec, plugins)) and glob.glob("/dev/nvidia[0-9]*") else "cpu"


def recipe(platform: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The options of a platform ("cpu": none) that the environment does not set already, by their names."""
    options = dict(RECIPES.get(platform, {}))
    if platform == "tpu" and environment.get("TPU_ACCELERATOR_TYPE", "").startswith("v6e"):
        options |= _OF_V6E
    given = set(re.findall(r"--(\w+)", environment.get(VARIABLES.get(platform, ""), "")))
    return {name: value for name, value in options.items() if name not in given}


def set_recipe(platform: str, environment: MutableMapping[str, str] = os.environ,
               first_unknown: "Callable[[str, Mapping[str, str]], str | None] | None" = None) -> dict[str, str]:
    """Adds a platform's `recipe` to its variable of the environment, in front of what the user has set there, and
    returns what was added. Options that this XLA does not know are left out. Call it before JAX starts a device.

    first_unknown: of (platform, environment), the name of an option that XLA does not know, "" where it ends for
    another reason, None where it takes all; by default it is asked in a process of its own.
    """
    options, ask = recipe(platform, environment), first_unknown or _first_unknown
    while options:
        variable = VARIABLES[platform]
        own = " ".join(f"--{name}={value}" for name, value in options.items())
        tried = f"{own} {environment.get(variable, '')}".strip()
        unknown = ask(platform, {**environment, variable: tried})
        if unknown is None:
            environment[variable] = tried
            return options
        if unknown not in options:  # not an option of ours: the user's, or a machine where this cannot be tried
            return {}
        del options[unknown]
    return {}


def _first_unknown(platform: str, environment: Mapping[str, str]) -> str | None:
    """See `set_recipe`; takes about a second on a GPU's host and four on a TPU's."""
    try:
        done = subprocess.run([sys.executable, "-c", _READS[platform]], env={**environment, "JAX_PLATFORMS": "cpu"},
                              capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode == 0:
        return None
    named = re.search(r"Unknown (?:command line flag|flags? in XLA_FLAGS:)\s*'?(?:--)?(\w+)", done.stdout + done.stderr)
    return named[1] if named else ""
