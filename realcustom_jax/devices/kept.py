"""Small files of what was made once, beside JAX's cache of compiled programs, for the processes that come after.

    the folder   `kept/` in JAX's own (`compilation.enable_compilation_cache`); where JAX keeps nothing, nothing is kept
    a key        a digest of all that the content depends on: what was asked for, this package's source files, the
                 versions of JAX and Flax, JAX's settings, and the kind of device
    a file       the checksum of its key and content, then the content: a damaged or a renamed one is told, and made
                 anew. Nothing in it is run by being read

The folder has a bound, beyond which the files that were not used for longest go. Writing never fails: a folder that
cannot be written to, or a full disk, means that nothing is kept.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.files import write_file

MOST_BYTES = 2**29
_LIBRARIES = "jax", "jaxlib", "flax", "numpy"
_DIGEST = hashlib.sha256
_LINE = 2 * _DIGEST().digest_size + 1  # a checksum and the end of its line
# Settings that change neither a traced program nor what it computes, but differ between runs.
_OTHER_SETTINGS = "cache", "log", "traceback", "dump"


def keeps() -> bool:
    """Whether anything is kept here: JAX keeps programs, in a folder of this machine, and runs them whole."""
    set_to = jax.config
    return bool(
        set_to.jax_enable_compilation_cache and set_to.jax_compilation_cache_dir
        and "://" not in str(set_to.jax_compilation_cache_dir) and set_to.jax_compilation_cache_max_size
        and set_to.jax_default_device is None and jax.process_count() == 1
        and not (set_to.jax_disable_jit or set_to.jax_debug_nans or set_to.jax_debug_infs))


def key_of(*parts: Any) -> str | None:
    """The key of what these describe, see `describe`; None where one cannot be described, or where the package's
    source files are no longer those that this process runs."""
    if not _CODE or _source_states() != _STATES:
        return None
    settings = [(name, getattr(jax.config, name)) for name in _SETTINGS]  # of this thread, and as they are now
    device = jax.devices()[0]
    where = jax.default_backend(), device.device_kind, device.client.platform_version
    try:
        return _DIGEST(repr((_CODE, _VERSIONS, settings, where, describe(parts))).encode()).hexdigest()
    except TypeError:
        return None


def read(key: str) -> bytes | None:
    """The content that is kept for a key, or None; warns if its file is damaged."""
    with contextlib.suppress(OSError):
        file = _folder() / key
        content = file.read_bytes()
        if content[:_LINE] == _checksum(key, content[_LINE:]):
            with contextlib.suppress(OSError):
                os.utime(file)
            return content[_LINE:]
        # Equal texts are shown once, however many files are.
        warnings.warn(f"a file in {_folder()} is damaged; what it held is made anew.", stacklevel=2)
    return None


def write(key: str, content: bytes) -> None:
    """Keeps a content where that can be done."""
    with contextlib.suppress(OSError):
        write_file(_folder() / key, _checksum(key, content) + content, mode=0o600)
        _remove_oldest(_folder())


def describe(value: Any) -> Any:
    """A nested tuple whose `repr` says all that a value is, the same in every process; arrays by shape and type alone.

    Raises:
        TypeError: for a value that only this process knows, such as a function that was made within another.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        kind = jax.typeof(value)
        return "array", kind.shape, kind.dtype.name, kind.weak_type
    if isinstance(value, jax.core.ShapedArray):
        return "array", value.shape, value.dtype.name, value.weak_type
    if isinstance(value, jax.tree_util.PyTreeDef):
        node = value.node_data()
        return "tree", describe(node), tuple(map(describe, value.children())), value.num_leaves
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *map(describe, value)
    if isinstance(value, Mapping):
        return "mapping", *((describe(key), describe(value[key])) for key in value)
    if isinstance(value, (np.dtype, type(jnp.float32))) or (isinstance(value, type) and issubclass(value, np.generic)):
        return "dtype", jnp.dtype(value).name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, nn.Module) and value.parent is not None:
            raise TypeError(f"{value!r} is a part of another module.")
        fields = (field.name for field in dataclasses.fields(value) if field.name != "parent")
        return _name(type(value)), *((name, describe(getattr(value, name))) for name in fields)
    if isinstance(value, type) or inspect.isroutine(value):
        return _name(value)
    raise TypeError(f"{value!r} has no description.")


def _name(thing: Any) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if "<" in name:
        raise TypeError(f"{name} is known to this process alone.")
    return name


def _folder() -> Path:
    return Path(jax.config.jax_compilation_cache_dir) / "kept"


def _checksum(key: str, content: bytes) -> bytes:
    return _DIGEST(key.encode() + content).hexdigest().encode() + b"\n"


def _remove_oldest(folder: Path) -> None:
    """Down to the bound, which is the user's for JAX's cache if that is lower (-1 is none)."""
    given = jax.config.jax_compilation_cache_max_size
    most = MOST_BYTES if given < 0 else min(given, MOST_BYTES)
    files = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda found: -found[0].st_mtime_ns)
    total = 0
    for known, file in files:
        total += known.st_size
        if total > most:
            file.unlink(missing_ok=True)


def _source_states() -> list[tuple]:
    """Name, time and size of each of this package's source files; none where they cannot be found."""
    root = Path(__file__).parents[1]
    with contextlib.suppress(OSError):
        return [(file, state.st_mtime_ns, state.st_size)
                for file, state in ((file, file.stat()) for file in sorted(root.rglob("*.py")))]
    return []


def _source_code(files: list[Path]) -> str:
    """A digest of source files; empty where there are none to be read."""
    with contextlib.suppress(OSError):
        content = [(file.relative_to(Path(__file__).parents[1]).as_posix(), file.read_bytes()) for file in files]
        return _DIGEST(repr(content).encode()).hexdigest() if content else ""
    return ""


_SETTINGS = sorted(name for name in jax.config.values
                   if hasattr(jax.config, name) and not any(word in name for word in _OTHER_SETTINGS))
_VERSIONS = tuple((name, version(name)) for name in _LIBRARIES)
# Taken while the package is imported: what is edited later is not what this process runs.
_STATES = _source_states()
_CODE = _source_code([file for file, *_ in _STATES])
