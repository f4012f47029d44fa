"""How programs are compiled: the persistent cache, with which a second run starts in seconds, and samplers."""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from realcustom_jax.devices.programs import jit_kept

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


def jit_sampler(function: Callable, **options) -> Callable:
    """`programs.jit_kept(function, **options)` with the compiler options of a sampler on the platform of the UNet,
    which is the function's first argument; no device is asked for before the first call."""

    @functools.cache
    def jitted(compiler_options):
        return jit_kept(function, compiler_options=dict(compiler_options), **options)

    @functools.wraps(function)
    def call(unet, *args, **kwargs):
        return jitted(unet.platform.compiler_options)(unet, *args, **kwargs)

    call.lower = lambda unet, *args, **kwargs: jitted(unet.platform.compiler_options).lower(unet, *args, **kwargs)
    return call


def compile_ahead(programs: Iterable[jax.stages.Lowered]) -> list[Future]:
    """Begins to compile programs side by side, or to read them from JAX's cache so; XLA does both without Python's
    lock. Who waits for the result of a program's future and then calls it, finds it compiled."""
    threads = ThreadPoolExecutor(thread_name_prefix="compilation")
    try:
        return [threads.submit(program.compile) for program in programs]
    finally:
        threads.shutdown(wait=False)
