"""What the adapter of a published model begins with: a random projector, whose tokens are as large as the text's, and
visual keys and values that are copies of the text's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from realcustom_jax import bundle, weights
from realcustom_jax.adapter import scaled_tokens, vision_from_text_tensors
from realcustom_jax.images import VisionSettings
from realcustom_jax.locate import local_model
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNetConfig
from realcustom_jax.pipeline import ASSETS, text_states
from realcustom_jax.tensors import read_files
from realcustom_jax.text import encode_prompt


def write_fresh_adapter(path: Path, model: str, vision: str, tokenizer: str, captions: Sequence[str],
                        settings: Mapping[str, Any]) -> None:
    """Writes what an adapter begins with to `path`, a folder named adapter, unless it is there.

    Args:
        model, vision, tokenizer: where the model, its image encoders and its tokenizers are; "" is with the model.
        captions: some of those that it will be trained with; their states tell how large the text's tokens are.
        settings: `variant`, `dim_head` and `vision_settings`; the widths are those of the model and the encoders.
    """
    if (path / "config.json").is_file():
        return
    base = ASSETS / "mini" if model == "mini" else local_model(model)
    encoders = local_model(vision) if vision else base
    config, *files = bundle.part_files(base, "unet")
    widths = [weights.read_config(bundle.part_files(encoders, f"image_encoder_{name}")[0])["embed_dim"]
              for name in ("siglip", "dinov2")]
    params = {"vision_dim": sum(widths), "out_dim": weights.read_config(config)["cross_attention_dim"],
              "dim_head": settings["dim_head"]}
    image_prompt = {"vision_projection_type": "custom", "image_prompt_mode": "naive",
                    "vision_projection_config": {"variant": settings["variant"], "params": params}}
    vision_settings = VisionSettings.from_config(settings["vision_settings"])
    module = Projector(ProjectorConfig.from_config(image_prompt))
    one = jnp.zeros((1, 1, sum(widths)))
    features = (one,) * (2 if settings["variant"] == "highres" else len(vision_settings.siglip_layers) + 1)
    projector = jax.jit(module.init)(jax.random.key(0), features)["params"]
    projector = scaled_tokens(projector, _size_of_text(base, local_model(tokenizer) if tokenizer else base, captions))
    unet = read_files(files) if isinstance(files[0], Path) else files[0]
    bundle.save_part(path.parent, "adapter", {
        "image_prompt_settings": image_prompt, "vision_settings": dataclasses.asdict(vision_settings),
    }, vision_from_text_tensors(unet) | weights.to_torch(jax.device_get(projector), weights.PROJECTOR_PREFIX))


def _size_of_text(model: Path, tokenizers: Path, captions: Sequence[str]) -> float:
    """How far a channel of the text's states spreads; the median, as a few of CLIP's channels are enormous."""
    outputs = []
    for end in bundle.text_encoders(model):
        module, params = bundle.load_text_encoder(model, f"text_encoder{end}")
        ids = encode_prompt(bundle.load_tokenizer(tokenizers, f"tokenizer{end}"), captions)
        outputs.append(jax.jit(module.apply)({"params": params}, ids))
    unet = UNetConfig.from_config(weights.read_config(bundle.part_files(model, "unet")[0]))
    return float(jnp.median(text_states(outputs, unet, "unprojected")[0].std(axis=(0, 1))))
