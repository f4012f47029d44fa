"""A published model without its numbers: pipeline, training task and batches as shapes, for compiling ahead of time.

The task is the very one that `run.train_adapter` trains, `PublishedTask` or `PrecomputedTask`, so that what is compiled
for a device that is not there is what will run on it. Only the model's files are not opened: configurations are the
published ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.shapes import batch_shapes, tree_shapes
from realcustom_jax.model_files import locate, single_file, weights
from realcustom_jax.model_files.adapter import find_adapter, image_prompt_settings
from realcustom_jax.model_files.network import Network, TextEncoder
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.solvers import betas
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.shapes import example_shape, stored_shape
from realcustom_jax.training.published.tasks import PrecomputedTask, PublishedTask


def published_configs(kind: str) -> dict[str, Mapping[str, Any]]:
    """The configuration of every part of a published model, "sdxl" or "sd15", with the released image encoders."""
    siglip, dino = "vit_so400m_patch14_siglip_384", "vit_large_patch14_reg4_dinov2"
    return single_file.CONFIGS[kind] | {"image_encoder_siglip": locate.ARCHITECTURES[siglip],
                                        "image_encoder_dinov2": locate.ARCHITECTURES[dino]}


def hollow_pipeline(configs: Mapping[str, Mapping[str, Any]], train: PublishedConfig,
                    platform: Platform) -> Pipeline:
    """The pipeline that `run.train_adapter` trains with, its parameters `jax.ShapeDtypeStruct`s, without tokenizers.

    Args:
        configs: of each part, in the original JSON's keys.
        train: dtype, preset, fresh and adapter count.
        platform: of the devices that the program is meant for.
    Raises:
        FileNotFoundError, ValueError: the adapter to continue from, or a setting, cannot be used.
    """
    dtype, preset = jnp.dtype(train.dtype), train.preset
    settings, vision, conditioning = _adapter(configs, train)
    preset = dataclasses.replace(preset, **conditioning)
    if preset.local is not None:
        vision = dataclasses.replace(vision, local=preset.local)

    def encoder(name):
        config = VitConfig.from_config(configs[name])
        return _network(VisionTransformer(config, dtype, platform), jnp.zeros((1, *config.img_size, 3)), layers=(0,))

    def text_encoder(name):
        with_projection = name == "text_encoder_2"  # of the published files, SDXL's second alone has one
        module = ClipText(ClipTextConfig.from_config(configs[name]), with_projection, dtype, platform)
        return TextEncoder(None, _network(module, jnp.zeros((1, 2), jnp.int32)))

    unet = UNet(UNetConfig.from_config({**configs["unet"], "image_prompt_settings": settings}), dtype, platform)
    args, kwargs = weights.unet_inputs(unet.config)
    vae = Autoencoder(VAEConfig.from_config(configs["vae"]), dtype, platform)
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    projector = Projector(ProjectorConfig.from_config(settings), dtype, platform)
    feature = jnp.zeros((1, 1, projector.config.vision_dim))
    return Pipeline(
        text_encoders=tuple(text_encoder(name) for name in ("text_encoder", "text_encoder_2") if name in configs),
        vae=_network(vae, jnp.zeros((1, side, side, vae.config.in_channels))),
        unet=_network(unet, *args, **kwargs),
        siglip=encoder("image_encoder_siglip"), dino=encoder("image_encoder_dinov2"),
        projector=_network(projector, (feature,) * (3 if projector.config.with_structure else 2)),
        vision_settings=vision, betas=betas(), prediction="epsilon",
        sample_size=configs["unet"].get("sample_size") or 64, preset=preset)


def _adapter(configs, train: PublishedConfig) -> tuple[Mapping[str, Any], VisionSettings, Mapping[str, Any]]:
    """(`image_prompt_settings`, vision settings, choices of a preset) of the adapter that the training begins with."""
    if train.adapter:
        given = find_adapter(train.adapter)
        return given.settings, given.vision, given.conditioning
    width = sum(VitConfig.from_config(configs[f"image_encoder_{name}"]).embed_dim for name in ("siglip", "dinov2"))
    settings = image_prompt_settings(
        train.fresh.variant, vision_dim=width, out_dim=configs["unet"]["cross_attention_dim"],
        dim_head=train.fresh.dim_head)
    return settings, train.fresh.vision_settings, {}


def _network(module: nn.Module, *args, **kwargs) -> Network:
    shapes = weights.parameter_shapes(module, *args, **kwargs)
    return Network(module, tree_shapes(shapes, module.dtype))


def hollow_task(pipeline: Pipeline, train: PublishedConfig) -> tuple[PublishedTask, dict[str, Any]]:
    """(task, shapes of a batch of square pictures) of a configuration on a hollow pipeline."""
    rows, limit, size = train.optimization.batch_size, train.snr_limit or None, (train.side, train.side)
    if not train.precomputed:
        return PublishedTask(pipeline, None, limit), batch_shapes(example_shape(pipeline, size), rows)
    stored = stored_shape(pipeline, size)
    nothing = {"empty": {name: stored[name] for name in ("text", "pooled") if name in stored},
               "no_image": stored["features"]}
    task = PrecomputedTask(pipeline, None, _HollowFeatures(nothing), limit)
    return task, batch_shapes(stored, rows)


@dataclasses.dataclass(frozen=True)
class _HollowFeatures:
    """Stands for `features.StoredFeatures` where only shapes are asked for."""

    instead: dict[str, Any]

    def dropped(self) -> dict[str, Any]:
        return self.instead
