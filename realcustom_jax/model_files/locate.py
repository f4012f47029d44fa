"""Where a part's configuration and weights lie in a model's folder, and how a model on the hub becomes such a folder.

The folder is of diffusers' layout, or the `ckpts/sdxl` folder of the released RealCustom. It has a folder for each
part, with weights as one file or as shards with an index, as safetensors or torch files, of full precision or fp16.
Module `source` makes one object of it; what lies in a single-file checkpoint, module `single_file` knows.
"""

import fnmatch
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from realcustom_jax.model_files import single_file
from realcustom_jax.model_files.kinds import check_is_itself
from realcustom_jax.model_files.tensors import read_index
from realcustom_jax.paths import as_path, file_system, is_bucket, local_copy, local_folder, reaching

ASSETS = Path(__file__).parents[1] / "assets"
"""What comes with the package: the miniature and its references."""

ARCHITECTURES = {
    "vit_so400m_patch14_siglip_384": {
        "img_size": 384, "patch_size": 14, "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362,
        "class_token": False, "global_pool": "map"},
    "vit_large_patch14_reg4_dinov2": {
        "img_size": 384, "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-5,
        "reg_tokens": 4, "no_embed_class": True},
}
"""timm's arguments of the published image encoders, by timm's names; the second at SigLIP's picture size, as
released."""

# Of the released layout, whose files come without a configuration.
_CONFIGS = {
    "unet": single_file.CONFIGS["sdxl"]["unet"],
    "image_encoder_siglip": ARCHITECTURES["vit_so400m_patch14_siglip_384"],
    "image_encoder_dinov2": ARCHITECTURES["vit_large_patch14_reg4_dinov2"],
}
FOLDERS = {
    "text_encoder": ("text_encoder", "clip-sdxl-1"),
    "text_encoder_2": ("text_encoder_2", "clip-sdxl-2"),
    "tokenizer": ("tokenizer", "clip-sdxl-1"),
    "tokenizer_2": ("tokenizer_2", "clip-sdxl-2"),
    "image_encoder_siglip": ("image_encoder_siglip", "vit_so400m_patch14_siglip_384"),
    "image_encoder_dinov2": ("image_encoder_dinov2", "vit_large_patch14_reg4_dinov2.lvd142m"),
}
"""Where a part may be: in diffusers' layout (ours, for the image encoders), in the released one."""

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model",
          "sdxl-unet", "realcustom")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How single-file checkpoints end."""
_LOCAL = {"ckpt", "ckpts", "checkpoint", "checkpoints", "data", "exp", "experiments", "log", "logs", "model", "models",
          "out", "output", "outputs", "result", "results", "run", "runs", "tmp", "train", "weights", "work", "workdir"}
"""How people name the folders in which their own models lie; no name on the hub is taken to begin so."""

# Of a hub repository: its parts' folders, and not the many other forms in which it holds the same weights.
_FETCHED = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
            "image_encoder_siglip", "image_encoder_dinov2", "adapter", "few_steps")
_NOT_FETCHED = ("*non_ema*", "*openvino*", "*flax*")
_ALONE = "."  # where an autoencoder or a UNet lies that is published alone
_WITH_WEIGHTS = (*(part for part in _FETCHED if part not in ("tokenizer", "tokenizer_2", "scheduler")), _ALONE)


def on_this_host(path: str | os.PathLike) -> Path:
    """The folder or file of a model, a part or an adapter, on this host: the path itself, whatever is there, or the
    copy that is kept of what lies in a bucket (`paths.local_folder`). Weights are mapped into memory, and transformers
    reads files alone, so that nothing is read from the bucket piece by piece.

    Of a folder that is a model's parts with one form of their weights; a file comes with the JSONs that may describe
    it.

    Raises:
        ValueError, FileNotFoundError, OSError: as `paths.as_path` and `paths.local_folder`.
    """
    path = as_path(path)
    if not is_bucket(path):
        return path
    with reaching(path):
        alone = file_system(path).isfile(os.fspath(path))
    return local_copy(path, f"{path.stem}.json", "config.json", "adapter_config.json") if alone else local_folder(
        path, _needed)


def _needed(names: Collection[str]) -> list[str]:
    """Those files of a folder that a model is read from, by names relative to it."""
    parts = {*_FETCHED, "judge", *(place for places in FOLDERS.values() for place in places)}
    whole = any(name.startswith("unet/") for name in names)  # then a weight file at the top is the same model again
    needed = []
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        suffix = PurePosixPath(file).suffix
        if folder and folder not in parts or any(fnmatch.fnmatchcase(name, other) for other in _NOT_FETCHED):
            continue
        weights = suffix in SINGLE_FILES and (folder or not whole) and not _better_forms(name) & set(names)
        if weights or suffix in (".json", ".txt"):
            needed.append(name)
    return needed


def _better_forms(name: str) -> set[str]:
    """The names of the same weights in the forms that `weight_files` takes before this one."""
    stem = re.sub(r"(^|/)pytorch_(model[^/]*)$", r"\1\2", name.removesuffix(PurePosixPath(name).suffix))
    forms = {name, f"{stem}.safetensors"}
    return (forms | {form.replace(".fp16", "") for form in forms}) - {name}


def is_on_hub(model: str | Path) -> bool:
    """Whether this is a name as models have on the hub, "owner/model", and not the path of a folder or file that is
    missing here: the first word is no folder in the working directory and none of those in which people keep models,
    and the second ends like no weight file."""
    owner, _, name = str(model).partition("/")
    return (could_be_on_hub(model) and owner.lower() not in _LOCAL
            and not Path(owner).exists() and Path(name).suffix not in (*SINGLE_FILES, ".json"))


def could_be_on_hub(model: str | Path) -> bool:
    """Whether the hub has names of this form, whatever else it may be."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)))


def download(model: str) -> Path:
    """The folder, in the hub's cache, of the parts of a model on the hub; what is not there yet is downloaded. Of each
    part that is one form of its weights: of full precision before fp16, safetensors before torch files.

    Raises:
        FileNotFoundError: it cannot be downloaded; says why, and what to give instead.
    """
    from huggingface_hub import snapshot_download

    names, weights, lacking = ["*.json", *(f"{part}/*.txt" for part in _FETCHED)], {}, {*_WITH_WEIGHTS}
    try:
        for precision in ("", ".fp16"):
            for suffix in _SUFFIXES[:2]:
                # What was found before is asked for again, which costs nothing.
                weights |= {part: f"{_STEMS[0]}{precision}{suffix}" if part == _ALONE else
                            f"{part}/*{precision}*{suffix}" for part in lacking}
                halves = [f"{part}/*.fp16*" for part in _FETCHED if not precision or part not in lacking]
                folder = Path(snapshot_download(
                    model, allow_patterns=[*names, *weights.values()], ignore_patterns=[*_NOT_FETCHED, *halves]))
                lacking = {part for part in _WITH_WEIGHTS if not _holds_weights(folder / part)}
                there = {part for part in lacking - {_ALONE} if (folder / part).is_dir()}
                if not there and not lacking >= {"unet", _ALONE}:
                    return folder
        return folder
    except Exception as error:  # the hub's client raises many kinds: no network, no such model, no permission
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{model} is no folder here, and cannot be downloaded from the Hugging Face hub ({reason}). Without a "
            "network, download it elsewhere and give the folder that holds unet/, vae/, text_encoder/ …") from None


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix in _SUFFIXES for file in folder.glob("*"))


def config_file(folder: Path) -> Path | None:
    """`config.json`, or the only JSON file that is not an index; None where there is none."""
    others = [file for file in sorted(folder.glob("*.json")) if ".index" not in file.name]
    if (folder / "config.json").is_file():
        return folder / "config.json"
    return others[0] if len(others) == 1 else None


def part_config(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a part that lies in `folder`, in the original JSON's keys.

    That is the JSON file there; of an image encoder that timm or open_clip describe by a name, the arguments of the
    network of that name; and in the released layout, whose files come without one, the published model's.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not a JSON object; names the file.
    """
    if file := config_file(folder):
        config = read_config(file)
        return dict(ARCHITECTURES.get(_timm_name(config), config)) if part.startswith("image_encoder") else config
    # A diffusers folder without the UNet's JSON is damaged: it need not be the UNet of the released layout.
    damaged = part == "unet" and (folder.parent / "model_index.json").is_file()
    if part not in _CONFIGS or damaged or not folder.is_dir():
        raise FileNotFoundError(f"The model is not complete: {folder / 'config.json'} is missing.")
    return dict(_CONFIGS[part])


def _timm_name(config: Mapping[str, Any]) -> str | None:
    """timm's name of the network that a hub's JSON of timm or of open_clip describes; None for other JSONs."""
    return config.get("architecture") or config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name")


def read_config(config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """A configuration given as a mapping or as the path of a JSON file, as a dict; raises FileNotFoundError or
    ValueError for a file that holds no JSON object."""
    if isinstance(config, Mapping):
        return dict(config)
    try:
        file = local_copy(as_path(config))
        check_is_itself(file)
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"configuration file {config} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"configuration file {config} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"configuration file {config} holds a JSON {type(value).__name__}; expected an object {{…}}.")
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """A folder's weights: of full precision before fp16, safetensors before torch files; empty where there are none.

    Raises:
        FileNotFoundError, ValueError: shards are missing, or the folder holds several files and none of a usual name.
    """
    for suffix in _SUFFIXES[:2]:
        for precision in ("", ".fp16"):
            for stem in _STEMS:
                if (file := folder / f"{stem}{precision}{suffix}").is_file():
                    return (file,)
                for index in (f"{stem}{suffix}.index{precision}.json", f"{stem}{precision}{suffix}.index.json"):
                    if (folder / index).is_file():
                        return read_index(folder / index)
    files = sorted(file for file in folder.glob("*") if file.suffix in _SUFFIXES)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise ValueError(f"{folder} holds several weight files ({names}), none of a usual name; rename the right one "
                         f"to {_STEMS[0]}{files[0].suffix} or {_STEMS[1]}{files[0].suffix}.")
    return tuple(files)
