"""How programs are compiled: the persistent cache, with which a second run starts in seconds, and samplers."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax

DEFAULT_FOLDER = Path("~/.cache/realcustom_jax")


def enable_compilation_cache() -> str:
    """Keeps compiled programs on disk and returns the folder.

    It is JAX's own setting (`JAX_COMPILATION_CACHE_DIR` or `jax.config`) if there is one, else `DEFAULT_FOLDER`.
    Works from the next compilation on; call it before anything is compiled.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(DEFAULT_FOLDER.expanduser()))
    # JAX's threshold is a second; a small model has many smaller programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return jax.config.jax_compilation_cache_dir


def jit_sampler(function: Callable, **options) -> Callable:
    """`jax.jit(function, **options)` with the compiler options of a sampler on the platform of the UNet, which is the
    function's first argument; no device is asked for before the first call."""

    @functools.cache
    def jitted(compiler_options):
        return jax.jit(function, compiler_options=dict(compiler_options), **options)

    return functools.wraps(function)(
        lambda unet, *args, **kwargs: jitted(unet.platform.compiler_options)(unet, *args, **kwargs))
