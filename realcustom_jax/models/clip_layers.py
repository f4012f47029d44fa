"""The transformer that both towers of CLIP share (arXiv 2103.00020): pre-norm layers in transformers' names.

Dimensions: B batch, T tokens, D width.
"""

import functools
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from realcustom_jax.devices.platform import Platform
from realcustom_jax.errors import check_choice
from realcustom_jax.models.activations import ACTIVATIONS


class EncoderConfig(Protocol):
    """What the layers ask of a tower's configuration, in transformers' names."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def causal(self) -> bool:
        """Whether a token sees itself and those before it alone, as in text."""
        ...


def check_encoder(config: EncoderConfig, what: str) -> None:
    """Raises ValueError, which begins with `what`, for an architecture that the layers cannot have."""
    check_choice("hidden_act", config.hidden_act, ACTIVATIONS)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(f"{what}: hidden_size={config.hidden_size} is not a multiple of "
                         f"num_attention_heads={config.num_attention_heads}.")


def layer_norm(config: EncoderConfig, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """A norm of a tower."""
    return nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, dtype=dtype, name=name)


class Encoder(nn.Module):
    """The stack of layers. [B, T, D] → (output, input of the last layer)."""

    config: EncoderConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, x):
        penultimate = x
        for i in range(self.config.num_hidden_layers):
            penultimate = x
            x = EncoderLayer(self.config, self.dtype, self.platform, name=f"layers_{i}")(x)
        return x, penultimate


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer. [B, T, D] → [B, T, D]."""

    config: EncoderConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, x):
        config = self.config
        norm = functools.partial(layer_norm, config, self.dtype)
        x = x + SelfAttention(config, self.dtype, self.platform, name="self_attn")(norm("layer_norm1")(x))
        return x + Mlp(config, self.dtype, name="mlp")(norm("layer_norm2")(x))


class SelfAttention(nn.Module):
    """Multi-head attention of each token to all, or to itself and those before. [B, T, D] → [B, T, D]."""

    config: EncoderConfig
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, x):
        project = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        query, key, value = (project(name=name)(x).reshape(*x.shape[:2], self.config.num_attention_heads, -1)
                             for name in ("q_proj", "k_proj", "v_proj"))
        out = jax.nn.dot_product_attention(query, key, value, is_causal=self.config.causal,
                                           implementation=self.platform.encoder_attention)
        return project(name="out_proj")(out.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers. [B, T, D] → [B, T, D]."""

    config: EncoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.config.hidden_act](hidden))
