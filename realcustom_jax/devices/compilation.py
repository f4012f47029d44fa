"""How programs are compiled: the persistent cache, with which a second run starts in seconds, and XLA's options."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax

DEFAULT_FOLDER = Path("~/.cache/realcustom_jax")
_JAX_THRESHOLD = 1.0  # seconds of compile time from which on JAX keeps a program, unless it is told otherwise


def enable_compilation_cache() -> str:
    """Keeps compiled programs on disk, in `DEFAULT_FOLDER`, and returns the folder.

    A user who has named a folder (`JAX_COMPILATION_CACHE_DIR` or `jax.config`) keeps every setting of the cache; a user
    who has only set the threshold of compile time keeps that one. Works from the next compilation on; call it before
    anything is compiled.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(DEFAULT_FOLDER.expanduser()))
        if jax.config.jax_persistent_cache_min_compile_time_secs == _JAX_THRESHOLD:
            # A small model consists of many programs that compile faster than JAX's threshold.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return jax.config.jax_compilation_cache_dir


def sampler_options() -> dict[str, bool | int]:
    """The compiler options that make a sampler fast on this machine's device, for `jax.jit(…, compiler_options=…)`.

    On a GPU: matrix products by cuBLAS, which adds bias and residual itself, rather than by Triton's kernels, and none
    merged with its neighbours, which would copy their weights (benchmarks/RESULTS.md).
    """
    if jax.default_backend() != "gpu":
        return {}
    return {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}


def jit_sampler(function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)` with `sampler_options`; no device is asked for before the first call."""

    @functools.cache
    def jitted():
        return jax.jit(function, compiler_options=sampler_options(), **options)

    return functools.wraps(function)(lambda *args, **kwargs: jitted()(*args, **kwargs))
