"""A model on disk: one folder per part, in the diffusers layout with torch-named safetensors.

    model_index.json  tokenizer/  text_encoder/  vae/  unet/  image_encoder_siglip/  image_encoder_dinov2/
    adapter/ (the released RealCustom JSON: projector, image preparation; weights of projector and to_*_vision)
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from realcustom_jax import weights

WEIGHT_FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder_siglip": "model.safetensors",
    "image_encoder_dinov2": "model.safetensors",
    "adapter": "realcustom.safetensors",
    "judge": "model.safetensors",
}


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
    files = bundle / part / "config.json", bundle / part / WEIGHT_FILES[part]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{bundle} is not a complete model folder: {file.relative_to(bundle)} is missing.")
    return files


def load_autoencoder(bundle: Path, **options):
    """(module, params) of the bundle's autoencoder."""
    return weights.load_autoencoder(*part_files(bundle, "vae"), **options)


def load_text_encoder(bundle: Path, **options):
    """(module, params) of the bundle's text encoder."""
    return weights.load_text_encoder(*part_files(bundle, "text_encoder"), **options)


def load_vision_encoder(bundle: Path, part: str, **options):
    """(module, params) of an image encoder, `part` "image_encoder_siglip" or "image_encoder_dinov2"."""
    return weights.load_vision_encoder(*part_files(bundle, part), **options)


def to_half(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float16 copies, for a small file; every value must be finite and in range."""
    halves = jax.tree.map(lambda x: x.astype(np.float16), dict(tensors))
    if bad := [name for name, value in halves.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{', '.join(bad[:5])} do not fit float16.")
    return halves
