"""Weights of 8 bits with a scale of their own, as ComfyUI stores them: weight = scale · stored.

Beside a layer's `weight` lies its `scale_weight` (`weight_scale` in newer files), one number or one for each row;
`scale_input` is for arithmetic in 8 bits, which is not used here, and `scaled_fp8` marks the file.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

Reader = Callable[[], np.ndarray]
_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"


def apply_scales(readers: Mapping[str, Reader]) -> dict[str, Reader]:
    """The readers with each scaled weight multiplied out, in float32, and without the scales."""
    scales = {name.removesuffix(suffix): name for name in readers for suffix in _SCALES if name.endswith(suffix)}
    scales = {layer: name for layer, name in scales.items() if f"{layer}.weight" in readers}
    dropped = {*scales.values(), *(layer + suffix for layer in scales for suffix in _UNUSED)}
    kept = {name: read for name, read in readers.items()
            if name not in dropped and name.rpartition(".")[2] != _MARK}
    return kept | {f"{layer}.weight": functools.partial(_scaled, f"{layer}.weight", readers[f"{layer}.weight"],
                                                        readers[name]) for layer, name in scales.items()}


def _scaled(name: str, read_weight: Reader, read_scale: Reader) -> np.ndarray:
    weight, scale = read_weight(), read_scale()
    if not weight.dtype.name.startswith("float8"):
        raise ValueError(f"{name} is stored as {weight.dtype.name} with a scale; only weights of float8 are.")
    if scale.size != 1 and scale.shape not in (weight.shape[:1], (*weight.shape[:1], *(1,) * (weight.ndim - 1))):
        raise ValueError(f"{name} {weight.shape} has a scale of shape {scale.shape}; expected one number, or one for "
                         "each of its rows.")
    if weight.ndim and not any(weight.strides):  # `tensors.headers_only` stands for zeros that take no memory
        return np.broadcast_to(np.float32(0), weight.shape)
    scale = np.asarray(scale, np.float32)
    return weight.astype(np.float32) * (
        scale.reshape(()) if scale.size == 1 else scale.reshape(-1, *(1,) * (weight.ndim - 1)))
