"""Attention of the diffusion UNet: self, text and vision, and the target word's map.

A text cross-attention layer computes (RealCustom++, arXiv 2408.09744, section 3; released class
`AttnProcessor2_0_image_prompt`)

    out = softmax(Q K_textᵀ/√d) V_text + Σ_r M_r ⊙ softmax(Q K_vis,rᵀ/√d) V_vis,r

over R references, followed by the shared output layer. The same text weights, averaged over heads and summed
over a phrase's tokens, are that phrase's map. Module names are those of diffusers' `BasicTransformerBlock`.

Dimensions: B batch, R references, N pixels of the layer (h·w), T text tokens, L vision tokens, C channels. Where the
batch are the sampler's lanes, the first G of them have maps and the last V a visual term. So the lanes share one call,
and each computes only what it needs: guidance no visual term, the others no maps.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.attention_kernels import attend, attention_weights, target_maps
from realcustom_jax.models.conv import Conv
from realcustom_jax.models.norm import GroupNorm
from realcustom_jax.models.resize import resize_bilinear
from realcustom_jax.models.resnet import REMEMBERED

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., L, heads·d] → [..., L, heads, d]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class SelfAttention(nn.Module):
    """Multi-head self-attention. x [B, N, C] → ([B, N, C], the weights' mean over heads [mapped, 1, N, N] or None, of
    the first `mapped` lanes)."""

    heads: int
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x: jax.Array, *, mapped: int) -> tuple[jax.Array, jax.Array | None]:
        project = functools.partial(nn.Dense, x.shape[-1], use_bias=False, dtype=self.dtype)
        query, key, value = (split_heads(project(name=n)(x), self.heads) for n in ("to_q", "to_k", "to_v"))
        out = attend(query, key, value, self.platform)
        weights = attention_weights(query[:mapped], key[:mapped]).mean(axis=1, keepdims=True) if mapped else None
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(out.reshape(x.shape)), weights


class CrossAttention(nn.Module):
    """Text cross-attention with a masked visual term per reference.

    x [B, N, C], text [B, T, D], vision [V, R, L, D] or None, mask [V, R, N] or None (1 everywhere), target [G, R, T] or
    None → (out [B, N, C], target maps [G, R, N] float32 or None).

    Keys and values do not depend on the timestep. Where the variable collection "context" holds them (module
    `context`), they are read from it and `text` and `vision` are not projected again.
    """

    heads: int
    vision: bool
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, vision: jax.Array | None, mask: jax.Array | None,
        target: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        def project(name, tokens, **kwargs):
            if self.has_variable("context", name):
                known = self.get_variable("context", name)
                if not self.platform.tokens_last:
                    return split_heads(known, self.heads)
                return jnp.moveaxis(known.reshape(*known.shape[:-2], self.heads, -1, known.shape[-1]), -1, -3)
            dense = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name, **kwargs)
            return split_heads(dense(tokens), self.heads)

        query = split_heads(nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="to_q")(x), self.heads)
        key, value = project("to_k", text), project("to_v", text)
        out, maps = attend(query, key, value, self.platform), None
        if target is not None:
            maps = target_maps(query, key, target, self.platform)
            # Without a barrier XLA makes all layers' maps at the end of the network and holds their queries until then.
            out, maps = jax.lax.optimization_barrier((out, maps))

        if self.vision and vision is not None:
            key = project("to_k_vision", vision)
            # Values begin at zero, so that a fresh adapter starts as the text-only model.
            value = project("to_v_vision", vision, kernel_init=nn.initializers.zeros)
            plain, references = len(x) - len(vision), vision.shape[1]
            # References lie along the batch, because cuDNN's kernel cannot be vmapped over another axis.
            each = jnp.repeat(query[plain:], references, axis=0)
            key, value = (tokens.reshape(-1, *tokens.shape[2:]) for tokens in (key, value))
            visual = attend(each, key, value, self.platform)
            visual = visual.reshape(-1, references, *visual.shape[1:])
            if mask is not None:
                visual = visual * mask[..., None, None].astype(visual.dtype)
            # Term by term, as jaxlib 0.10.2 crashes on the CPU in a reduction of these products under two vmaps.
            out = out.at[plain:].add(sum(visual[:, i] for i in range(references)))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(out.reshape(x.shape)), maps


class FeedForward(nn.Module):
    """Gated GELU feed-forward layer of width 4C (diffusers `FeedForward` with `GEGLU`). [B, N, C] → [B, N, C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden, gate = jnp.split(nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="net_0_proj")(x), 2, axis=-1)
        # The GELU is written with erf, because erfc, as Flax has it, takes twice the operations for digits that do not
        # count.
        gate = gate.astype(jnp.float32)
        hidden = hidden * (0.5 * gate * (1 + jax.lax.erf(gate * 0.5**0.5))).astype(self.dtype)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward (diffusers `BasicTransformerBlock`).

    Shaped for `nn.scan`: the carry is x [B, N, C], the output is (target maps, self-attention map).
    """

    heads: int
    vision: bool
    return_self_map: bool
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, vision: jax.Array | None, mask: jax.Array | None,
        target: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        x = checkpoint_name(x, REMEMBERED)
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        mapped = len(x if target is None else target) if self.return_self_map else 0
        attended, self_map = SelfAttention(self.heads, self.dtype, self.platform, name="attn1")(
            norm(name="norm1")(x), mapped=mapped)
        x = x + attended
        attended, maps = CrossAttention(self.heads, self.vision, self.dtype, self.platform, name="attn2")(
            norm(name="norm2")(x), text, vision, mask, target)
        x = x + attended
        x = x + FeedForward(self.dtype, name="ff")(norm(name="norm3")(x))
        return x, (maps, self_map)


class SpatialTransformer(nn.Module):
    """Transformer layers over the pixels of a feature map (diffusers `Transformer2DModel`).

    x [B, h, w, C], mask [V, R, *, *] of any size (resized bilinearly to h, w) → (x, target maps: tuple of [G, R, h, w],
    self-attention maps: tuple of [G, 1, h·w, h·w]), one map a layer. Equal layers are scanned, so that a
    deep stack compiles as one layer does; their parameters carry a leading layer axis. Parameters that were taken
    apart (`context.layers_apart`) are not.
    """

    heads: int
    layers: int
    groups: int
    linear_projection: bool
    vision: bool
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, vision: jax.Array | None, mask: jax.Array | None,
        target: jax.Array | None, self_maps_at: tuple[int, int] | None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        batch, h, w, channels = x.shape
        if self.linear_projection:
            project = functools.partial(nn.Dense, channels, dtype=self.dtype)
        else:
            project = functools.partial(Conv, channels, (1, 1), dtype=self.dtype)
        if mask is not None:
            mask = resize_bilinear(mask.transpose(0, 2, 3, 1), (h, w)).transpose(0, 3, 1, 2)
            mask = mask.reshape(*mask.shape[:2], h * w)

        hidden = GroupNorm(self.groups, 1e-6, self.dtype, self.platform, name="norm")(x)
        hidden = project(name="proj_in")(hidden).reshape(batch, h * w, channels)
        settings = self.heads, self.vision, self_maps_at == (h, w), self.dtype, self.platform
        if self.has_variable("params", "transformer_blocks_0"):  # `context.layers_apart`
            made = []
            for i in range(self.layers):
                block = TransformerBlock(*settings, name=f"transformer_blocks_{i}")
                hidden, of_layer = block(hidden, text, vision, mask, target)
                made.append(of_layer)
            maps, self_maps = jax.tree.map(lambda *x: jnp.stack(x), *made)
        else:
            blocks = nn.scan(
                TransformerBlock, length=self.layers, variable_axes={"params": 0, "context": 0},
                split_rngs={"params": True}, in_axes=nn.broadcast)(*settings, name="transformer_blocks")
            hidden, (maps, self_maps) = blocks(hidden, text, vision, mask, target)
        hidden = project(name="proj_out")(hidden.reshape(batch, h, w, channels))
        maps = () if maps is None else tuple(maps.reshape(*maps.shape[:3], h, w))
        self_maps = () if self_maps is None else tuple(self_maps)
        return x + hidden, maps, self_maps
