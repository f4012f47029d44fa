"""The adapter: what RealCustom++ trains, apart from the frozen base model.

It is the projector and, in every text cross-attention of the UNet, `to_k_vision` and `to_v_vision`. In a file both
stand in torch names, the projector under `weights.PROJECTOR_PREFIX`, as in the released checkpoints.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.errors import check_choice, naming
from realcustom_jax.model_files import locate, weights
from realcustom_jax.model_files.kinds import advice, identify
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors
from realcustom_jax.models.projector import ProjectorConfig, check_layers
from realcustom_jax.models.unet import UNetConfig
from realcustom_jax.presets import Preset, replace_choices

CONDITIONING = ("local", "pooled", "size_order")
"""The choices of a preset that an adapter is trained with, and has to be used with."""
SAMPLING = tuple(field.name for field in dataclasses.fields(Preset) if field.name not in CONDITIONING)
"""The others, which an adapter may bring defaults of: those that the pictures of its training were made with."""

_LAYERS = {"to_k_vision", "to_v_vision"}
# The blocks that the released variants read, from shallow to deep (configs/realcustom_sigdino_highres*.json).
_RELEASED = {
    "highres": VisionSettings(siglip_layers=(25,), dino_layers=(22,)),
    "shallow": VisionSettings(siglip_layers=(7, 13, 19, 25), dino_layers=(4, 10, 16, 22)),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that is not loaded yet.

    settings: the released JSON's `image_prompt_settings`. vision: how references are read. tensors: torch-named;
    a released file also holds UNet weights. where: the file or folder, for errors. conditioning, sampling: the choices
    of `CONDITIONING` that it was trained with, and of `SAMPLING` that it is best used with, by name, where it says so.
    """

    settings: Mapping[str, Any]
    vision: VisionSettings
    tensors: LazyTensors
    where: Path
    conditioning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def find_adapter(path: str | Path) -> Adapter:
    """Finds an adapter's configuration and weights.

    Args:
        path: a folder (a JSON and one weight file), or a weight file: with a JSON of the same name, with `config.json`
            beside it, or else a released checkpoint, whose variant shows in its names.
    Raises:
        FileNotFoundError, ValueError: nothing there, or not an adapter; says what was expected.
    """
    path = locate.on_this_host(path)
    if path.is_dir():
        config, files = locate.config_file(path), locate.weight_files(path)
        if not config or not files:
            missing = path / ("realcustom.safetensors" if config else "config.json")
            raise FileNotFoundError(f"The adapter is not complete: {missing} is missing.")
    else:
        files = (path,)
        beside = (path.with_suffix(".json"), path.parent / "config.json")
        config = next((file for file in beside if file.is_file()), None)
    tensors = read_tensors(*files)
    if not any(name.startswith(weights.PROJECTOR_PREFIX) for name in tensors):
        raise ValueError(_no_adapter(files[0], tensors))
    if config is None:
        return _released(tensors, path)
    mapping = locate.read_config(config)
    if "image_prompt_settings" not in mapping:
        raise ValueError(f"{config}: the configuration lacks 'image_prompt_settings', which says how the projector is "
                         "built; give the released JSON or an adapter written by this project.")
    with naming(config):
        settings = mapping["image_prompt_settings"]
        if settings.get("vision_projection_type", "none") == "none":
            raise ValueError("vision_projection_type is missing or none: it asks for no visual attention; give the "
                             "JSON that the adapter was trained with.")
        ours = "vision_settings" in mapping
        vision = (VisionSettings.from_config(mapping["vision_settings"]) if ours else
                  VisionSettings.from_released(mapping))
        check_layers(ProjectorConfig.from_config(settings).variant, len(vision.siglip_layers))
        choices = {kind: mapping.get(kind, {}) for kind in ("conditioning", "sampling")}
        for (kind, given), known in zip(choices.items(), (CONDITIONING, SAMPLING), strict=True):
            if not isinstance(given, Mapping):
                raise ValueError(f"{kind} is {given!r}; expected choices of a preset by their names.")
            for name in given:
                check_choice(f"choice of {kind}", name, known)
            replace_choices(Preset(), given)
    return Adapter(settings, vision, tensors, path, **choices)


def remembered_choices(preset: Preset) -> dict[str, dict[str, Any]]:
    """What an adapter's configuration says of the preset that it was trained with. "local" is None, because the
    adapter's own vision settings say it, as the preset may have changed them."""
    conditioning = {name: getattr(preset, name) for name in CONDITIONING} | {"local": None}
    return {"conditioning": conditioning, "sampling": {name: getattr(preset, name) for name in SAMPLING}}


def _no_adapter(file: Path, tensors: LazyTensors) -> str:
    """What is wrong with a file that holds no projector under its own name."""
    if wrapped := next((name for name in tensors if weights.PROJECTOR_PREFIX in name), None):
        return (f"{file} holds a RealCustom adapter under other names: {wrapped!r}, where a name begins with "
                f"{weights.PROJECTOR_PREFIX}; take {wrapped.partition(weights.PROJECTOR_PREFIX)[0]!r} away from the "
                "names.")
    if any(f".{layer}." in name for name in tensors for layer in _LAYERS):
        return (f"{file} holds only half of a RealCustom adapter: the visual attention layers, but not the projector "
                f"({weights.PROJECTOR_PREFIX}…); give the whole file.")
    what = identify(tensors)
    return (f"{file} is no RealCustom adapter but {what}{advice(what)}: it has no tensors named "
            f"{weights.PROJECTOR_PREFIX}…, as the released RealCustom_highres.pth has.")


def _released(tensors: LazyTensors, path: Path) -> Adapter:
    """A released checkpoint without its JSON: one projector stream more is the shallow variant."""
    variant = "shallow" if f"{weights.PROJECTOR_PREFIX}projector2.0.weight" in tensors else "highres"
    base = f"{weights.PROJECTOR_PREFIX}projector_base.weight"
    shape = tensors[base].shape if base in tensors else None
    if shape is None or len(shape) != 2 or 0 in shape:
        problem = "lacks" if shape is None else f"has, of shape {list(shape)},"
        raise ValueError(f"{path} is not a whole RealCustom adapter: it {problem} {base}, whose two sizes say which "
                         "model it is for; give the whole file, or its JSON beside it.")
    settings = image_prompt_settings(variant, vision_dim=shape[1], out_dim=shape[0])
    return Adapter(settings, _RELEASED[variant], tensors, path)


def image_prompt_settings(variant: str, *, vision_dim: int, out_dim: int, **more: Any) -> dict[str, Any]:
    """The released JSON's `image_prompt_settings` of a projector.

    vision_dim: the image encoders' channels together. out_dim: the width of the text that the UNet reads. more: other
    values of `ProjectorConfig`.
    """
    return {"vision_projection_type": "custom", "image_prompt_mode": "naive", "vision_projection_config": {
        "variant": variant, "params": {"vision_dim": vision_dim, "out_dim": out_dim, **more}}}


def check_backbone(adapter: Adapter, unet_config: Mapping[str, Any]) -> None:
    """Raises ValueError if the adapter was made for a UNet of another width of text, or if the UNet takes more than
    the noisy latents: an inpainting or image-editing model."""
    unet = UNetConfig.from_config(unet_config)
    given, expected = ProjectorConfig.from_config(adapter.settings).out_dim, unet.cross_attention_dim
    if unet.in_channels != unet.out_channels:
        raise ValueError(f"this UNet takes {unet.in_channels} channels and returns {unet.out_channels}: an inpainting "
                         "or image-editing model, which is not supported; give a text-to-image one.")
    if given != expected:
        raise ValueError(f"{adapter.where}: this adapter was made for another backbone: its vision tokens have width "
                         f"{given}, this UNet takes {expected} (SD-1.5 has 768, SDXL 2048).")


def load_adapter_projector(adapter: Adapter, **options):
    """(module, params) of an adapter's projector, by `weights.load_projector`, which takes the options."""
    with naming(adapter.where):
        return weights.load_projector(adapter.settings, adapter.tensors, **options)


def split_unet(params) -> tuple[dict, dict]:
    """The UNet's parameters as (visual attention layers, everything else), two nested dicts."""
    flat = flatten_dict(params)
    vision = {path: leaf for path, leaf in flat.items() if _LAYERS & set(path)}
    return unflatten_dict(vision), unflatten_dict({path: leaf for path, leaf in flat.items() if path not in vision})


def merge_unet(vision, base) -> dict:
    """The inverse of `split_unet`."""
    return unflatten_dict({**flatten_dict(base), **flatten_dict(vision)})


def vision_from_text(params) -> dict:
    """Visual attention layers that start as copies of the text's keys and values: the projector then learns to say in
    tokens what the frozen layers already draw when words say it (as IP-Adapter starts, arXiv 2308.06721)."""
    copies = {path[:-2] + (f"{path[-2]}_vision", path[-1]): leaf for path, leaf in flatten_dict(params).items()
              if path[-3:-1] in (("attn2", "to_k"), ("attn2", "to_v"))}
    return unflatten_dict(copies)


def scaled_tokens(projector, scale: float) -> dict:
    """A projector's parameters with its tokens `scale` times as large. Keys that were copied from the text's saturate
    on tokens many times the text's, and a fresh projector's are: its last layers normalise to unit variance."""
    last = {("projector_base", "kernel"), ("projector_base", "bias"), *((f"projector{stream}_5", part) for stream in (
        "", "2") for part in ("scale", "bias"))}
    return unflatten_dict({path: leaf * scale if path in last else leaf
                           for path, leaf in flatten_dict(projector).items()})


def vision_from_text_tensors(unet: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`vision_from_text` of a UNet's file, in torch names: reads nothing but those keys and values, as float32."""
    return {name.replace(f".attn2.{kind}.", f".attn2.{kind}_vision."): np.asarray(unet[name], np.float32)
            for kind in ("to_k", "to_v") for name in unet if f".attn2.{kind}." in name}


def adapter_tensors(projector, vision) -> dict[str, np.ndarray]:
    """The adapter's tensors in torch names, as the released file holds them."""
    return weights.to_torch(projector, weights.PROJECTOR_PREFIX) | weights.to_torch(vision)
