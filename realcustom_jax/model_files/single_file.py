"""Single-file Stable Diffusion checkpoints (SD-1.5, SDXL base) in the names that our loaders take.

Such a file holds all networks in the names of the original training code (CompVis' latent diffusion, Stability's
generative-models, open_clip); our loaders take those of diffusers and transformers. Both describe the same modules, so
a few dictionaries "their module → our module", made from the configuration, rename everything:

    model.diffusion_model.input_blocks.4.1.proj_in.weight   →   unet          down_blocks.1.attentions.0.proj_in.weight
    first_stage_model.decoder.up.3.block.0.conv1.weight     →   vae           decoder.up_blocks.0.resnets.0.conv1.weight
    conditioner.embedders.1.model.ln_final.weight           →   text_encoder_2      text_model.final_layer_norm.weight

The UNet counts its blocks through: an input block is a resnet (`.0`, with attention `.1`) or a downsampler, and each
level has `layers_per_block` resnets and, but for the last, a downsampler; an output block is a resnet, its attention
if any, and at the end of a level the upsampler. The decoder of the autoencoder counts its levels from the finest.

Not in the file: the tokenizer, which the caller needs a folder for.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from realcustom_jax.model_files.names import MARKERS, listed
from realcustom_jax.model_files.prediction import by_markers
from realcustom_jax.model_files.tensors import LazyTensors

Config = Mapping[str, Any]

_UNET = {
    "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "norm_eps": 1e-5,
    "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
    "downsample_padding": 1, "mid_block_scale_factor": 1,
}
_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2, "norm_num_groups": 32, "act_fn": "silu",
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# CLIP ViT-L/14. The published files say eos_token_id 2, which means "the largest id is the end" (see `clip_text`).
_CLIP_L = {
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}
# OpenCLIP ViT-bigG/14.
_CLIP_BIG_G = _CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": _UNET | {
            "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": 8, "cross_attention_dim": 768,
        },
        "vae": _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        "text_encoder": _CLIP_L,
    },
    "sdxl": {
        "unet": _UNET | {
            "sample_size": 128, "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
        "vae": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
    },
}
"""kind → part → configuration in the original JSON's keys (diffusers `UNet2DConditionModel` and `AutoencoderKL`,
transformers `CLIPTextConfig`), as published with stable-diffusion-v1-5 and stable-diffusion-xl-base-1.0."""

_PREFIXES = {
    "sd15": {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
             "text_encoder": "cond_stage_model.transformer."},
    "sdxl": {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
             "text_encoder": "conditioner.embedders.0.transformer.",
             "text_encoder_2": "conditioner.embedders.1.model."},
}
# Of one part in a file: within a single file, or as tools save it alone; and how it is known without any of these.
_PART_PREFIXES = {"unet": ("model.diffusion_model.", "diffusion_model."), "vae": ("first_stage_model.",)}
_ORIGINAL_NAMES = {"unet": re.compile(r"input_blocks\.\d"),
                   "vae": re.compile(r"(encoder\.down|decoder\.up)\.\d+\.block\.|(encoder|decoder)\.mid\.block_1\.")}
_UNSUPPORTED = {  # how a key begins → what the file is
    "cond_stage_model.model.": "Stable Diffusion 2 (an open_clip text encoder at cond_stage_model.model)",
    "conditioner.embedders.0.model.": "the SDXL refiner",
    "control_model.": "a ControlNet",
    "edm_mean": "a model with EDM preconditioning (Playground 2.5)",
    "edm_vpred.": "a model with EDM preconditioning (CosXL)",
}
_IGNORED = re.compile(
    # The moving average of the UNet, and what training keeps for itself.
    r"model_ema\.|denoiser\.|first_stage_model\.loss\.|lvlb_weights$|logvar$"
    # The noise schedule.
    r"|(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+)$"
    # Text encoders: a constant, and heads of the contrastive training.
    r"|.*\.position_ids$|.*\.logit_scale$|cond_stage_model\.(transformer\.)?text_projection(\.weight)?$")
_UNUSED = re.compile(r"conditioner\.embedders\.0\.transformer\.text_projection(\.weight)?$")  # SDXL reads no such text
_MOST_STRAY = 20


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file: the tensor `source`, or a third of its rows (0, 1, 2), or its transpose."""

    source: str
    third: int | None = None
    transposed: bool = False


def kind(names: Collection[str] | Mapping[str, Any]) -> str | None:
    """What single file these names come from: "sd15", "sdxl", or None for a file of another naming.

    Args:
        names: the names, or a mapping from them to arrays or shapes. Without shapes, inpainting models, which differ
            in nothing else, cannot be told apart.
    Raises:
        ValueError: a single file of a kind that is not supported. Models that predict v are (see `scheduler`).
    """
    def has(prefix):
        return any(name.startswith(prefix) for name in names)

    if not has("model.diffusion_model."):
        return None
    supported = "supported are Stable Diffusion 1.5 and the SDXL base model, text to image"
    for prefix, what in _UNSUPPORTED.items():
        if has(prefix):
            raise ValueError(f"the single file holds {what}; {supported}.")
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    if isinstance(names, Mapping) and conv_in in names:
        channels = getattr(names[conv_in], "shape", names[conv_in])[1]
        if channels != 4:
            raise ValueError(f"the single file's UNet takes {channels} input channels instead of 4 (9: inpainting, "
                             f"8: InstructPix2Pix); {supported}.")
    for which, prefixes in _PREFIXES.items():
        if has(list(prefixes.values())[-1]):
            return which
    raise ValueError("the single file holds a diffusion model, but neither the text encoder of Stable Diffusion 1.5 "
                     f"(cond_stage_model.transformer.*) nor of SDXL (conditioner.embedders.1.model.*); {supported}.")


def rename(names: Collection[str] | Mapping[str, Any]) -> dict[str, dict[str, Entry]]:
    """Where each tensor of each part lies in a single file.

    Args:
        names: as for `kind`.
    Returns:
        part ("unet", "vae", "text_encoder" and, for SDXL, "text_encoder_2") → name in diffusers or transformers → its
        place. A part that the file lacks is empty; a part's completeness is the loader's to check.
    Raises:
        ValueError: the file is of no supported kind, has unknown keys among a part's or many outside of the parts, or
            two for one tensor. A few keys outside, as merges and trainers leave them, are warned of and passed over.
    """
    which = kind(names)
    if which is None:
        raise ValueError("this is not a single-file Stable Diffusion checkpoint: no key begins with "
                         "model.diffusion_model.")
    modules = {prefix + theirs: (part, ours) for part, prefix in _PREFIXES[which].items()
               for theirs, ours in _MODULES[part](CONFIGS[which][part]).items()}
    parts: dict[str, dict[str, Entry]] = {part: {} for part in _PREFIXES[which]}
    unknown, twice = [], []
    for name in names:
        if _IGNORED.match(name) or name in MARKERS:
            continue
        module = _enclosing(modules, name)
        if module is None:
            unknown.append(name)
            continue
        part, ours = modules[module]
        ours += name[len(module):]
        for third, letter in enumerate("qkv") if "*" in ours else [(None, "")]:
            entry = Entry(name, third, transposed=name.endswith(".text_projection"))
            if parts[part].setdefault(ours.replace("*", letter), entry) != entry:
                twice.append(name)
    if 0 < len(unknown) <= _MOST_STRAY and not any(
            name.startswith(tuple(_PREFIXES[which].values())) and not _UNUSED.match(name) for name in unknown):
        warnings.warn(f"the single file ({which}) has keys that no part needs, which are ignored: "
                      f"{listed(unknown, 5)}.", stacklevel=2)
        unknown = []
    for keys, problem in (unknown, "that belong to no part that we know"), (twice, "for tensors that it has already"):
        if keys:
            raise ValueError(f"the single file ({which}) has keys {problem}: {listed(keys)}.")
    return parts


def split(tensors: Mapping[str, np.ndarray]) -> dict[str, LazyTensors]:
    """The parts of a single file, each in the names and layouts of `weights`; a tensor is read when it is looked up.
    Arguments, parts and errors as for `rename`."""
    return {part: LazyTensors({ours: functools.partial(_read, tensors, entry) for ours, entry in entries.items()})
            for part, entries in rename(tensors).items()}


def part(tensors: LazyTensors, which: str, config: Config) -> LazyTensors:
    """The tensors of one part, "unet" or "vae", in diffusers' names, from a file that holds it in any of the ways in
    which they are shared: in diffusers' names, in the original ones, or in these within a single file.

    config: the part's, in the original JSON's keys. Names of the part that are unknown are left as they are, for the
    loader to list.
    """
    prefix = next((p for p in _PART_PREFIXES[which] if any(name.startswith(p) for name in tensors)), "")
    if not prefix and not any(map(_ORIGINAL_NAMES[which].match, tensors)):
        return tensors
    modules = _MODULES[which](CONFIGS["sd15"][which] | dict(config))

    def new_name(name):
        if not name.startswith(prefix) or name.startswith(f"{prefix}loss."):
            return None
        name = name[len(prefix):]
        if not prefix and _IGNORED.match(name):
            return None
        module = _enclosing(modules, name)
        return name if module is None else modules[module] + name[len(module):]

    return tensors.rename(new_name)


def original_names(which: str, config: Config, names: Collection[str]) -> dict[str, str]:
    """The other way round: each name that a module or tensor of the part, in diffusers' names, has in the original ones
    → its name. Names without an original are left out; so are all of a UNet whose levels differ in their layers.

    which, config: as for `part`.
    """
    config = CONFIGS["sd15"][which] | dict(config)
    if not isinstance(layers := config["layers_per_block"], int):
        if len(set(layers)) != 1:
            return {}
        config["layers_per_block"] = layers[0]
    modules: dict[str, list[str]] = {}
    for theirs, ours in _MODULES[which](config).items():
        modules.setdefault(ours, []).append(theirs)
    found = {name: _enclosing(modules, name) for name in names}
    return {theirs + name[len(module):]: name for name, module in found.items() if module for theirs in modules[module]}


def scheduler(names: Collection[str]) -> dict[str, Any]:
    """The noise schedule in the keys of diffusers' `scheduler_config.json`: Stable Diffusion's, predicting noise, but
    for what the markers among the names say (`prediction.by_markers`). A file may be of another kind without saying so.
    """
    return {
        "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "prediction_type": "epsilon", "rescale_betas_zero_snr": False, **by_markers(names)}


def _read(tensors: Mapping[str, np.ndarray], entry: Entry) -> np.ndarray:
    value = tensors[entry.source]
    if entry.third is not None:
        # Uneven thirds are left to the loader, which reports all wrong shapes at once.
        value = np.array_split(value, 3)[entry.third]
    return value.T if entry.transposed else value


def _enclosing(modules: Collection[str], name: str) -> str | None:
    """The longest of the dotted paths that `name` is or begins with."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _inside(theirs: str, ours: str, children: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in children.items()}


def _unet_modules(config: Config) -> dict[str, str]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnet = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
              "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
    modules = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
        **_inside("middle_block.0", "mid_block.resnets.0", resnet),
        **_inside("middle_block.2", "mid_block.resnets.1", resnet),
    }
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = level * (layers + 1)
        for layer in range(layers):
            block = f"input_blocks.{1 + first + layer}"
            modules |= _inside(f"{block}.0", f"{down}.resnets.{layer}", resnet)
            modules[f"{block}.1"] = f"{down}.attentions.{layer}"
        for layer in range(layers + 1):
            block = f"output_blocks.{first + layer}"
            modules |= _inside(f"{block}.0", f"{up}.resnets.{layer}", resnet)
            modules[f"{block}.1"] = f"{up}.attentions.{layer}"
        if level + 1 < levels:
            modules[f"input_blocks.{1 + first + layers}.0.op"] = f"{down}.downsamplers.0.conv"
            # The upsampler comes second in a block without attention.
            modules |= {f"{block}.{i}.conv": f"{up}.upsamplers.0.conv" for i in (1, 2)}
    return modules


def _vae_modules(config: Config) -> dict[str, str]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnet = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules |= _inside(half, half, {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"})
        modules |= _inside(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", resnet)
        modules |= _inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", attention)
        modules |= _inside(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", resnet)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for layer in range(layers):
            modules |= _inside(f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}", resnet)
        for layer in range(layers + 1):
            modules |= _inside(f"decoder.up.{level}.block.{layer}", f"{up}.resnets.{layer}", resnet)
        if level + 1 < levels:
            modules[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        if level > 0:
            modules[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    return modules


def _clip_modules(config: Config) -> dict[str, str]:
    # transformers' own names; some files lack the `text_model.` in front.
    return {"text_model": "text_model"} | {
        name: f"text_model.{name}" for name in ("embeddings", "encoder", "final_layer_norm")}


def _open_clip_modules(config: Config) -> dict[str, str]:
    layer = {"ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj", "ln_2": "layer_norm2",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             # Queries, keys and values are one tensor; the star stands for q, k and v.
             "attn.in_proj_weight": "self_attn.*_proj.weight", "attn.in_proj_bias": "self_attn.*_proj.bias"}
    modules = {
        "token_embedding": "text_model.embeddings.token_embedding",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm", "text_projection": "text_projection.weight",
        # Some tools name it as the linear layer that it then is, not transposed.
        "text_projection.weight": "text_projection.weight",
    }
    for i in range(config["num_hidden_layers"]):
        modules |= _inside(f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}", layer)
    return modules


_MODULES: dict[str, Callable[[Config], dict[str, str]]] = {
    "unet": _unet_modules, "vae": _vae_modules, "text_encoder": _clip_modules, "text_encoder_2": _open_clip_modules,
}
