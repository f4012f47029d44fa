"""A model on disk: one folder per part, in the diffusers layout with torch-named safetensors.

    model_index.json  tokenizer/  text_encoder/  vae/  unet/  image_encoder_siglip/  image_encoder_dinov2/
    adapter/ (the released RealCustom JSON: projector, image preparation; weights of projector and to_*_vision)
    vocabulary.json (a small model's words)  preset.json (how it is best used, where that is not the default)

That is what this project writes; it reads whatever `locate` finds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from transformers import CLIPTokenizer

from realcustom_jax.choices import check_choice
from realcustom_jax.conditioning.vocabulary import Vocabulary
from realcustom_jax.files import naming, write_file, write_json
from realcustom_jax.model_files import locate, single_file, weights
from realcustom_jax.model_files.adapter import Adapter, check_backbone
from realcustom_jax.model_files.tensors import LazyTensors, identify, read_tensors
from realcustom_jax.presets import PRESETS, Preset, find_preset
from realcustom_jax.sampling.solvers import betas

WEIGHT_FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "image_encoder_siglip": "model.safetensors",
    "image_encoder_dinov2": "model.safetensors",
    "adapter": "realcustom.safetensors",
    "judge": "model.safetensors",
}
# Of published image encoders, by timm's names; the second at SigLIP's picture size, as released.
ARCHITECTURES = {
    "vit_so400m_patch14_siglip_384": {
        "img_size": 384, "patch_size": 14, "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362,
        "class_token": False, "global_pool": "map"},
    "vit_large_patch14_reg4_dinov2": {
        "img_size": 384, "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-5,
        "reg_tokens": 4, "no_embed_class": True},
}
# Of the released layout, whose files come without a configuration.
_CONFIGS = {
    "unet": single_file.CONFIGS["sdxl"]["unet"],
    "image_encoder_siglip": ARCHITECTURES["vit_so400m_patch14_siglip_384"],
    "image_encoder_dinov2": ARCHITECTURES["vit_large_patch14_reg4_dinov2"],
}
_SCHEDULES = {"scaled_linear": "squared_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' names → ours


def save_part(bundle: Path, part: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one part's `config.json` and weights (torch names, see `weights.to_torch`)."""
    write_file(bundle / part / WEIGHT_FILES[part], safetensors.numpy.save(dict(tensors)))
    write_json(bundle / part / "config.json", config)


def has_part(model: Path, part: str) -> bool:
    """Whether a model, a folder or a single file, holds a part."""
    if model.is_file():
        return bool(_single_file(model)[1].get(part))
    return locate.part_folder(model, part).is_dir()


def part_files(model: Path, part: str) -> tuple[Path | Mapping[str, Any], *tuple[Path | LazyTensors, ...]]:
    """(configuration, weight files …) of a part, or its tensors in a single file; raises FileNotFoundError that names
    the missing file."""
    if model.is_file():
        configs, parts = _single_file(model)
        return configs[part], parts[part]
    folder = locate.part_folder(model, part)
    config = locate.config_file(folder)
    if config is None and (part != "unet" or not (model / "model_index.json").is_file()):
        config = _CONFIGS.get(part) if folder.is_dir() else None
    elif config is not None and part.startswith("image_encoder"):
        config = ARCHITECTURES.get(_architecture(weights.read_config(config)), config)
    if config is None:
        raise FileNotFoundError(f"The model is not complete: {folder / 'config.json'} is missing.")
    if not (files := locate.weight_files(folder)):
        raise FileNotFoundError(f"The model is not complete: {folder / WEIGHT_FILES[part]} is missing.")
    return config, *files


def _architecture(config: Mapping[str, Any]) -> str | None:
    """timm's name of the network that a hub's JSON of timm or of open_clip describes; None for other JSONs."""
    return config.get("architecture") or config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name")


def _single_file(file: Path) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, LazyTensors]]:
    """(configuration, tensors) of each part in a single-file checkpoint."""
    tensors = read_tensors(file)
    with naming(file):
        if (kind := single_file.kind(tensors)) is None:
            raise ValueError(f"it holds {identify(tensors)}; expected a whole Stable Diffusion 1.5 or SDXL checkpoint.")
        return single_file.CONFIGS[kind], single_file.split(tensors)


def load_autoencoder(model: Path, **options):
    """(module, params) of the model's autoencoder."""
    with naming(locate.part_folder(model, "vae")):
        return weights.load_autoencoder(*part_files(model, "vae"), **options)


def load_text_encoder(model: Path, part: str = "text_encoder", **options):
    """(module, params) of a text encoder, `part` "text_encoder" or "text_encoder_2"."""
    with naming(locate.part_folder(model, part)):
        return weights.load_text_encoder(*part_files(model, part), **options)


def text_encoders(model: Path) -> tuple[str, ...]:
    """What the folders of the model's text encoders and tokenizers end in: "", and "_2" of SDXL's second.

    Raises FileNotFoundError where `model_index.json` names a second one that is not there.
    """
    if has_part(model, "text_encoder_2"):
        return "", "_2"
    index = model / "model_index.json"
    if index.is_file():
        with naming(index):
            if weights.read_config(index).get("text_encoder_2", [None])[0]:
                folder = locate.part_folder(model, "text_encoder_2")
                raise FileNotFoundError(f"The model is not complete: {folder} is missing.")
    return ("",)


def load_vision_encoder(model: Path, part: str, **options):
    """(module, params) of an image encoder, `part` "image_encoder_siglip" or "image_encoder_dinov2"."""
    with naming(locate.part_folder(model, part)):
        return weights.load_vision_encoder(*part_files(model, part), **options)


def load_unet(model: Path, adapter: Adapter, *, base_last: bool = False, **options):
    """(module, params) of the model's UNet with the adapter's visual attention; where both hold a weight, the
    adapter's is taken, unless `base_last`."""
    with naming(locate.part_folder(model, "unet"), adapter.where):
        config, *base = part_files(model, "unet")
        config = {**weights.read_config(config), "image_prompt_settings": adapter.settings}
        check_kind(config)
        check_backbone(adapter, config)
        files = (adapter.tensors, *base) if base_last else (*base, adapter.tensors)
        return weights.load_unet(config, *files, **options)


def check_kind(unet_config: Mapping[str, Any]) -> None:
    """Raises ValueError for a UNet that takes more than the noisy latents: an inpainting or image-editing model."""
    given, made = (unet_config.get(key, 4) for key in ("in_channels", "out_channels"))
    if given != made:
        raise ValueError(f"this UNet takes {given} channels and returns {made}: an inpainting or image-editing model, "
                         "which is not supported; give a text-to-image one.")


def load_projector(adapter: Adapter, **options):
    """(module, params) of an adapter's projector."""
    with naming(adapter.where):
        return weights.load_projector(adapter.settings, adapter.tensors, **options)


def load_tokenizer(model: Path, part: str = "tokenizer") -> CLIPTokenizer:
    """A tokenizer of the model, `part` "tokenizer" or "tokenizer_2"."""
    folder = locate.part_folder(model, part)
    for names in (("tokenizer_config.json",), ("tokenizer.json", "vocab.json")):
        if not any((folder / name).is_file() for name in names):
            # transformers would make do with a tokenizer that knows no word.
            raise FileNotFoundError(f"The model is not complete: {folder / names[0]} is missing.")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds for a broken file
        raise ValueError(f"{folder}: the tokenizer cannot be read ({error}).") from None


def read_schedule(model: Path) -> tuple[np.ndarray, str]:
    """(betas [T], what the UNet predicts) from `scheduler/scheduler_config.json`, in diffusers' keys; Stable
    Diffusion's where the layout has no such folder (a single file, the released one)."""
    if model.is_file():
        config = single_file.scheduler(read_tensors(model))
        return betas(terminal_pure_noise=config["rescale_betas_zero_snr"]), config["prediction_type"]
    file = model / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        if (model / "model_index.json").is_file():
            raise FileNotFoundError(f"The model is not complete: {file} is missing.")
        return betas(), "epsilon"
    with naming(file):
        config = weights.read_config(file)
        kind = config.get("_class_name", "")
        if "FlowMatch" in kind or kind.startswith("EDM") or config.get("trained_betas") is not None:
            raise ValueError(f"this model was made for {kind or 'a schedule'} with another noise than Stable "
                             "Diffusion's (flow matching, EDM, trained betas), which is not supported.")
        name = config.get("beta_schedule", "scaled_linear")
        values = betas(_SCHEDULES.get(name, name), config.get("num_train_timesteps", 1000),
                       terminal_pure_noise=config.get("rescale_betas_zero_snr", False))
        ends = config.get("beta_start", values[0]), config.get("beta_end", values[-1])
        if name == "scaled_linear" and not np.allclose(ends, (0.00085, 0.012)):
            raise ValueError(f"beta_start, beta_end are {ends[0]:g}, {ends[1]:g}; only 0.00085, 0.012 are supported.")
        prediction = config.get("prediction_type", "epsilon")
        check_choice("prediction_type", prediction, ("epsilon", "v_prediction"))
        return values, prediction


def load_vocabulary(bundle: Path) -> Vocabulary | None:
    """The words that the bundle's model learnt, from `vocabulary.json`; None where there is none."""
    file = bundle / "vocabulary.json"
    if not file.is_file():
        return None
    with naming(file):
        return Vocabulary.from_config(weights.read_config(file))


def load_preset(model: Path) -> Preset:
    """How the model is best used, from its `preset.json`, choices of `presets.Preset`; the default where there is
    none."""
    file = model / "preset.json"
    if not file.is_file():
        return PRESETS["default"]
    with naming(file):
        return find_preset(weights.read_config(file))


def to_half(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float16 copies, for a small file; every value must be finite and in range."""
    halves = jax.tree.map(lambda x: x.astype(np.float16), dict(tensors))
    if bad := [name for name, value in halves.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{', '.join(bad[:5])} do not fit float16.")
    return halves
