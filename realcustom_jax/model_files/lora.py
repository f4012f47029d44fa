"""LoRA (arXiv 2106.09685): low-rank changes of a model's weights, merged while the model is loaded.

A layer's weight W [out, in, …] becomes W + scale · α / r · B A, with A [r, in, …] ("down"), B [out, r] ("up"), in
float32. α is the file's; where it names none, α = r. Files name layers in many ways, and all are read:

    lora_unet_down_blocks_1_attentions_0_….lora_down.weight, .lora_up.weight, .alpha    kohya, diffusers' modules
    lora_unet_input_blocks_4_1_transformer_blocks_0_….lora_down.weight                  kohya, the original modules
    lora_te_…, lora_te1_…, lora_te2_text_model_encoder_layers_0_….lora_down.weight      kohya, text encoders
    unet.….to_q.lora_A.weight, text_encoder.…, text_encoder_2.…, base_model.model.…     PEFT, diffusers
    unet.….attn1.processor.to_q_lora.down.weight, ….lora_linear_layer.down.weight       diffusers, before PEFT

A layer is found by its name without dots, as kohya's tool writes it, among the model's own names; so nothing is guessed
of where an underscore was a dot.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.errors import naming, quoted
from realcustom_jax.model_files.kinds import identify
from realcustom_jax.model_files.names import listed
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors, reads_headers_only

LoraSource = str | Path | tuple[str | Path, float]
"""A file, or a folder that holds one, with its scale or with scale 1."""

_ROLES = {
    "down": r"(\.lora_(A|down)(\.\w+)?|(\.lora|_lora|\.lora_linear_layer|\.lora_conv2d_layer)\.down)\.weight$",
    "up": r"(\.lora_(B|up)(\.\w+)?|(\.lora|_lora|\.lora_linear_layer|\.lora_conv2d_layer)\.up)\.weight$",
    "mid": r"\.lora_mid\.weight$",
    "alpha": r"\.alpha$",
}
_OTHER_KINDS = {
    r"\.dora_scale$|\.lora_magnitude_vector": "DoRA", r"\.hada_": "LoHa", r"\.lokr_": "LoKr",
    r"\.b?oft_(blocks|diag|R|r|s)": "OFT", r"\.on_input$|\.ia3_": "IA3", r"\.(a1|a2|b1|b2|bm)\.weight$": "GLoRA",
    r"\.(diff|diff_b|set_weight|w_norm|b_norm)$": "a difference of whole weights (LyCORIS)",
    r"\.lora_(B|up)(\.\w+)?\.bias$": "LoRA with biases", r"\.lora_embedding_[AB]": "LoRA of an embedding",
}
_PREFIXES = {  # what a name begins with → the part that it is of
    "lora_unet_": "unet", "lora_te1_": "te1", "lora_te2_": "te2", "lora_te_": "te1", "unet.": "unet",
    "text_encoder_2.": "te2", "text_encoder.": "te1", "diffusion_model.": "unet",
}
_BARE = {  # the same of names without a prefix
    "unet": re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|input_blocks"
                       r"|middle_block|output_blocks|time_embed|label_emb)[._]"),
    "te1": re.compile(r"(text_model|encoder)[._]"),
}
_PARTS = {"unet": "UNet", "te1": "text encoder", "te2": "second text encoder"}
_IN_FOLDER = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Lora:
    """An opened file. `layers`: part ("unet", "te1", "te2") → the layer's name without dots → the names of its tensors
    by their roles."""

    path: Path
    scale: float
    tensors: LazyTensors
    layers: Mapping[str, Mapping[str, Mapping[str, str]]]

    def change(self, layer: Mapping[str, str], shape: tuple[int, ...]) -> np.ndarray:
        """scale · α / r · B A of one layer, float32, in the shape of its weight. Raises ValueError where it has none
        such, or numbers that are not finite."""
        parts = {role: self.tensors[name] for role, name in layer.items()}
        name = layer["down"]
        down, up = (np.asarray(parts[role], np.float32) for role in ("down", "up"))
        rank = down.shape[0] if down.ndim else 0
        if down.ndim < 2 or up.ndim < 2 or not rank:
            raise ValueError(f"its tensors {name} {down.shape} and {layer['up']} {up.shape} are no factors of a "
                             "weight.")
        if "mid" in parts:  # the factors of a convolution in Tucker's form
            mid = np.asarray(parts["mid"], np.float32)
            fits = mid.ndim == 4 and mid.shape[:2] == (up.shape[1], rank)
            if fits:
                down = np.einsum("abhw,bi->aihw", mid, down.reshape(rank, -1))
        else:
            fits = up.shape[1] == rank
        made = (up.shape[0], *down.shape[1:])
        # A convolution of one pixel and a linear layer are the same but for two axes.
        if not fits or math.prod(up.shape[2:]) != 1 or [n for n in made if n != 1] != [n for n in shape if n != 1]:
            raise ValueError(f"its layer {name} changes a weight of shape {made}, and this model's has {shape}: it was "
                             "made for another kind of model.")
        if reads_headers_only():
            return np.broadcast_to(np.float32(0), shape)
        factor = self.scale * self._alpha(layer, parts, rank) / rank
        change = factor * (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1))
        if not np.isfinite(change).all():
            raise ValueError(f"its layer {name} holds numbers that are not finite.")
        return change.reshape(shape)

    def _alpha(self, layer: Mapping[str, str], parts: Mapping[str, np.ndarray], rank: int) -> float:
        """α of a layer: its tensor, or what the file says beside the tensors, or the rank."""
        if "alpha" in parts:
            return float(np.asarray(parts["alpha"], np.float32).reshape(()))
        name = layer["down"]
        said = self._settings(name)
        alpha = said.get("lora_alpha", rank)
        for pattern, other in (said.get("alpha_pattern") or {}).items():
            if re.search(rf"(^|\.){pattern}\.lora_", name):
                alpha = other
        return alpha * rank**0.5 if said.get("use_rslora") else alpha

    def _settings(self, name: str) -> Mapping[str, Any]:
        """PEFT's configuration of the part that a tensor is of: in the file's metadata, or in a file beside it."""
        with naming(self.path):
            beside = self.path.with_name("adapter_config.json")
            if self.path.name.startswith("adapter_model.") and beside.is_file():
                return json.loads(beside.read_text())
            said = json.loads(self.tensors.metadata.get("lora_adapter_metadata", "{}"))
            part = name.partition(".")[0] + "."
            return {key.removeprefix(part): value for key, value in said.items() if key.startswith(part)}


def open_lora(source: LoraSource) -> Lora:
    """Opens a file with its scale.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LoRA, of a kind that is not supported, or incomplete; names the first layer and the kind.
            Or the scale is no finite number.
    """
    path, scale = source if isinstance(source, tuple | list) and len(source) == 2 else (source, 1.0)
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ValueError(f"the scale of the LoRA {path} is {quoted(scale)}; expected a finite number, 1 is as trained.")
    if not isinstance(path, str | Path):
        raise ValueError(f"{quoted(source)} is no LoRA; give a file, or a pair of a file and its scale.")
    path = _file(Path(path))
    tensors = read_tensors(path)
    with naming(f"the LoRA {path}"):
        return Lora(path, float(scale), tensors, _layers(tensors))


def merge_loras(tensors: LazyTensors, loras: Sequence[LoraSource], part: str, aliases: Mapping[str, str] | None = None
                ) -> LazyTensors:
    """The tensors of a part, each with the changes of all LoRAs when it is read.

    Args:
        tensors: in the names of `weights`.
        loras: files with their scales; what they hold of other parts is left to those.
        part: "unet", "te1" or "te2".
        aliases: other names of the part's modules → their own.
    Raises:
        FileNotFoundError, ValueError: as `open_lora`; and for a LoRA that does not fit this model.
    """
    if not loras:
        return tensors
    known = _known_layers(tensors, aliases or {})
    changes: dict[str, list] = {}
    for lora in map(open_lora, loras):
        with naming(f"the LoRA {lora.path}"):
            for flat, layer in lora.layers.get(part, {}).items():
                if flat not in known:
                    raise ValueError(f"it changes the layer {layer['down']}, which this model's {_PARTS[part]} does "
                                     "not have: it was made for another kind of model.")
                weight = known[flat]
                lora.change(layer, tensors[weight].shape)  # raises here, before anything is computed
                changes.setdefault(weight, []).append(functools.partial(lora.change, layer))

    def read(name, found):
        value = tensors[name]
        return sum((change(value.shape) for change in found), np.asarray(value, np.float32))

    return tensors.replace(**{name: functools.partial(read, name, found) for name, found in changes.items()})


def check_loras(loras: Sequence[LoraSource], text_encoders: int) -> None:
    """Raises FileNotFoundError or ValueError for LoRAs that cannot be used, or that change a part which a model with so
    many text encoders does not have: before anything large is read."""
    for lora in map(open_lora, loras):
        if "te2" in lora.layers and text_encoders < 2:
            first = next(iter(lora.layers["te2"].values()))["down"]
            raise ValueError(f"the LoRA {lora.path}: it changes the layer {first} of a second text encoder, which this "
                             "model does not have: it was made for SDXL.")


def _file(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in _IN_FOLDER if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(files) != 1 and not (files and files[0].name in _IN_FOLDER):
            raise FileNotFoundError(f"the folder {path} holds {len(files) or 'no'} LoRA files; give the file.")
        return files[0]
    if not path.is_file():
        raise FileNotFoundError(f"the LoRA {path} does not exist; give a .safetensors file, or download it first.")
    return path


def _layers(tensors: LazyTensors) -> dict[str, dict[str, dict[str, str]]]:
    for pattern, what in _OTHER_KINDS.items():
        if found := [name for name in tensors if re.search(pattern, name)]:
            raise ValueError(f"it is of the kind {what}, by its tensor {min(found)}; only LoRA of linear layers and "
                             "convolutions is supported.")
    parts: dict[str, dict[str, dict[str, str]]] = {}
    strange = []
    for name in sorted(tensors):
        role, layer = next(((role, re.sub(pattern, "", name)) for role, pattern in _ROLES.items()
                            if re.search(pattern, name)), (None, name))
        part, inner = _part(layer)
        if role is None or part is None:
            strange.append((name, role))
            continue
        parts.setdefault(part, {}).setdefault(_flat(inner), {})[role] = name
    if strange and (not parts or any(role for _, role in strange)):
        name = next((name for name, role in strange if role), strange[0][0])
        what = "a LoRA of another kind of model (as Flux or SD3)" if any(role for _, role in strange) else identify(
            tensors)
        raise ValueError(f"it is {what}, by its tensor {name}; expected a LoRA of Stable Diffusion 1.5 or SDXL.")
    if strange:
        raise ValueError(f"it holds tensors that are no part of a LoRA: {listed([name for name, _ in strange], 5)}.")
    for layers in parts.values():
        for flat, layer in layers.items():
            if lacking := {"down", "up"} - set(layer):
                raise ValueError(f"it is not complete: the layer {flat} lacks its {min(lacking)} factor.")
    if not parts:
        raise ValueError("it holds no tensors.")
    return parts


def _part(layer: str) -> tuple[str | None, str]:
    """(the part that a layer is of, the layer's name within it)."""
    layer = layer.removeprefix("base_model.model.")
    for prefix, part in _PREFIXES.items():
        if layer.startswith(prefix):
            return part, layer[len(prefix):].removeprefix("base_model.model.")
    return next((part for part, names in _BARE.items() if names.match(layer)), None), layer


def _flat(module: str) -> str:
    return module.replace(".processor.", ".").replace(".", "_")


def _known_layers(names: Iterable[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """A layer's name without dots, in every way that files write it → the name of its weight."""
    theirs: dict[str, list[str]] = {}
    for other, own in aliases.items():
        theirs.setdefault(own, []).append(other)
    known = {}
    for weight in names:
        if not weight.endswith(".weight"):
            continue
        module = weight.removesuffix(".weight")
        written = [module, module.removeprefix("text_model.")]
        outer, inner = module, ""
        while outer:
            written += [other + inner for other in theirs.get(outer, ())]
            outer, dot, last = outer.rpartition(".")
            inner = f"{dot}{last}{inner}"
        if module.endswith("to_out.0"):
            written.append(module.removesuffix(".0"))
        # diffusers' processors had the UNet's names in text encoders, too.
        written += [re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1", name) for name in written]
        known |= {_flat(name): weight for name in written}
    return known
