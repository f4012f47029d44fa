"""Finds the files of a model's parts, in the layouts that people have.

- a single-file checkpoint of Stable Diffusion (module `single_file`)
- a folder of diffusers' layout, or the `ckpts/sdxl` folder of the released RealCustom: a folder for each part, holding
  weights as one file or as shards with an index, as safetensors or torch files, of full precision or fp16
- the name of a model on the Hugging Face hub, which is downloaded to its cache
"""

import re
from collections.abc import Sequence
from pathlib import Path

from realcustom_jax.model_files.tensors import read_index

ASSETS = Path(__file__).parents[1] / "assets"
"""What comes with the package: the miniature and its references."""

# Where a part may be: in diffusers' layout (ours, for the image encoders), in the released one.
_FOLDERS = {
    "text_encoder": ("text_encoder", "clip-sdxl-1"),
    "text_encoder_2": ("text_encoder_2", "clip-sdxl-2"),
    "tokenizer": ("tokenizer", "clip-sdxl-1"),
    "tokenizer_2": ("tokenizer_2", "clip-sdxl-2"),
    "image_encoder_siglip": ("image_encoder_siglip", "vit_so400m_patch14_siglip_384"),
    "image_encoder_dinov2": ("image_encoder_dinov2", "vit_large_patch14_reg4_dinov2.lvd142m"),
}
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model",
          "sdxl-unet", "realcustom")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_FILES = (".safetensors", ".ckpt", ".pt")  # of single-file checkpoints
# Of a hub repository: its parts' folders, and not the many other forms in which it holds the same weights.
_FETCHED = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
            "image_encoder_siglip", "image_encoder_dinov2", "adapter")
_NOT_FETCHED = ("*.fp16*", "*non_ema*", "*openvino*", "*flax*")


def local_model(model: str | Path) -> Path:
    """The folder or single file of a model given as that, as a name on the hub ("owner/model"), or as "mini".

    Raises:
        FileNotFoundError: it is neither, or it cannot be downloaded; says what to give instead.
    """
    folder = ASSETS / "mini" if model == "mini" else Path(model)
    if folder.is_dir() or folder.is_file() and folder.suffix in _FILES:
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        problem = "it is a file of another kind" if folder.is_file() else "there is no such folder"
        raise FileNotFoundError(f"{folder} is not a model folder: {problem}. Give a folder of diffusers' layout, a "
                                f"single-file checkpoint ({', '.join(_FILES)}), or a name on the hub (owner/model).")
    from huggingface_hub import snapshot_download

    try:
        for suffix in _SUFFIXES[:2]:
            names = [f"{part}/*{ending}" for part in _FETCHED for ending in (".json", ".txt", suffix)]
            folder = Path(snapshot_download(
                str(model), allow_patterns=["*.json", *names], ignore_patterns=list(_NOT_FETCHED)))
            if weight_files(folder / "unet"):
                break
        return folder
    except Exception as error:  # the hub's client raises many kinds: no network, no such model, no permission
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{model} is no folder here, and cannot be downloaded from the Hugging Face hub ({reason}). Without a "
            "network, download it elsewhere and give the folder that holds unet/, vae/, text_encoder/ …") from None


def part_folder(model: Path, part: str) -> Path:
    """The folder of a part (`unet`, `vae`, `text_encoder_2` …), whether it exists or not; a single file itself."""
    if model.is_file():
        return model
    names = _FOLDERS.get(part, (part,))
    return next((model / name for name in names if (model / name).is_dir()), model / names[0])


def config_file(folder: Path) -> Path | None:
    """`config.json`, or the only JSON file that is not an index; None where there is none."""
    others = [file for file in sorted(folder.glob("*.json")) if ".index" not in file.name]
    if (folder / "config.json").is_file():
        return folder / "config.json"
    return others[0] if len(others) == 1 else None


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
    return _the_only(sorted(file for file in folder.glob("*") if file.suffix in _SUFFIXES), folder)


def _the_only(files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise ValueError(f"{folder} holds several weight files ({names}), none of a usual name; rename the right one "
                         f"to {_STEMS[0]}{files[0].suffix} or {_STEMS[1]}{files[0].suffix}.")
    return tuple(files)
