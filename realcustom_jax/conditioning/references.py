"""A reference image's features that the projector takes.

The reference is seen twice: whole, at the encoders' size, and at `split` times that size in split² parts, so
that the encoders read its details (cross-scale, in RealCustom++, arXiv 2408.09744). Both frozen encoders see
the same pictures, and their channels are concatenated.

Dimensions: B batch, H W pixels, g the size that the encoders see, L tokens, C channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.arrays import Array
from realcustom_jax.errors import check_choice
from realcustom_jax.models.projector import Projector
from realcustom_jax.models.resize import (
    bilinear_places,
    lerp,
    resize_align_corners,
    resize_bilinear,
    resize_bilinear_on_host,
)
from realcustom_jax.models.vit import VisionTransformer

SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ROWS = 32  # of a picture in floats that a core's cache holds


@dataclasses.dataclass(frozen=True)
class VisionSettings:
    """How a reference is read; `dataclasses.asdict` is its JSON. The defaults are the released checkpoint's.

    Attributes:
        size, encoder_size, split, local, quantize: see `prepare_reference`.
        siglip_layers, dino_layers: zero-based blocks to read, from shallow to deep; the last one is the deep
            one and the only one read from the local parts.
    """

    size: int = 768
    encoder_size: int = 384
    split: int = 2
    local: str = "phases"
    quantize: bool = True
    siglip_layers: tuple[int, ...] = (25,)
    dino_layers: tuple[int, ...] = (22,)

    def __post_init__(self):
        check_choice("local", self.local, ("phases", "tiles"))
        numbers = {name: getattr(self, name) for name in ("size", "encoder_size", "split")}
        if wrong := [f"{name}={value!r}" for name, value in numbers.items() if type(value) is not int or value < 1]:
            raise ValueError(f"Vision settings: {', '.join(wrong)}; expected whole numbers above 0.")
        if self.size != self.split * self.encoder_size:
            raise ValueError(f"Vision settings: size={self.size} is not split × encoder_size = {self.split} × "
                             f"{self.encoder_size}.")
        if len(self.siglip_layers) != len(self.dino_layers) or not self.siglip_layers:
            raise ValueError(f"siglip_layers={self.siglip_layers} and dino_layers={self.dino_layers} must be "
                             "equally many, and at least one.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VisionSettings":
        """Reads a JSON mapping of the attributes. Raises ValueError for an unknown one."""
        if unknown := sorted(set(config) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"Vision settings: unknown keys {', '.join(unknown)}.")
        layers = {key: tuple(config[key]) for key in ("siglip_layers", "dino_layers") if key in config}
        return cls(**{**config, **layers})

    @classmethod
    def from_released(cls, config: Mapping[str, Any]) -> "VisionSettings":
        """Reads `vision_model_config` of the released RealCustom JSON, given whole."""
        params = config["vision_model_config"]["vision_model_config"]["params"]
        split, encoder_size = params["patchfy_scale"], params["default_image_size"]
        siglip_layers, dino_layers = (
            tuple(sorted(params[encoder]["feature_index"])) for encoder in ("siglip_config", "dino_config"))
        return cls(size=split * encoder_size, encoder_size=encoder_size, split=split,
                   siglip_layers=siglip_layers, dino_layers=dino_layers)


def square_reference(picture: np.ndarray, size: int) -> np.ndarray:
    """A reference as training and sampling begin with it: the square of `size` of `prepare_reference`, whatever the
    picture's size and aspect, so that what follows is compiled once. float [H, W, 3] -> [size, size, 3]."""
    return resize_bilinear_on_host(np.asarray(picture)[None], (size, size))[0]


def square_pixels(picture: np.ndarray, size: int) -> np.ndarray:
    """`square_reference` of a picture of 8 bits, rounded to 8 bits: uint8 [H, W, 3] -> [size, size, 3]. It takes some
    milliseconds, because only the pixels that are used become floats, a few rows at a time."""
    if picture.shape[:2] == (size, size):
        return picture
    white, made = np.float32(255), np.empty((size, size, 3), np.uint8)
    (top, bottom, down), (left, right, across) = (bilinear_places(length, size) for length in picture.shape[:2])
    down, across = down.astype(np.float32), across.astype(np.float32)
    for start in range(0, size, _ROWS):
        rows = slice(start, start + _ROWS)
        upper, lower = picture.take(top[rows], axis=0), picture.take(bottom[rows], axis=0)
        lines = lerp(upper / white, lower / white, down[rows, None, None])
        pixels = lerp(lines.take(left, axis=1), lines.take(right, axis=1), across[:, None])
        pixels *= white
        made[rows] = np.round(pixels, out=pixels)
    return made


def prepare_reference(
    images: Array,
    *,
    size: int = 768,
    encoder_size: int = 384,
    split: int = 2,
    local: str = "phases",
    quantize: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The whole reference and its parts, as both encoders see them (before their own normalisation).

    As in the released pipeline, the image becomes a square of `size` whatever its aspect, and the whole is
    resized from that square, corners aligned.

    Args:
        images: [B, H, W, 3] in [0, 1].
        size: of the square that is divided; split × encoder_size.
        encoder_size: g.
        split: parts a side.
        local: "phases": every split-th pixel, a pixel unshuffle (what the released code does and its
            checkpoint needs); "tiles": neighbouring squares (what the paper draws).
        quantize: truncate to 8 bits, as the released code does by way of PIL images.
    Returns:
        (whole [B, g, g, 3], parts [B·split², g, g, 3]) in [0, 1]; the parts of one image follow each other,
        rows first.
    Raises:
        ValueError: for other shapes, sizes that do not fit each other, or an unknown `local`.

    A black reference, which stands for none in the negative lane:

    >>> import jax.numpy as jnp
    >>> whole, parts = prepare_reference(jnp.zeros((1, 480, 640, 3)))
    >>> whole.shape, parts.shape
    ((1, 384, 384, 3), (4, 384, 384, 3))
    """
    check_choice("local", local, ("phases", "tiles"))
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Reference images are [B, H, W, 3], not {list(images.shape)}.")
    if size != split * encoder_size:
        raise ValueError(f"size={size} is not split × encoder_size = {split} × {encoder_size}.")
    square = resize_bilinear(images, (size, size))
    whole = resize_align_corners(square, (encoder_size, encoder_size))
    if local == "phases":
        parts = square.reshape(-1, encoder_size, split, encoder_size, split, 3).transpose(0, 2, 4, 1, 3, 5)
    else:
        parts = square.reshape(-1, split, encoder_size, split, encoder_size, 3).transpose(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(-1, encoder_size, encoder_size, 3)
    if quantize:
        # A flat area lies exactly at a level in torch; our resize's rounding must not push it below.
        whole, parts = (jnp.floor(x * 255 + 5e-5) / 255 for x in (whole, parts))
    return whole, parts


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images − mean) / std, per channel of [..., 3]."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def reference_features(
    siglip: VisionTransformer,
    siglip_params: Mapping[str, Any],
    dino: VisionTransformer,
    dino_params: Mapping[str, Any],
    images: jax.Array,
    settings: VisionSettings,
) -> tuple[jax.Array, ...]:
    """What the projector takes: (shallow, …, deep, local), or (deep, local) if one layer is read.

    Args:
        siglip, dino: the two encoders, each with its parameters; they must give equally many tokens.
        images: [B, H, W, 3] in [0, 1]; all zero for the negative lane.
    Returns:
        One [B, L, C] for each layer, C the channels of both encoders, and [B, L·split², C], in which the
        tokens of the same place in all parts follow each other.
    Raises:
        ValueError: if the encoders' tokens differ in number.
    """
    whole, parts = prepare_reference(
        images, size=settings.size, encoder_size=settings.encoder_size, split=settings.split,
        local=settings.local, quantize=settings.quantize)
    pictures = jnp.concatenate([whole, parts])

    def encode(encoder, params, layers, mean, std):
        size = encoder.config.img_size
        x = pictures
        if x.shape[1:3] != size:
            x = jax.image.resize(x, (x.shape[0], *size, 3), "cubic", antialias=True)
        return encoder.apply({"params": params}, normalize(x, mean, std), layers=layers)

    by_siglip = encode(siglip, siglip_params, settings.siglip_layers, SIGLIP_MEAN, SIGLIP_STD)
    by_dino = encode(dino, dino_params, settings.dino_layers, DINO_MEAN, DINO_STD)
    if by_siglip[0].shape[1] != by_dino[0].shape[1]:
        raise ValueError(f"SigLIP gives {by_siglip[0].shape[1]} tokens and DINO {by_dino[0].shape[1]}; "
                         "their grids of patches must be equal.")
    features = [jnp.concatenate(pair, axis=-1) for pair in zip(by_siglip, by_dino, strict=True)]
    batch = images.shape[0]
    local = merge_parts(features[-1][batch:], settings.split)
    return (*(x[:batch] for x in features), local)


def vision_tokens(
    siglip: VisionTransformer,
    dino: VisionTransformer,
    projector: Projector,
    settings: VisionSettings,
    params: tuple[Any, Any, Any],
    images: jax.Array,
) -> jax.Array:
    """What the UNet reads of references: the projector's tokens [B, L, D] of images [B, H, W, 3] in [0, 1].

    The networks and `settings` are hashable, so that they can be static arguments of a jitted function; `params` are
    those of (siglip, dino, projector).
    """
    siglip_params, dino_params, projector_params = params
    features = reference_features(siglip, siglip_params, dino, dino_params, images, settings)
    return projector.apply({"params": projector_params}, features)


def merge_parts(tokens: jax.Array, split: int) -> jax.Array:
    """Tokens of the parts [B·split², L, C] as tokens of the images [B, L·split², C], part varying fastest."""
    _, length, channels = tokens.shape
    tokens = tokens.reshape(-1, split * split, length, channels)
    return tokens.swapaxes(1, 2).reshape(-1, length * split * split, channels)
