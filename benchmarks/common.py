"""What the benchmarks share: models at random weights, the sizes they are measured at, clocks, options and figures."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from realcustom_jax.files import write_json
from realcustom_jax.model_files import single_file, weights
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.models.context import for_platform
from realcustom_jax.models.unet import UNet, UNetConfig

_SDXL = single_file.CONFIGS["sdxl"]["unet"]
CONFIGS = {
    "mini": weights.read_config(ASSETS / "mini" / "unet" / "config.json"),
    "sdxl50m": _SDXL | {
        "block_out_channels": [40, 80, 160], "attention_head_dim": [1, 2, 4], "cross_attention_dim": 512,
        "norm_num_groups": 20, "transformer_layers_per_block": [1, 2, 10], "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + 128},
    "sdxl": _SDXL,
    "sd15": single_file.CONFIGS["sd15"]["unet"],
}
_LATENT_SIDES = {"mini": 16, "sdxl50m": 32, "sdxl": 128, "sd15": 64}
TOKENS = {"mini": (32, 128), "sdxl50m": (77, 729), "sdxl": (77, 729), "sd15": (77, 729)}  # of text, of vision


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def at_least(least: int) -> Callable[[str], int]:
    """A whole number, as the type of an option."""
    def read(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{number} is too few; expected at least {least}")
        return number

    read.__name__ = "whole number"  # which argparse names for what is none
    return read


def show(figures: Mapping[str, Any], file: Path | None) -> None:
    """Prints figures as JSON and, where a file is given, writes them there."""
    print(json.dumps(figures, indent=2))
    if file:
        write_json(file, figures)


def latent_side(kind: str, side: int | None) -> int:
    """Of latents for pictures of `side` pixels; None: what the model was made for."""
    return side // 8 if side else _LATENT_SIDES[kind]


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """The median seconds of each contender; every round runs each of them once, so that what slows the machine slows
    them all."""
    for run in tqdm(warm_up * list(contenders.values()), desc="warming up (compiles)", unit="run", leave=False):
        run()
    seconds = {name: [] for name in contenders}
    for _ in tqdm(range(rounds), unit="round", leave=False):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_unet(kind: str, dtype: str, scanned: bool = False):
    """(UNet with visual attention, for this machine; random parameters of a size that keeps activations finite)."""
    config = UNetConfig.from_config(CONFIGS[kind] | {"image_prompt_settings": {"vision_projection_type": "custom"}})
    unet = UNet(config, jnp.dtype(dtype))
    args, kwargs = weights.unet_inputs(config)
    shapes = weights.parameter_shapes(unet, *args, **kwargs)
    if not scanned:
        shapes = jax.eval_shape(lambda params: for_platform(params, unet.platform), shapes)
    noise = np.random.default_rng(0).standard_normal(999_983, np.float32)  # prime: what repeats it never lines up

    def draw(shape):
        scale = 1 / max(1, np.prod(shape.shape[:-1])) ** 0.5
        return jnp.asarray(np.resize((scale * noise).astype(dtype), shape.shape))

    return unet, jax.tree.map(draw, shapes)
