"""A model folder as this project writes it: one folder per part, in the diffusers layout with torch-named safetensors.

    model_index.json  tokenizer/  text_encoder/  vae/  unet/  image_encoder_siglip/  image_encoder_dinov2/
    adapter/ (the released RealCustom JSON: projector, image preparation; weights of projector and to_*_vision)
    vocabulary.json (a small model's words)  preset.json (how it is best used, where that is not the default)
    few_steps/ (a LoRA with which a few steps suffice, and a preset.json of what is then used otherwise)

Module `source` reads it, and the other layouts that people have.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from realcustom_jax.files import write_file, write_json

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

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
FEW_STEPS, FEW_STEPS_LORA = "few_steps", "lora.safetensors"


def save_part(bundle: "AnyPath", part: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one part's `config.json` and weights (torch names, see `weights.to_torch`)."""
    write_file(bundle / part / WEIGHT_FILES[part], safetensors.numpy.save(dict(tensors)))
    write_json(bundle / part / "config.json", config)


def save_few_steps(bundle: "AnyPath", choices: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the form of a model for which a few steps suffice: a LoRA (names of PEFT), and the choices of
    `presets.Preset` that it was made for."""
    write_file(bundle / FEW_STEPS / FEW_STEPS_LORA, safetensors.numpy.save(dict(tensors)))
    write_json(bundle / FEW_STEPS / "preset.json", choices)


def to_half(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float16 copies, for a small file; every value must be finite and in range."""
    halves = {name: value.astype(np.float16) for name, value in tensors.items()}
    if bad := [name for name, value in halves.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{', '.join(bad[:5])} do not fit float16.")
    return halves
