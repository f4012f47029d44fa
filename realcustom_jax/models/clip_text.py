"""The CLIP text encoder (arXiv 2103.00020), with or without the projection into the joint space.

The networks of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`, from their JSON: a pre-norm
transformer with causal attention, so that a token sees itself and those before it.

Dimensions: B batch, T tokens, D width, P width of the joint space.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.clip_layers import Encoder, check_encoder, layer_norm

# Old conversions of CLIP carry this wrong id; their true end of text is the largest id.
_LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """The architecture, in transformers' names and with transformers' defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    causal: ClassVar[bool] = True

    def __post_init__(self):
        check_encoder(self, "CLIP text config")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ClipTextConfig":
        """Reads the JSON of a `CLIPTextConfig`, or of a `CLIPConfig`, which holds one as `text_config`; their many keys
        that do not concern the network are ignored."""
        config = config.get("text_config") or config
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in fields and value is not None})


class TextOutput(NamedTuple):
    """What the encoder makes of B prompts.

    Attributes:
        last: [B, T, D], with the final norm.
        penultimate: [B, T, D], what enters the last layer, without the norm.
        pooled: [B, D], `last` at the first end of text.
        projected: [B, P], or None without a projection.
    """

    last: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    projected: jax.Array | None


class ClipText(nn.Module):
    """Text encoder; `with_projection` says whether the weights have `text_projection`."""

    config: ClipTextConfig
    with_projection: bool = False
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> TextOutput:
        """Encodes prompts.

        Args:
            input_ids: int [B, T], T at most `max_position_embeddings`, each row with its end-of-text token.
        Returns:
            `penultimate` is the input of the last layer (the embeddings if there is only one); `pooled` is
            `last` at the first end of text; `projected` is None unless `with_projection`.
        Raises:
            ValueError: if the prompts are too long.
        """
        config = self.config
        if input_ids.ndim != 2 or input_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(f"The text encoder takes input_ids [B, T] with T up to "
                             f"{config.max_position_embeddings}, not {list(input_ids.shape)}.")
        last, penultimate = TextTransformer(config, self.dtype, self.platform, name="text_model")(input_ids)
        legacy = config.eos_token_id == _LEGACY_EOS
        end = jnp.argmax(input_ids if legacy else input_ids == config.eos_token_id, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        projected = None
        if self.with_projection:
            projected = nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype,
                                 name="text_projection")(pooled)
        return TextOutput(last, penultimate, pooled, projected)


class TextTransformer(nn.Module):
    """Embeddings, encoder, final norm. int [B, T] → (last, penultimate) [B, T, D]."""

    config: ClipTextConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, input_ids):
        x = Embeddings(self.config, self.dtype, name="embeddings")(input_ids)
        x, penultimate = Encoder(self.config, self.dtype, self.platform, name="encoder")(x)
        return layer_norm(self.config, self.dtype, "final_layer_norm")(x), penultimate


class Embeddings(nn.Module):
    """Token plus position embeddings. int [B, T] → [B, T, D]."""

    config: ClipTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_ids):
        embed = functools.partial(nn.Embed, features=self.config.hidden_size, dtype=self.dtype,
                                  embedding_init=nn.initializers.normal(0.02))
        tokens = embed(self.config.vocab_size, name="token_embedding")(input_ids)
        positions = embed(self.config.max_position_embeddings, name="position_embedding")
        return tokens + positions(jnp.arange(input_ids.shape[1]))
