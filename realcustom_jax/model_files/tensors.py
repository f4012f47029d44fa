"""Weight files, read tensor by tensor, so that a model's files are never in memory twice.

A `LazyTensors` knows the names in one or several files and reads a tensor when it is asked for. Under `headers_only`
a model is loaded as ever, with every check of names and shapes, but its numbers are not read.
"""

import contextlib
import contextvars
import functools
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from realcustom_jax.errors import needs_extra
from realcustom_jax.model_files.kinds import check_is_itself
from realcustom_jax.model_files.names import MARKERS, is_bookkeeping, listed, wrapping
from realcustom_jax.model_files.scaled import apply_scales
from realcustom_jax.paths import as_path, local_copy

Reader = Callable[[], np.ndarray]
_DEEPEST = 8  # dictionaries within dictionaries; a file may hold one within itself
_TORCH = (".bin", ".pth", ".pt", ".ckpt")
_UNREADABLE = ("weight file {}: {} is a tensor of kind {}, which cannot be read; save the weights as dense tensors of "
               "float32, float16, bfloat16 or float8.")
# safetensors' names of types → numpy's; those of ml_dtypes are known to neither safetensors' reader nor numpy itself.
_TYPES = {"BOOL": np.bool_, "F16": np.float16, "F32": np.float32, "F64": np.float64, "C64": np.complex64,
          **{f"{kind}{bits}": np.dtype(f"{name}{bits}") for kind, name in (("I", "int"), ("U", "uint"))
             for bits in (8, 16, 32, 64)},
          "BF16": ml_dtypes.bfloat16}
_EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
               "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
               "F8_E8M0": ml_dtypes.float8_e8m0fnu}

_headers_only = contextvars.ContextVar("headers_only", default=False)


@contextlib.contextmanager
def headers_only():
    """Within it, tensors have the shapes of the files and stand for zeros that take no memory; `weights` gives
    `jax.ShapeDtypeStruct`s for parameters. It says what a model would need without the time and memory to load it."""
    token = _headers_only.set(True)
    try:
        yield
    finally:
        _headers_only.reset(token)


def reads_headers_only() -> bool:
    """Whether this is within `headers_only`."""
    return _headers_only.get()


class LazyTensors(Mapping[str, np.ndarray]):
    """Tensors by name; each look-up reads the tensor anew.

    `readers`: name → a function that reads the tensor. `metadata`: what the files say of themselves beside tensors.
    """

    def __init__(self, readers: Mapping[str, Reader], metadata: Mapping[str, str] | None = None):
        self.readers = dict(readers)
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def __contains__(self, name: object) -> bool:
        return name in self.readers  # Mapping's own would read the tensor

    def rename(self, new_name: Callable[[str], str | None]) -> "LazyTensors":
        """The same tensors under other names; those whose new name is None are left out."""
        renamed = {new: read for old, read in self.readers.items() if (new := new_name(old)) is not None}
        return LazyTensors(renamed, self.metadata)

    def replace(self, **readers: Reader) -> "LazyTensors":
        """A copy in which some tensors are read in another way."""
        return LazyTensors(self.readers | readers, self.metadata)


def read_tensors(*files: str | Path | LazyTensors) -> LazyTensors:
    """The tensors of one or several files in one mapping; later files override earlier ones.

    Names are the network's own: what another module put in front of all of a file's names is taken away, what training
    keeps beside the weights is left out with a warning (module `names`), and scaled tensors of 8 bits are multiplied
    out (module `scaled`).

    Args:
        files: `.safetensors` files, torch files (`.bin`, `.pth`, `.pt`, `.ckpt`; loaded weights-only), or what has been
            read of such files before.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is truncated, of another kind, or holds anything but tensors.
    """
    readers, metadata = {}, {}
    for file in files:
        if not isinstance(file, LazyTensors):
            file = _read_file(local_copy(as_path(file)))
        readers |= file.readers
        metadata |= file.metadata
    return LazyTensors(readers, metadata)


def _read_file(path: Path) -> LazyTensors:
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist.")
    if path.suffix not in (".safetensors", *_TORCH):
        raise ValueError(f"weight file {path}: unknown kind {path.suffix!r}; expected .safetensors, "
                         f"{', '.join(_TORCH[:-1])} or {_TORCH[-1]}.")
    check_is_itself(path)
    readers, others, metadata = _open_torch(path) if path.suffix in _TORCH else _open_safetensors(path)
    others += [name for name in readers if is_bookkeeping(name)]
    if others:
        roots = {name.partition(".")[0] for name in others}
        warnings.warn(f"weight file {path} also holds what is no weight of a network and is ignored: "
                      f"{listed(roots, 5)}.", stacklevel=3)
    readers = apply_scales({name: read for name, read in readers.items() if not is_bookkeeping(name)})
    prefix = wrapping(readers)
    return LazyTensors({name if name in MARKERS else name[len(prefix):]: read for name, read in readers.items()},
                       metadata)


def read_index(path: Path) -> tuple[Path, ...]:
    """The files that a `*.index.json` of sharded weights names.

    Raises:
        FileNotFoundError, ValueError: the index or one of its files is missing or not what it should be.
    """
    check_is_itself(path)
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not an index of sharded weights (a JSON object with a weight_map).") from None
    files = tuple(path.parent / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"The model is not complete: {path} names {', '.join(missing)}, missing beside it.")
    return files


Opened = tuple[dict[str, Reader], list[str], dict[str, str]]
"""(readers of the tensors, names of what else there is, metadata) of a file."""


def _open_safetensors(path: Path) -> Opened:
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"weight file {path} is truncated or not a safetensors file ({error}).") from None

    hollow = reads_headers_only()

    # One file object serves all tensors: it maps the file, and stays open as long as a reader lives.
    def read(name):
        part = file.get_slice(name)
        kind, shape = part.get_dtype(), part.get_shape()
        if kind not in _TYPES | _EIGHT_BITS:
            raise ValueError(_UNREADABLE.format(path, name, kind))
        if hollow:
            return np.broadcast_to(np.zeros((), (_TYPES | _EIGHT_BITS)[kind]), shape)
        return _read_bytes(path, name, _EIGHT_BITS[kind], shape) if kind in _EIGHT_BITS else file.get_tensor(name)

    return {name: functools.partial(read, name) for name in file.keys()}, [], file.metadata() or {}


def _read_bytes(path: Path, name: str, dtype, shape: list[int]) -> np.ndarray:
    """A tensor of a type that safetensors' reader for numpy does not know; the header was checked when it opened."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[name]["data_offsets"]
        file.seek(8 + length + start)
        return np.frombuffer(file.read(end - start), dtype).reshape(shape)


def _open_torch(path: Path) -> Opened:
    with needs_extra("torch", f"reading {path}", "or give the weights as .safetensors"):
        import torch
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds; all mean that the file is not a plain tensor file
        # Its own words advise to unpickle all the same.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what, instead = "is truncated or not a torch file of tensors", "get the file anew, or give safetensors"
        if found:
            what, instead = f"holds the Python object {found[1]}", "give its state dict alone, or safetensors"
        raise ValueError(f"weight file {path} {what}: refused, as only tensors are read and nothing is unpickled; "
                         f"{instead}.") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    values = dict(_flat(content)) if isinstance(content, dict) else {f"a {type(content).__name__}": [content]}
    # A LoRA's trainer may write the number α as it is.
    values = {name: torch.tensor(value) if name.endswith(".alpha") and isinstance(value, (int, float)) else value
              for name, value in values.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    others = [name for name in values if name not in tensors]
    odd = [name for name in others if not (values[name] is None or isinstance(values[name], (str, int, float)))]
    if odd or others and not tensors:
        raise ValueError(f"weight file {path} is not a dictionary of tensors: it holds {listed((odd or others)[:1])}; "
                         "give a state dict, names to tensors.")
    return {name: functools.partial(_from_torch, path, name, tensor) for name, tensor in tensors.items()}, others, {}


def _flat(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in dictionaries within dictionaries, their names joined by dots."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if is_bookkeeping(name):
            yield name, None
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flat(value, f"{name}.", depth + 1)
        else:
            yield name, value if isinstance(key, str) or value is None else [value]


def _from_torch(path: Path, name: str, tensor) -> np.ndarray:
    """A torch tensor as an array that shares its memory."""
    import torch

    try:
        # Parameters that were saved as such ask for gradients, which numpy's arrays cannot have.
        tensor = tensor.detach()
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind == "bfloat16" or kind.startswith("float8"):
            # numpy has no such type of its own, and torch gives it none: the bits are read as whole numbers.
            bits = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
            return tensor.contiguous().view(bits).numpy().view(getattr(ml_dtypes, kind))
        return tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError, AttributeError):
        kind = f"{tensor.layout} {tensor.dtype} on {tensor.device}".replace("torch.", "")
        raise ValueError(_UNREADABLE.format(path, name, kind)) from None
