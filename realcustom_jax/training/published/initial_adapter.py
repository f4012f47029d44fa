"""What the adapter of a published model begins with: a random projector, and visual keys and values that are copies of
the text's; and how large its first tokens are.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from realcustom_jax.model_files import bundle, fingerprint, weights
from realcustom_jax.model_files.adapter import image_prompt_settings, scaled_tokens, vision_from_text_tensors
from realcustom_jax.model_files.network import Network
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNetConfig
from realcustom_jax.models.vit import VitConfig
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.published.config import FreshAdapterConfig

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def write_fresh_adapter(path: "AnyPath", model: str, vision: str, settings: FreshAdapterConfig) -> None:
    """Writes a random adapter to `path`, a folder named adapter, unless one of these settings, with copies of this
    model's keys and values, is there.

    Args:
        model, vision: where the model and its image encoders are; no `vision`: with the model.
        settings: of the adapter; its widths are those of the model and the encoders.
    """
    base = ModelSource.open(model)
    encoders = ModelSource.open(vision) if vision else base
    widths = [VitConfig.from_config(encoders.config(part)).embed_dim
              for part in ("image_encoder_siglip", "image_encoder_dinov2")]
    image_prompt = image_prompt_settings(
        settings.variant, vision_dim=sum(widths), dim_head=settings.dim_head,
        out_dim=UNetConfig.from_config(base.config("unet")).cross_attention_dim)
    copies = vision_from_text_tensors(base.tensors("unet"))
    # Where the model lies is not compared, because it may have been moved, or another trained in its place.
    config = {"image_prompt_settings": image_prompt, "vision_settings": dataclasses.asdict(settings.vision_settings),
              "copied": fingerprint.of_tensors(copies)}
    if (path / "config.json").is_file() and weights.read_config(path / "config.json") == json.loads(json.dumps(config)):
        return
    module = Projector(ProjectorConfig.from_config(image_prompt))
    one = jnp.zeros((1, 1, sum(widths)))
    features = (one,) * (1 + (len(settings.vision_settings.siglip_layers) if module.config.with_structure else 1))
    projector = jax.jit(module.init)(jax.random.key(0), features)["params"]
    bundle.save_part(path.parent, "adapter", config, copies | weights.to_torch(
        jax.device_get(projector), weights.PROJECTOR_PREFIX))


def with_tokens_like_text(pipeline: Pipeline, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Pipeline:
    """The pipeline with its projector's tokens of `pictures`, uint8 [H, W, 3], as large as its text's of `captions`.

    The size is how far a channel spreads; the median, as a few of CLIP's channels are enormous.
    """
    text = pipeline.encode_prompts(captions).text
    tokens = pipeline.encode_references([picture / 255.0 for picture in pictures])
    text, tokens = (float(jnp.median(states.astype(jnp.float32).std(axis=(0, 1)))) for states in (text, tokens))
    # The first process decides, because all processes must hold the same values.
    scale = float(multihost_utils.broadcast_one_to_all(np.float32(text / tokens)))
    projector = Network(pipeline.projector.module, scaled_tokens(pipeline.projector.params, scale))
    return dataclasses.replace(pipeline, projector=projector)
