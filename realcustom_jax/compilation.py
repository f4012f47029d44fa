"""The persistent compilation cache: a second run starts in seconds."""

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
