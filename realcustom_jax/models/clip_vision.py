"""The CLIP image encoder (arXiv 2103.00020), with or without the projection into the joint space.

The networks of transformers' `CLIPVisionModel` and `CLIPVisionModelWithProjection`, from their JSON: a class token and
the patches, each with a learned position, go through a norm and pre-norm layers in which every token sees all.

Dimensions: B batch, N pixels of a side, L tokens = 1 + patches, D width, P width of the joint space.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.clip_layers import Encoder, check_encoder, layer_norm


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """The architecture, in transformers' names and with transformers' defaults. Sizes are in pixels, of squares."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    causal: ClassVar[bool] = False

    def __post_init__(self):
        check_encoder(self, "CLIP vision config")
        if not 0 < self.patch_size <= self.image_size:
            raise ValueError(f"CLIP vision config: patch_size={self.patch_size} does not fit into "
                             f"image_size={self.image_size}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ClipVisionConfig":
        """Reads the JSON of a `CLIPVisionConfig`, or of a `CLIPConfig`, which holds one as `vision_config`; their many
        keys that do not concern the network are ignored.

        Raises:
            ValueError: for an architecture that is not implemented here, or the JSON of CLIP's text encoder alone.
        """
        if "vocab_size" in config or "text_config" in config and "vision_config" not in config:
            raise ValueError("CLIP vision config: this describes a CLIP text encoder, not an image encoder; give the "
                             "JSON of a CLIPVisionConfig or of a whole CLIPConfig.")
        config = config.get("vision_config", config) or {}
        if config.get("num_channels", 3) != 3:
            raise ValueError(f"CLIP vision config: num_channels={config['num_channels']!r} is not supported; only 3 "
                             "is.")
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in fields and value is not None})

    @property
    def grid(self) -> int:
        """Patches along a side; pixels beyond the last whole patch are not seen."""
        return self.image_size // self.patch_size


class ClipVisionOutput(NamedTuple):
    """What the encoder makes of B images.

    Attributes:
        last: [B, L, D], the output of the last layer without a norm, class token first.
        pooled: [B, D], the class token with the final norm (`post_layernorm`).
        projected: [B, P], or None without a projection.
    """

    last: jax.Array
    pooled: jax.Array
    projected: jax.Array | None


class ClipVision(nn.Module):
    """Image encoder; `with_projection` says whether the weights have `visual_projection`."""

    config: ClipVisionConfig
    with_projection: bool = False
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array) -> ClipVisionOutput:
        """Encodes images.

        Args:
            images: [B, N, N, 3], normalised, N = `image_size`.
        Returns:
            `projected` is None unless `with_projection`.
        Raises:
            ValueError: if the images are of another size.
        """
        config, side = self.config, self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(f"The CLIP image encoder takes images [B, {side}, {side}, 3], not {list(images.shape)}.")
        last, pooled = VisionTower(config, self.dtype, self.platform, name="vision_model")(images)
        projected = None
        if self.with_projection:
            projected = nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype,
                                 name="visual_projection")(pooled)
        return ClipVisionOutput(last, pooled, projected)


class VisionTower(nn.Module):
    """Embeddings, encoder, final norm of the class token. [B, N, N, 3] → (last [B, L, D], pooled [B, D])."""

    config: ClipVisionConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, images):
        config = self.config
        x = VisionEmbeddings(config, self.dtype, name="embeddings")(images)
        # The published files have the norm's name misspelt so.
        x = layer_norm(config, self.dtype, "pre_layrnorm")(x)
        last, _ = Encoder(config, self.dtype, self.platform, name="encoder")(x)
        return last, layer_norm(config, self.dtype, "post_layernorm")(last[:, 0])


class VisionEmbeddings(nn.Module):
    """Class token and patches, rows first, plus their positions. [B, N, N, 3] → [B, L, D]."""

    config: ClipVisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        config, width = self.config, self.config.hidden_size
        patch = (config.patch_size, config.patch_size)
        x = nn.Conv(width, patch, strides=patch, padding="VALID", use_bias=False, dtype=self.dtype,
                    name="patch_embedding")(images)
        token = self.param("class_embedding", nn.initializers.normal(0.02), (width,)).astype(self.dtype)
        token = jnp.broadcast_to(token, (x.shape[0], 1, width))
        x = jnp.concatenate([token, x.reshape(x.shape[0], -1, width)], axis=1)
        positions = nn.Embed(1 + config.grid ** 2, width, dtype=self.dtype,
                             embedding_init=nn.initializers.normal(0.02), name="position_embedding")
        return x + positions(jnp.arange(x.shape[1]))
