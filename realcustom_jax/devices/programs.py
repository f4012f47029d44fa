"""Compiled programs on disk, so that the next process neither traces nor compiles them.

JAX's persistent cache saves the compiler's time, but a program must be traced before it is found there, and tracing a
UNet in Python takes seconds. Here a program is found by what it would be traced from: its function, the static
arguments, the shapes of the others, the versions, the device, the settings, and the code of this package. What is found
is what was compiled, by JAX's own serialisation, and gives the same numbers to the bit.

Files lie in `programs/` within the folder of JAX's cache, and whatever turns that off turns this off. They hold pickled
objects, so only a folder that belongs to the user, and that nobody else may write to, is read. A file that is damaged
is not used, with a warning, and written anew. Under a transformation, on several devices, and where JAX is told to look
for NaN, a function is called as ever.
"""

import functools
import hashlib
import inspect
import json
import os
import pickle
import platform as machine
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from realcustom_jax.files import write_file

_MAGIC = b"realcustom program 1\n"
_LARGEST = 4 * 2**30  # bytes of all files together; the oldest go first
_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_numpy_dtype_promotion", "jax_default_prng_impl",
             "jax_threefry_partitionable", "jax_numpy_rank_promotion", "jax_disable_most_optimizations")
_UNUSUAL = "jax_disable_jit", "jax_debug_nans", "jax_debug_infs"
_ENVIRONMENT = "XLA_FLAGS", "LIBTPU_INIT_ARGS"


def keep_program(jitted: Callable, *, static_argnums: int | Sequence[int] = (),
                 static_argnames: str | Sequence[str] = (), compiler_options: Any = ()) -> Callable:
    """The jitted function, whose programs are kept. The options are those that `jax.jit` was given."""
    static_argnums = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    static_argnames = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    loaded: dict[Any, Callable] = {}

    @functools.wraps(jitted)
    def call(*args, **kwargs):
        statics = (*((i, args[i]) for i in static_argnums), *((k, kwargs[k]) for k in static_argnames if k in kwargs))
        others, named = _dynamic(args, kwargs, statics)
        leaves, tree = jax.tree.flatten((others, named))
        if _folder() is None or not _usual(leaves):
            return jitted(*args, **kwargs)
        signature = statics, tree, tuple(map(_abstract, leaves))
        if signature in loaded:
            return loaded[signature](*others, **named)
        loaded[signature], result = _load(jitted, signature, compiler_options, args, kwargs)
        return result

    return call


def keep_shapes(compute: Callable[[], Any], *about: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes by path that `compute` finds in seconds of tracing, kept for the same package and `about`, values
    whose repr says what they are."""
    key = _key("shapes", *map(_described, about))
    try:
        if (found := _read(key)) is not None:
            return {tuple(path): tuple(shape) for path, shape in json.loads(found)}
    except (ValueError, TypeError):
        pass  # whatever else was written there is written anew
    shapes = compute()
    _write(key, json.dumps([[list(path), list(shape)] for path, shape in shapes.items()]).encode())
    return shapes


def _dynamic(args, kwargs, statics) -> tuple[list, dict]:
    """The arguments that are not static."""
    left_out = {name for name, _ in statics}
    return ([x for i, x in enumerate(args) if i not in left_out],
            {name: x for name, x in kwargs.items() if name not in left_out})


def _usual(leaves: Sequence[Any]) -> bool:
    """Whether these are arrays of one device, and nothing asks for more than the function's result."""
    if any(isinstance(x, jax.core.Tracer) for x in leaves) or any(getattr(jax.config, name) for name in _UNUSUAL):
        return False
    devices = {device for x in leaves if isinstance(x, jax.Array) for device in x.devices()}
    return (devices <= {jax.devices()[0]} and jax.sharding.get_abstract_mesh().empty
            and jax.config.jax_default_device is None)


def _abstract(leaf: Any) -> tuple:
    of = jax.typeof(leaf)
    return of.shape, str(of.dtype), getattr(of, "weak_type", False)


def _load(jitted: Callable, signature, compiler_options, args, kwargs) -> tuple[Callable, Any]:
    """The program of a signature, from the disk, or compiled and written there; and its result for these arguments."""
    statics, tree, avals = signature
    others, named = _dynamic(args, kwargs, statics)
    key = _key(f"{jitted.__module__}.{jitted.__qualname__}", repr(sorted(dict(compiler_options).items())),
               *(f"{name}={_described(x)}" for name, x in statics), str(tree), repr(avals))
    try:
        if (found := _read(key)) is not None:
            program = serialize_executable.deserialize_and_load(*pickle.loads(found))
            return program, jax.block_until_ready(program(*others, **named))  # what XLA cannot run it says only now
    except Exception as error:  # whatever another version of JAX or XLA makes of it
        warnings.warn(f"a compiled program in {_folder()} cannot be used ({type(error).__name__}) and is compiled "
                      "anew.", stacklevel=4)
    compiled = _compiled(jitted, args, kwargs)
    try:
        _write(key, pickle.dumps(serialize_executable.serialize(compiled)))
    except Exception:  # a backend that serialises no programs; it runs all the same
        pass
    return compiled, compiled(*others, **named)


def _compiled(jitted: Callable, args, kwargs):
    """The compiled function. On a CPU not from JAX's own cache, because XLA loses a part of a program that it has
    loaded when that is serialised again."""
    lowered = jitted.lower(*args, **kwargs)
    if jax.default_backend() != "cpu":
        return lowered.compile()
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _described(value: Any) -> str:
    """What a static argument is, the same in every process."""
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    # The platform of a module is not in its repr.
    return f"{value!r} {getattr(value, 'platform', '')!r}"


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join((*_surroundings(), *parts)).encode()).hexdigest()


def _surroundings() -> list[str]:
    """All that decides what a program is beside its function and arguments."""
    return [*_lasting(), *(os.environ.get(name, "") for name in _ENVIRONMENT),
            *(repr(getattr(jax.config, name, None)) for name in _SETTINGS)]


@functools.cache
def _lasting() -> tuple[str, ...]:
    device = jax.devices()[0]
    processor = ""
    if device.platform == "cpu":  # programs are compiled for the instructions of this processor
        try:
            processor = "".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$",
                                           Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2])
        except OSError:
            processor = machine.processor()
    code = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        code.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return (jax.__version__, jaxlib.__version__, flax.__version__, np.__version__, machine.python_version(),
            machine.machine(), device.platform, device.device_kind, str(len(jax.devices())),
            device.client.platform_version, processor, code.hexdigest())


def _folder() -> Path | None:
    """Where the files lie; None where JAX's cache is off, or not in a folder of this machine."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not jax.config.jax_enable_compilation_cache:
        return None
    return Path(folder) / "programs"


def _is_ours(folder: Path) -> bool:
    """Whether the folder is the user's and nobody else may write to it."""
    if not hasattr(os, "getuid"):
        return True
    state = folder.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def _read(key: str) -> bytes | None:
    """What is kept under a key, None for nothing. Raises ValueError for a damaged file."""
    if (folder := _folder()) is None:
        return None
    try:
        if not _is_ours(folder):
            return None
        content = (folder / key).read_bytes()
    except OSError:
        return None
    digest, body = content[len(_MAGIC):len(_MAGIC) + 32], content[len(_MAGIC) + 32:]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{folder / key} is damaged.")
    return body


def _write(key: str, body: bytes) -> None:
    """Keeps what can be read again; a folder that cannot be written to keeps nothing."""
    if (folder := _folder()) is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            write_file(folder / key, _MAGIC + hashlib.sha256(body).digest() + body)
            _prune(folder)
    except OSError:
        pass


def _prune(folder: Path) -> None:
    files = sorted(((file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir()), reverse=True)
    total = 0
    for _, size, file in files:
        total += size
        if total > _LARGEST:
            file.unlink(missing_ok=True)
