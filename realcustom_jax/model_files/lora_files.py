"""LoRA files: what they hold, in whichever of the trainers' ways it is named (module `lora` says what it means).

    lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight        kohya
    unet.down_blocks.1.attentions.0.proj_in.lora_A.weight                PEFT, diffusers
    down_blocks.1.attentions.0.….attn1.processor.to_q_lora.down.weight   diffusers of old
    └ part ─┘ └ layer ────────────────────┘ └ role ─────────┘

Here a name is cut into part, layer and role. Which of a model's weights a layer is, module `lora` knows.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from realcustom_jax.errors import quoted
from realcustom_jax.model_files import locate
from realcustom_jax.model_files.kinds import advice, identify
from realcustom_jax.model_files.names import listed
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors
from realcustom_jax.paths import as_path

PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "second text encoder"}
"""What a LoRA changes."""

_PREFIXES = {  # of a layer's name → its part; without any of them it is the UNet's
    "lora_unet_": "unet", "lora_te_": "te1", "lora_te1_": "te1", "lora_te2_": "te2",
    "unet.": "unet", "text_encoder.": "te1", "text_encoder_2.": "te2",
    "diffusion_model.": "unet", "model.diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "te1", "text_encoders.clip_g.transformer.": "te2",
}
_TEXT_MODEL = "text_model."  # a text encoder's without a prefix: the only one, or the first
_WRAPPER = "base_model.model."  # PEFT's, before or after the prefix
_DOWN, _UP = (rf"lora_{a}|lora_{b}|lora\.{a}|lora_linear_layer\.{a}" for a, b in (("down", "A"), ("up", "B")))
_ROLES = {  # how a tensor's name ends, after its layer's; PEFT may put an adapter's name before `weight`
    "down": re.compile(rf"[._]({_DOWN})(\.[\w-]+)?\.weight$"), "up": re.compile(rf"[._]({_UP})(\.[\w-]+)?\.weight$"),
    "mid": re.compile(r"\.lora_mid\.weight$"), "alpha": re.compile(rf"([._]({_DOWN})(\.weight)?)?\.alpha$"),
}
_OTHERS = {  # a name that only files of this kind hold → the kind; the first that fits
    r"dora_scale|lora_magnitude_vector": "a DoRA", r"(^|[._])hada_[wt]\d": "a LoHa", r"(^|[._])lokr_[wt]\d": "a LoKr",
    r"(^|[._])b?oft_(blocks|diag|[Rrs]\b)": "an OFT", r"\.(on_input|ia3_l)(\.|$)": "an IA3",
    r"\.([ab][12]|bm[12])\.weight$": "a GLoRA", r"(^|\.)vera_lambda": "a VeRA",
    r"\.(lora_E|ranknum)(\.|$)": "an AdaLoRA", r"lora_embedding_[AB]": "a LoRA of embeddings",
    r"(^|\.)bundle_emb\.": "a LoRA with textual inversions",
    r"\.(w_norm|b_norm)$": "a LoRA that also changes norms", r"\.diff(_b)?$": "a LoRA that also adds whole tensors",
    rf"({_DOWN}|{_UP}|lora_mid)(\.[\w-]+)?\.bias$": "a LoRA with biases", r"^lora_controlnet$": "a ControlNet's LoRA",
}
_TRANSFORMER = re.compile(r"(^|[._])(double|single|joint)(_transformer)?_blocks[._]"
                          r"|^(transformer\.|lora_transformer_|lora_te3_|text_encoder_3\.)")
_FITTING = "Stable Diffusion 1.5 or SDXL"
# As diffusers writes them into a file's metadata, and PEFT beside one of this name.
_SETTINGS, _IN_SETTINGS = "lora_adapter_metadata", {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}
_DIFFUSERS, _PEFT = "pytorch_lora_weights", ("adapter_model", "adapter_config.json")


@dataclasses.dataclass(frozen=True)
class Layer:
    """The names of one layer's tensors.

    settings: PEFT's of its part, which say what α is where no tensor does.
    """

    name: str
    down: str
    up: str
    mid: str | None
    alpha: str | None
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Lora:
    """An opened file, of which no numbers are read yet. parts: of `PARTS` → the layers, by their names in which dots
    are underscores."""

    where: Path
    scale: float
    tensors: LazyTensors
    parts: Mapping[str, Mapping[str, Layer]]


def read_loras(given: Any) -> tuple[Lora, ...]:
    """Opens LoRAs.

    Args:
        given: files, or pairs (file, scale); a scale is 1 where there is none. A folder stands for the weight file in
            it. What is open already stays as it is.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a scale is no finite number, or a file holds no LoRA, or one of a kind that is not supported.
    """
    given = (given,) if isinstance(given, (str, os.PathLike, Lora)) else given
    if given is not None and not isinstance(given, Iterable) or isinstance(given, Mapping):
        raise ValueError(f"loras is {quoted(given)}; expected a sequence of files, or of pairs (file, scale).")
    # What is wrong with a pair is told before any file is opened.
    opened = [lora if isinstance(lora, Lora) else _pair(lora) for lora in given or ()]
    return tuple(lora if isinstance(lora, Lora) else _read(*lora) for lora in opened)


def _pair(given: Any) -> tuple[Path, float]:
    pair = (given, 1.0) if isinstance(given, (str, os.PathLike)) else given
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not (
            isinstance(pair[0], (str, os.PathLike)) and str(pair[0])):
        raise ValueError(f"loras holds {quoted(given)}; expected a file or a pair (file, scale), as in "
                         "[('style.safetensors', 0.8)].")
    file, scale = pair
    scale = scale.item() if getattr(scale, "shape", None) == () else scale  # of numpy, JAX or torch
    if not _is_number(scale):
        raise ValueError(f"the scale of the LoRA {file} is {quoted(scale)}; expected a finite number, such as 0.8.")
    return as_path(file), float(scale)


def _read(path: Path, scale: float) -> Lora:
    path = locate.on_this_host(path)
    if not path.exists():
        where = " here, and the hub is not asked for LoRAs: download it" * locate.is_on_hub(path)
        raise FileNotFoundError(f"the LoRA {path} does not exist{where}.")
    file = _in_folder(path) if path.is_dir() else path
    tensors = read_tensors(file)
    if not tensors:
        raise ValueError(f"the LoRA {path} is empty: it holds no tensors; get the file anew.")
    _check_kind(path, tensors)
    return Lora(path, scale, tensors, _layers(path, tensors, _settings(file, tensors.metadata)))


def _in_folder(folder: Path) -> Path:
    """The LoRA in a folder: of the name that diffusers or PEFT give it, or else the only weight file."""
    files = [file for suffix in locate.SINGLE_FILES for file in sorted(folder.glob(f"*{suffix}"))]
    files = [file for file in files if file.stem in (_DIFFUSERS, _PEFT[0])][:1] or files
    if not files:
        raise FileNotFoundError(f"the LoRA {folder} is a folder without a weight file; give the file.")
    if len(files) > 1:
        raise ValueError(f"the LoRA {folder} is a folder of several weight files "
                         f"({listed([file.name for file in files], 5)}); give the one that is meant.")
    return files[0]


def _check_kind(path: Path, tensors: LazyTensors) -> None:
    """Raises ValueError for a file of another model's LoRA, of another kind, or of another thing altogether."""
    what = identify(tensors)
    if what not in ("a LoRA", "no model that we know"):
        raise ValueError(f"{path} is no LoRA but {what}{advice(what)}.")
    for name in tensors:
        if _TRANSFORMER.search(name):
            raise ValueError(f"{path} is a LoRA of Flux, Stable Diffusion 3 or another transformer, by its tensor "
                             f"{name}; give one that was made for {_FITTING}.")
        if kind := next((kind for mark, kind in _OTHERS.items() if re.search(mark, name)), None):
            raise ValueError(f"{path} is {kind}, by its tensor {name}, which is not supported; give a LoRA or LoCon of "
                             f"{_FITTING}, or merge it into a checkpoint with the tool that made it.")
    if what != "a LoRA":
        raise ValueError(f"{path} is no LoRA but {what}; expected tensors named …lora_down.weight and "
                         "…lora_up.weight, or …lora_A.weight and …lora_B.weight.")


def _layers(path: Path, tensors: LazyTensors, settings: Mapping[str, Any]) -> dict[str, dict[str, Layer]]:
    """Part → flat name → layer."""
    found, names, strange = {}, {}, []
    for tensor in tensors:
        role, cut = next(((role, mark.search(tensor)) for role, mark in _ROLES.items() if mark.search(tensor)),
                         (None, None))
        if role is None:
            strange.append(tensor)
            continue
        part, name = _part(tensor[:cut.start()])
        place = part, name.replace(".", "_")
        other = found.setdefault(place, {}).setdefault(role, tensor)
        names[place] = name
        if other != tensor:
            raise ValueError(f"the LoRA {path} says twice what it does to one layer, by {other} and by {tensor}; give "
                             "one that holds a single LoRA.")
    if strange:
        raise ValueError(f"the LoRA {path} holds {strange[0]}, which is nothing that we know of a LoRA; supported are "
                         "lora_down, lora_up, lora_mid and alpha of each layer.")
    layers = {part: {} for part in PARTS}
    for (part, flat), roles in found.items():
        if missing := {"down", "up"} - set(roles):
            raise ValueError(f"the LoRA {path} is not complete: {next(iter(roles.values()))} is there, but not "
                             f"{' and '.join(f'lora_{role}' for role in sorted(missing))} of its layer; get the file "
                             "anew.")
        layers[part][flat] = Layer(names[part, flat], roles["down"], roles["up"], roles.get("mid"), roles.get("alpha"),
                                   settings.get(part, {}))
    return layers


def _part(name: str) -> tuple[str, str]:
    """(part, the layer's name in it) of a tensor's name without its role."""
    name = name.removeprefix(_WRAPPER)
    prefix = max(filter(name.startswith, _PREFIXES), key=len, default="")
    part = _PREFIXES[prefix] if prefix else "te1" if name.startswith(_TEXT_MODEL) else "unet"
    return part, name.removeprefix(prefix).removeprefix(_WRAPPER).replace(".processor.", ".")


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Part → PEFT's settings of it, where they are written in the file or beside it; checked as far as they count."""
    beside = file.parent / _PEFT[1]
    if _SETTINGS in metadata:
        where = f"the LoRA {file}: its metadata {_SETTINGS}"
        try:
            written = json.loads(metadata[_SETTINGS])
        except (ValueError, RecursionError):
            raise ValueError(f"{where} is not valid JSON; get the file anew.") from None
    elif file.stem == _PEFT[0] and beside.is_file():
        where, written = str(beside), locate.read_config(beside)
    else:
        return {}
    if not isinstance(written, dict):
        raise ValueError(f"{where} is no JSON object; get the file anew.")
    apart = any(key.startswith(tuple(_IN_SETTINGS.values())) for key in written)
    parts = {part: {key.removeprefix(prefix): value for key, value in written.items() if key.startswith(prefix)}
             for part, prefix in _IN_SETTINGS.items()} if apart else dict.fromkeys(PARTS, written)
    for settings in parts.values():
        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(x is None or _is_number(x) for x in (
                settings.get("lora_alpha"), *patterns.values())):
            raise ValueError(f"{where} holds a lora_alpha or alpha_pattern that is not made of numbers; get the file "
                             "anew.")
        if settings.get("use_dora"):
            raise ValueError(f"{where} says use_dora: a DoRA, which is not supported; give a LoRA.")
    return parts


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
