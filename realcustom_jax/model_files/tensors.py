"""Weight files, read tensor by tensor, so that a model's files are never in memory twice.

A `LazyTensors` knows the names in one or several files and reads a tensor when it is asked for. Under `headers_only`
a model is loaded as ever, with every check of names and shapes, but its numbers are not read.
"""

import contextlib
import contextvars
import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

Reader = Callable[[], np.ndarray]
_TORCH = (".bin", ".pth", ".pt", ".ckpt")
_UNREADABLE = ("weight file {}: {} is a tensor of kind {}, which cannot be read; save the weights as dense tensors of "
               "float32, float16 or bfloat16.")

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

    `readers`: name → a function that reads the tensor.
    """

    def __init__(self, readers: Mapping[str, Reader]):
        self.readers = dict(readers)

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
        return LazyTensors({new: read for old, read in self.readers.items() if (new := new_name(old)) is not None})

    def replace(self, **readers: Reader) -> "LazyTensors":
        """A copy in which some tensors are read in another way."""
        return LazyTensors(self.readers | readers)


def read_tensors(*files: str | Path | LazyTensors) -> LazyTensors:
    """The tensors of one or several files in one mapping; later files override earlier ones.

    Args:
        files: `.safetensors` files, torch files (`.bin`, `.pth`, `.pt`, `.ckpt`; loaded weights-only), or what has been
            read of such files before.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is truncated, of another kind, or holds anything but tensors.
    """
    readers = {}
    for file in files:
        if isinstance(file, LazyTensors):
            readers |= file.readers
            continue
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"weight file {path} does not exist.")
        if path.suffix not in (".safetensors", *_TORCH):
            raise ValueError(f"weight file {path}: unknown kind {path.suffix!r}; expected .safetensors, "
                             f"{', '.join(_TORCH[:-1])} or {_TORCH[-1]}.")
        readers |= _open_torch(path) if path.suffix in _TORCH else _open_safetensors(path)
    return LazyTensors(readers)


def read_index(path: Path) -> tuple[Path, ...]:
    """The files that a `*.index.json` of sharded weights names.

    Raises:
        FileNotFoundError, ValueError: the index or one of its files is missing or not what it should be.
    """
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not an index of sharded weights (a JSON object with a weight_map).") from None
    files = tuple(path.parent / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"The model is not complete: {path} names {', '.join(missing)}, missing beside it.")
    return files


def _open_safetensors(path: Path) -> dict[str, Reader]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"weight file {path} is truncated or not a safetensors file ({error}).") from None

    def hollow(name):
        return np.broadcast_to(np.float32(0), file.get_slice(name).get_shape())

    def whole(name):
        try:
            return file.get_tensor(name)
        except AttributeError:  # numpy has no such type
            raise ValueError(_UNREADABLE.format(path, name, file.get_slice(name).get_dtype())) from None

    # One file object serves all tensors: it maps the file, and stays open as long as a reader lives.
    read = hollow if reads_headers_only() else whole
    return {name: functools.partial(read, name) for name in file.keys()}


def _open_torch(path: Path) -> dict[str, Reader]:
    try:
        import torch
    except ImportError:
        raise ValueError(f"reading {path} needs torch: install it, or give the weights as .safetensors.") from None
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds; all mean that the file is not a plain tensor file
        # Its own words advise to unpickle all the same.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds the Python object {found[1]}" if found else "is truncated or not a torch file of tensors"
        raise ValueError(f"weight file {path} {what}: refused, as only tensors are read and nothing is unpickled; give "
                         "a state dict saved by torch.save, or safetensors.") from None
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    others = [key for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))
              ] if isinstance(tensors, dict) else [f"a {type(tensors).__name__}"]
    if others:
        raise ValueError(f"weight file {path} is not a dictionary of tensors: it holds {others[0]}; give a state dict, "
                         "names to tensors.")
    return {name: functools.partial(_from_torch, path, name, tensor) for name, tensor in tensors.items()}


def _from_torch(path: Path, name: str, tensor) -> np.ndarray:
    """A torch tensor as an array that shares its memory."""
    import torch

    try:
        # Parameters that were saved as such ask for gradients, which numpy's arrays cannot have.
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError, NotImplementedError):
        kind = f"{tensor.layout} {tensor.dtype} on {tensor.device}".replace("torch.", "")
        raise ValueError(_UNREADABLE.format(path, name, kind)) from None


_KINDS = {  # a name that only this kind of file holds → what the file is
    "image_proj.latents": "an IP-Adapter",
    "lora": "a LoRA",
    "model.diffusion_model.": "a single-file Stable Diffusion checkpoint",
    "encoder_hidden_states_vision_projection.": "a RealCustom adapter",
    "to_k_vision.": "a UNet with RealCustom's visual attention",
    "visual.trunk.": "an open_clip checkpoint with a timm vision tower",
    "visual.": "an open_clip checkpoint whose vision tower is not timm's (no visual.trunk. keys)",
    "text.transformer.": "the text tower of an open_clip checkpoint (no visual.trunk. keys)",
    "vision_model.": "a transformers vision model",
    "text_model.": "a CLIP text encoder of transformers",
    "down_blocks.0.resnets.0.time_emb_proj.": "a diffusers UNet",
    "post_quant_conv.": "a diffusers autoencoder",
    "decoder.up_blocks.": "a diffusers autoencoder",
    "first_stage_model.": "a single-file Stable Diffusion checkpoint",
    "blocks.0.attn.qkv.": "a timm vision transformer",
}


def identify(names: Iterable[str]) -> str:
    """What weights of these names are, in words; "no model that we know" for others."""
    names = list(names)
    return next((what for mark, what in _KINDS.items() if any(mark in name for name in names)), "no model that we know")
