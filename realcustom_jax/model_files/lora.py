"""LoRA: low-rank changes of a model's weights (arXiv 2106.09685), merged into them in float32 while they are read.

For a layer with the weight W a file holds `down` and `up`, whose common side is the rank r, and often a number α:

    linear layers           W[o, i]       + scale · α/r · Σ_a up[o, a] · down[a, i]
    convolutions (LoCon)    W[o, i, y, x] + scale · α/r · Σ_a up[o, a] · down[a, i, y, x]
    the same in three       W[o, i, y, x] + scale · α/r · Σ_ab up[o, a] · mid[a, b, y, x] · down[b, i]

Without α, α/r is 1. Files name the layers as diffusers and transformers do, or as Stable Diffusion's original code
does, with dots or with underscores in their place. All these names are made of the model's own ones: where dots became
underscores, a name cannot be taken apart without guessing.
"""

import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from realcustom_jax.model_files import single_file
from realcustom_jax.model_files.lora_files import PARTS, Layer, Lora, read_loras
from realcustom_jax.model_files.tensors import LazyTensors, reads_headers_only

_OLD_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}  # diffusers' for texts
_MODELS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of the text they read
_TEXT_LAYER = "_attn2_to_k"
_DEEP = re.compile(r"transformer_blocks_[1-9]")
_FOUR_LEVELS = re.compile(
    r"(down_blocks_0_attentions|up_blocks_3_attentions|input_blocks_[12]_1|output_blocks_(9|10|11)_1)_")


def merge_loras(tensors: LazyTensors, loras: Any, part: str, config: Mapping[str, Any] | None = None) -> LazyTensors:
    """A part's tensors, with the LoRAs' changes of it.

    Args:
        tensors: in the names of `weights`. One that no LoRA changes is as it is; the others are float32.
        loras: see `lora_files.read_loras`.
        part: one of `lora_files.PARTS`; what a LoRA does to another part is passed over.
        config: the UNet's `block_out_channels` and `layers_per_block`, which the original names go by.
    Raises:
        FileNotFoundError, ValueError: a file is missing, no LoRA, or one of another model. Shapes and numbers are
            looked at when a tensor is read.
    """
    loras = read_loras(loras)
    if not any(lora.parts[part] for lora in loras):
        return tensors
    modules = [name.removesuffix(".weight") for name in tensors
               if name.endswith(".weight") and not name.endswith("_vision.weight")]
    known = _known_names(part, modules, config)
    changes: dict[str, list[tuple[Lora, Layer]]] = {}
    for lora in loras:
        layers = lora.parts[part]
        if strange := [layer.down for name, layer in layers.items() if name not in known]:
            raise ValueError(f"{len(strange)} of {len(layers)} layers of the LoRA {lora.where} are none of this "
                             f"{PARTS[part]}, the first is {strange[0]}{_made_for(lora, part, tensors)}")
        taken: dict[str, Layer] = {}
        for name, layer in layers.items():
            other = taken.setdefault(known[name], layer)
            if other is not layer:
                raise ValueError(f"the LoRA {lora.where} says twice what it does to {known[name]}, by {other.down} and "
                                 f"by {layer.down}; give one that holds a single LoRA.")
        for module, layer in taken.items():
            changes.setdefault(f"{module}.weight", []).append((lora, layer))
    return tensors.replace(**{name: functools.partial(_merged, name, tensors, part, found)
                              for name, found in changes.items()})


def _known_names(part: str, modules: Collection[str], config: Mapping[str, Any] | None) -> dict[str, str]:
    """All names by which files call these modules, with underscores for dots → the module."""
    if part == "unet":
        others = single_file.original_names("unet", config or {}, modules)
        # Old files of diffusers leave out that the output layer is the first of a list.
        others |= {module.removesuffix(".0"): module for module in modules if module.endswith(".to_out.0")}
    else:
        # diffusers' old names, and those of transformers 5.
        others = {".".join([*path, _OLD_NAMES.get(last, last)]): ".".join([*path, last])
                  for *path, last in (module.split(".") for module in modules)}
        others |= {name.removeprefix("text_model."): module for name, module in others.items()}
        others |= {module.removeprefix("text_model."): module for module in modules}
    return {name.replace(".", "_"): module for name, module in (others | {x: x for x in modules}).items()}


def _merged(name: str, tensors: LazyTensors, part: str, changes: Sequence[tuple[Lora, Layer]]) -> np.ndarray:
    """A tensor with all its changes."""
    weight = tensors[name]
    for lora, layer in changes:
        shape = _shape(lora, layer)
        if _without_ones(shape) != _without_ones(weight.shape):
            raise ValueError(f"the LoRA {lora.where} does not fit this {PARTS[part]}: its {layer.down} belongs to a "
                             f"weight of shape {shape}, and {name} has {weight.shape}{_made_for(lora, part, tensors)}")
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        return weight  # which the loader refuses
    if reads_headers_only():
        return np.broadcast_to(np.float32(0), weight.shape)
    changes = [_change(lora, layer).reshape(weight.shape) for lora, layer in changes if lora.scale]
    return sum(changes, start=np.asarray(weight, np.float32)) if changes else weight


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution of one pixel is a linear layer."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _shape(lora: Lora, layer: Layer) -> tuple[int, ...]:
    """Of the change. Raises ValueError where the layer's matrices do not fit each other."""
    down, up, mid = (lora.tensors[name].shape if name else None for name in (layer.down, layer.up, layer.mid))
    if {len(down), len(up)} <= {2, 4} and 0 not in down[:1] + up[1:2] and set(up[2:]) <= {1}:
        if mid is None and up[1] == down[0]:
            return up[0], *down[1:]
        if mid is not None and len(mid) == 4 and mid[:2] == (up[1], down[0]) and set(down[2:]) <= {1}:
            return up[0], down[1], *mid[2:]
    between = f", {layer.mid} {mid}" if layer.mid else ""
    raise ValueError(f"the LoRA {lora.where} is damaged: {layer.down} {down}{between} and {layer.up} {up} do not fit "
                     "each other; get the file anew.")


def _change(lora: Lora, layer: Layer) -> np.ndarray:
    """scale · α/r · up · mid · down in float32, of the right size. Raises ValueError for what is no finite number."""
    down, up, mid = (_numbers(lora, name) if name else None for name in (layer.down, layer.up, layer.mid))
    with np.errstate(all="ignore"):  # what overflows is told below
        up = up.reshape(up.shape[:2]) * np.float32(lora.scale * _factor(lora, layer, len(down)))
        if mid is None:
            change = up @ down.reshape(len(down), -1)
        else:
            change = np.einsum("oa,abyx,bi->oiyx", up, mid, down.reshape(down.shape[:2]), optimize=True)
    if not np.isfinite(change).all():
        raise ValueError(f"the LoRA {lora.where} makes numbers that are not finite, of {layer.down}, {layer.up} and "
                         "their alpha: its training failed, or the file is damaged; get another one.")
    return change


def _numbers(lora: Lora, name: str) -> np.ndarray:
    value = lora.tensors[name]
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"the LoRA {lora.where} holds {name} as {value.dtype.name}; expected floating-point numbers.")
    return np.asarray(value, np.float32)


def _factor(lora: Lora, layer: Layer, rank: int) -> float:
    """α/r, as a tensor says, or else PEFT's settings (α/√r where those say `use_rslora`)."""
    if layer.alpha:
        alpha = lora.tensors[layer.alpha]
        if alpha.size != 1 or alpha.dtype.kind in "cb":
            raise ValueError(f"the LoRA {lora.where} holds {layer.alpha} of shape {alpha.shape} and type "
                             f"{alpha.dtype.name}; expected one number.")
        return float(alpha.reshape(())) / rank
    alpha = layer.settings.get("lora_alpha")
    for pattern, other in (layer.settings.get("alpha_pattern") or {}).items():
        # PEFT's patterns are regular expressions for the end of a layer's name; the first that fits counts.
        if _fits(pattern, layer.name):
            alpha = other
            break
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if layer.settings.get("use_rslora") else rank)


def _fits(pattern: str, name: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error:
        return False


def _made_for(lora: Lora, part: str, tensors: LazyTensors) -> str:
    """The end of a sentence that says why a LoRA does not fit: which model it was made for."""
    theirs = ours = None
    if part == "unet":
        layers = lora.parts["unet"]
        theirs = _model({name: lora.tensors[layer.down].shape for name, layer in layers.items()})
        # The miniature, too, has attention at its first level; the fourth level upwards is Stable Diffusion 1.5's.
        ours = _model({name.removesuffix(".weight").replace(".", "_"): tensors[name].shape for name in tensors
                       if name.startswith("up_blocks.") and name.endswith(".attn2.to_k.weight")})
    if theirs is None or theirs == ours:
        return "; it was made for another model, give one that was made for this one."
    this = f"this model is {ours}" if ours else "this model is another"
    return f"; it was made for {theirs}, and {this}: give one that was made for this model."


def _model(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Whose UNet layers of these flat names and shapes [·, inputs, …] are; None where that does not show."""
    for name, shape in shapes.items():
        if name.endswith(_TEXT_LAYER) and len(shape) > 1 and shape[1] in _MODELS:
            return _MODELS[shape[1]]
    if any(map(_DEEP.search, shapes)):
        return "SDXL"
    return "Stable Diffusion 1.5" if any(map(_FOUR_LEVELS.match, shapes)) else None
