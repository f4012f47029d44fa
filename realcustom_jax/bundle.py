"""A model on disk: one folder per part, in the diffusers layout with torch-named safetensors.

    model_index.json  tokenizer/  text_encoder/  vae/  unet/  image_encoder_siglip/  image_encoder_dinov2/
    adapter/ (the released RealCustom JSON: projector, image preparation; weights of projector and to_*_vision)
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from transformers import CLIPTokenizer

from realcustom_jax import weights
from realcustom_jax.diffusion import betas
from realcustom_jax.images import VisionSettings
from realcustom_jax.vocabulary import Vocabulary

WEIGHT_FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder_siglip": "model.safetensors",
    "image_encoder_dinov2": "model.safetensors",
    "adapter": "realcustom.safetensors",
    "judge": "model.safetensors",
}
_SCHEDULES = {"scaled_linear": "squared_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' names → ours


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON, whole or not at all."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def save_part(bundle: Path, part: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one part's `config.json` and weights (torch names, see `weights.to_torch`)."""
    write_file(bundle / part / WEIGHT_FILES[part], safetensors.numpy.save(dict(tensors)))
    write_json(bundle / part / "config.json", config)


def part_files(bundle: Path, part: str) -> tuple[Path, Path]:
    """(config file, weight file) of a part; raises FileNotFoundError that names the missing file."""
    return _files(bundle / part, WEIGHT_FILES[part])


def _files(folder: Path, weight_file: str) -> tuple[Path, Path]:
    files = folder / "config.json", folder / weight_file
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"The model is not complete: {file} is missing.")
    return files


@contextlib.contextmanager
def _naming(*places: Path):
    """Puts the places in front of what is wrong with the files there, unless that names them itself."""
    where = f"{' with '.join(map(str, places))}: "
    try:
        yield
    except ValueError as error:
        named = any(str(place) in str(error) for place in places)
        raise ValueError(str(error) if named else f"{where}{error}") from None
    except KeyError as error:
        raise ValueError(f"{where}the configuration lacks {error}.") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where}the configuration cannot be used ({error}).") from None


def load_autoencoder(bundle: Path, **options):
    """(module, params) of the bundle's autoencoder."""
    with _naming(bundle / "vae"):
        return weights.load_autoencoder(*part_files(bundle, "vae"), **options)


def load_text_encoder(bundle: Path, **options):
    """(module, params) of the bundle's text encoder."""
    with _naming(bundle / "text_encoder"):
        return weights.load_text_encoder(*part_files(bundle, "text_encoder"), **options)


def load_vision_encoder(bundle: Path, part: str, **options):
    """(module, params) of an image encoder, `part` "image_encoder_siglip" or "image_encoder_dinov2"."""
    with _naming(bundle / part):
        return weights.load_vision_encoder(*part_files(bundle, part), **options)


def load_unet(bundle: Path, adapter: Path, **options):
    """(module, params) of the bundle's UNet with the visual attention of the adapter in the folder `adapter`."""
    config, base = part_files(bundle, "unet")
    adapter_config, visual = _files(adapter, WEIGHT_FILES["adapter"])
    with _naming(config.parent, adapter):
        settings = weights.read_config(adapter_config)["image_prompt_settings"]
        config = {**weights.read_config(config), "image_prompt_settings": settings}
        return weights.load_unet(config, base, visual, **options)


def load_projector(adapter: Path, **options):
    """(module, params, `VisionSettings`) of an adapter folder."""
    config, file = _files(adapter, WEIGHT_FILES["adapter"])
    with _naming(adapter):
        settings = VisionSettings.from_config(weights.read_config(config)["vision_settings"])
        return *weights.load_projector(config, file, **options), settings


def load_tokenizer(bundle: Path) -> CLIPTokenizer:
    """The bundle's tokenizer."""
    folder = bundle / "tokenizer"
    for names in (("tokenizer_config.json",), ("tokenizer.json", "vocab.json")):
        if not any((folder / name).is_file() for name in names):
            # transformers would make do with a tokenizer that knows no word.
            raise FileNotFoundError(f"The model is not complete: {folder / names[0]} is missing.")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds for a broken file
        raise ValueError(f"{folder}: the tokenizer cannot be read ({error}).") from None


def read_schedule(bundle: Path) -> tuple[np.ndarray, str]:
    """(betas [T], what the UNet predicts) from `scheduler/scheduler_config.json`, in diffusers' keys."""
    file = bundle / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"The model is not complete: {file} is missing.")
    with _naming(file):
        config = weights.read_config(file)
        name = config.get("beta_schedule", "scaled_linear")
        values = betas(_SCHEDULES.get(name, name), config.get("num_train_timesteps", 1000),
                       terminal_pure_noise=config.get("rescale_betas_zero_snr", False))
        ends = config.get("beta_start", values[0]), config.get("beta_end", values[-1])
        if name == "scaled_linear" and not np.allclose(ends, (0.00085, 0.012)):
            raise ValueError(f"beta_start, beta_end are {ends[0]:g}, {ends[1]:g}; only 0.00085, 0.012 are supported.")
        return values, config.get("prediction_type", "epsilon")


def load_vocabulary(bundle: Path) -> Vocabulary | None:
    """The words that the bundle's model learnt, from `vocabulary.json`; None where there is none."""
    file = bundle / "vocabulary.json"
    if not file.is_file():
        return None
    with _naming(file):
        return Vocabulary.from_config(weights.read_config(file))


def to_half(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float16 copies, for a small file; every value must be finite and in range."""
    halves = jax.tree.map(lambda x: x.astype(np.float16), dict(tensors))
    if bad := [name for name, value in halves.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{', '.join(bad[:5])} do not fit float16.")
    return halves
