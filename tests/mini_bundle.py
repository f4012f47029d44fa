"""A model folder of random weights: the miniature's layout at the smallest sizes, 16 × 16 pictures."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.conditioning.prompts import build_tokenizer
from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.evaluation.miniature.judge import Judge, JudgeConfig, init_judge
from realcustom_jax.files import write_json
from realcustom_jax.model_files import bundle, weights
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.models.vit import VisionTransformer, VitConfig

NOUNS, HELD_OUT_NOUNS, SCENES = ["dog", "cat", "car"], ["teapot"], ["beach", "snow"]
WORDS = ["a", "and", "the", "on", "in", *NOUNS, *HELD_OUT_NOUNS, *SCENES]
SIDE, ENCODER_SIDE, LENGTH, WIDTH = 16, 8, 16, 16

_VAE = {"latent_channels": 4, "block_out_channels": [8, 8], "norm_num_groups": 4, "mid_block_add_attention": False,
        "scaling_factor": 0.5}
_UNET = {"in_channels": 4, "out_channels": 4, "sample_size": 8, "block_out_channels": [8], "layers_per_block": 1,
         "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
         "attention_head_dim": 2, "cross_attention_dim": WIDTH,
         "norm_num_groups": 4, "use_linear_projection": True, "addition_embed_type": "text_time",
         "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": WIDTH + 6 * 4}
_ENCODER = {"img_size": ENCODER_SIDE, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
_ENCODERS = {"image_encoder_siglip": {**_ENCODER, "class_token": False},
             "image_encoder_dinov2": {**_ENCODER, "init_values": 0.1, "reg_tokens": 2, "no_embed_class": True}}
_ADAPTER = {
    "image_prompt_settings": {
        "vision_projection_type": "projector",
        "vision_projection_config": {
            "variant": "paper", "params": {"vision_dim": 16, "out_dim": WIDTH, "dim_head": 8}}},
    "vision_settings": dataclasses.asdict(VisionSettings(
        size=SIDE, encoder_size=ENCODER_SIDE, split=2, local="tiles", siglip_layers=(0, 1), dino_layers=(0, 1)))}


def write_mini_bundle(folder: Path, kind: str = "mini", *, words: Sequence[str] = WORDS, length: int = LENGTH) -> Path:
    """Writes the model to `folder` and returns it; the same numbers every time.

    `kind`: "mini", or the conditioning of "sdxl" (two text encoders, the second with a projection) or "sd15" (one, and
    no pooled text). Prompts have `length` tokens and are made of `words`.
    """
    rng = np.random.default_rng(0)
    tokenizer = build_tokenizer(words, max_length=length)
    tokenizer.save_pretrained(folder / "tokenizer")
    width = 2 * WIDTH if kind == "sdxl" else WIDTH
    base = {**_UNET, "cross_attention_dim": width}
    if kind == "sd15":
        base |= {"addition_embed_type": None, "use_linear_projection": False}
    adapter = copy.deepcopy(_ADAPTER)
    adapter["image_prompt_settings"]["vision_projection_config"]["params"]["out_dim"] = width
    text = {"vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": length, "eos_token_id": tokenizer.eos_token_id}
    bundle.save_part(folder, "text_encoder", text, _weights(
        rng, ClipText(ClipTextConfig.from_config(text)), jnp.zeros((1, 2), jnp.int32)))
    if kind == "sdxl":
        tokenizer.save_pretrained(folder / "tokenizer_2")
        second = text | {"projection_dim": WIDTH}
        bundle.save_part(folder, "text_encoder_2", second, _weights(
            rng, ClipText(ClipTextConfig.from_config(second), True), jnp.zeros((1, 2), jnp.int32)))
    bundle.save_part(folder, "vae", _VAE, _weights(
        rng, Autoencoder(VAEConfig.from_config(_VAE)), jnp.zeros((1, SIDE, SIDE, 3))))
    for part, config in _ENCODERS.items():
        picture = jnp.zeros((1, ENCODER_SIDE, ENCODER_SIDE, 3))
        bundle.save_part(folder, part, config, _weights(
            rng, VisionTransformer(VitConfig.from_config(config)), picture, layers=(0,)))
    settings = adapter["image_prompt_settings"]
    unet = UNetConfig.from_config({**base, "image_prompt_settings": settings})
    args, kwargs = weights.unet_inputs(unet)
    tensors = _weights(rng, UNet(unet), *args, **kwargs)
    visual = {name: tensors.pop(name) for name in list(tensors) if "_vision." in name}
    visual |= _weights(rng, Projector(ProjectorConfig.from_config(settings)), (jnp.zeros((1, 1, 16)),) * 3,
                       prefix=weights.PROJECTOR_PREFIX)
    bundle.save_part(folder, "unet", base, tensors)
    bundle.save_part(folder, "adapter", adapter, visual)
    write_json(folder / "scheduler" / "scheduler_config.json", {"beta_schedule": "scaled_linear"})
    write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": kind == "sdxl"})
    write_json(folder / "vocabulary.json", {
        "nouns": NOUNS, "held_out_nouns": HELD_OUT_NOUNS, "scenes": SCENES, "words": list(words)})
    return folder


SMALL_JUDGE = JudgeConfig(widths=(8, 8, 16), hidden=16, groups=4)


def judge_params():
    """Random parameters of a small judge, without compiling its initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_judge(Judge(SMALL_JUDGE), jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(_random(rng, path[-1].key, leaf.shape)), shapes)


def train_anew(folder: Path, part: str) -> None:
    """Changes one number of a part's weights, the first of its first tensor."""
    source = FolderSource(folder)
    config, tensors = source.config(part), dict(source.tensors(part).items())
    name = min(tensors)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] += 1e-3
    bundle.save_part(folder, part, config, tensors)


def _weights(rng: np.random.Generator, module, *args, prefix: str = "", **kwargs) -> dict[str, np.ndarray]:
    """Random weights in torch names; compiling an initialisation would take longer than the rest of the tests."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs)["params"])
    params = {path: _random(rng, path[-1], leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    return weights.to_torch(unflatten_dict(params), prefix)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    mean = 1.0 if name == "scale" else 0.0
    deviation = np.prod(shape[:-1]) ** -0.5 if name == "kernel" else 0.2
    return (mean + deviation * rng.standard_normal(shape)).astype(np.float32)
