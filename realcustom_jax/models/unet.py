"""The denoising UNet of SD-1.5, SDXL and the miniature, with text and vision cross-attention.

One module for all: the architecture is the original JSON file of diffusers' `UNet2DConditionModel` (plus the released
RealCustom `image_prompt_settings`). Module names are diffusers', so that weights map mechanically (see `weights`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.attention import SpatialTransformer
from realcustom_jax.models.norm import GroupNorm
from realcustom_jax.models.resnet import Downsample, ResnetBlock, Upsample

# Options of the original class that change the network; only these values are implemented.
_FIXED = {
    "act_fn": "silu", "center_input_sample": False, "class_embed_type": None, "class_embeddings_concat": False,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "downsample_padding": 1,
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_class_embeds": None, "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "attention_type": "default",
}
# The original class's own values of what has no default below.
_DEFAULTS = {
    "block_out_channels": (320, 640, 1280, 1280), "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The architecture. Per-level tuples run from the highest resolution to the lowest."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    transformer_layers: tuple[int, ...] = (1, 1, 1, 1)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 1280
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed: bool = False
    addition_time_embed_dim: int = 256
    pooled_dim: int | None = None
    vision: bool = False

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "UNetConfig":
        """Reads the original JSON; what it leaves out is as `UNet2DConditionModel` has it.

        Raises:
            ValueError: an option would need another network, or one that has no default is missing.
        """
        mapping = {**_DEFAULTS, **mapping}
        for key, only in _FIXED.items():
            given = mapping.get(key, only)
            # What is off for every level may be written so; None and False both mean off.
            off = not only and (given in (None, False) or isinstance(given, (list, tuple)) and not any(given))
            if given != only and not off:
                raise ValueError(f"UNet config: {key}={given!r} is not supported; only {only!r} is.")
        channels = tuple(mapping["block_out_channels"])

        def per_level(value, key="block types"):
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,) * len(channels)
            if len(value) != len(channels):
                raise ValueError(f"UNet config: {key} {value} has not one value for each of the {len(channels)} "
                                 "levels.")
            return value

        def one_of_each(key, default):
            """One value for each level, where the levels' values may be lists of equal ones, for its transformers."""
            values = per_level(mapping.get(key, default), key)
            if mixed := [x for x in values if isinstance(x, (list, tuple)) and len(set(map(str, x))) != 1]:
                raise ValueError(f"UNet config: {key} holds {mixed[0]!r} for one level; only equal values within a "
                                 "level are supported.")
            return tuple(x[0] if isinstance(x, (list, tuple)) else x for x in values)

        transformers = one_of_each("transformer_layers_per_block", 1)
        if mapping.get("reverse_transformer_layers_per_block") is not None:
            upwards = one_of_each("reverse_transformer_layers_per_block", None)
            if upwards != transformers[::-1]:
                raise ValueError(f"UNet config: reverse_transformer_layers_per_block={upwards} is not supported; only "
                                 f"transformer_layers_per_block reversed, {transformers[::-1]}, is.")
        layers = per_level(mapping.get("layers_per_block", 2), "layers_per_block")
        text = set(per_level(mapping.get("cross_attention_dim", 1280), "cross_attention_dim"))
        if len(text) > 1:
            raise ValueError(f"UNet config: cross_attention_dim={mapping['cross_attention_dim']!r} is not supported; "
                             "only text of one width for all levels is.")

        for key, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            if unknown := [name for name in per_level(mapping[key]) if name not in known]:
                raise ValueError(f"UNet config: {key} holds {unknown[0]!r}; supported: {', '.join(known)}.")
        cross_attention = tuple(_DOWN[name] for name in mapping["down_block_types"])
        if cross_attention != tuple(_UP[name] for name in reversed(mapping["up_block_types"])):
            raise ValueError("UNet config: down_block_types and up_block_types put attention on different levels.")
        kind = mapping.get("addition_embed_type")
        if kind not in (None, "text_time"):
            raise ValueError(f"UNet config: addition_embed_type={kind!r} is not supported; None and 'text_time' are.")
        time_dim = mapping.get("addition_time_embed_dim") or 256
        added = mapping.get("projection_class_embeddings_input_dim")
        if kind and not added:
            raise ValueError("UNet config: projection_class_embeddings_input_dim is missing, which "
                             "addition_embed_type='text_time' needs; take it from the model's own config.json.")
        pooled_dim = added - 6 * time_dim if kind else None
        # The original class calls the number of heads attention_head_dim, unless num_attention_heads is given.
        heads = mapping.get("num_attention_heads") or mapping.get("attention_head_dim", 8)
        settings = mapping.get("image_prompt_settings") or {}
        return cls(
            in_channels=mapping.get("in_channels", 4), out_channels=mapping.get("out_channels", 4),
            block_out_channels=channels, layers_per_block=layers[0] if len(set(layers)) == 1 else layers,
            cross_attention=cross_attention, heads=per_level(heads, "the number of heads"),
            transformer_layers=transformers, cross_attention_dim=text.pop(),
            norm_num_groups=mapping.get("norm_num_groups", 32), norm_eps=mapping.get("norm_eps", 1e-5),
            use_linear_projection=bool(mapping.get("use_linear_projection", False)),
            flip_sin_to_cos=mapping.get("flip_sin_to_cos", True), freq_shift=mapping.get("freq_shift", 0),
            addition_embed=kind is not None, addition_time_embed_dim=time_dim, pooled_dim=pooled_dim,
            vision=settings.get("vision_projection_type", "none") != "none",
        )

    def layers(self, level: int) -> int:
        """The number of residual blocks of a level on its way down; on its way up it has one more."""
        return self.layers_per_block[level] if isinstance(self.layers_per_block, tuple) else self.layers_per_block


@flax.struct.dataclass
class UNetOutput:
    """What one evaluation gives; with `guidance_lanes`, maps and self maps are of these lanes alone.

    Attributes:
        noise: [B, H, W, C], or the velocity, as the model predicts.
        maps: tuple of [B, R, h_l, w_l] float32, one for each cross-attention layer in forward order; empty without a
            target.
        self_maps: tuple of [B, 1, n, n] float32; empty unless asked for.
    """

    noise: jax.Array
    maps: tuple[jax.Array, ...]
    self_maps: tuple[jax.Array, ...]


def sinusoidal_embedding(t: jax.Array, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> jax.Array:
    """Sinusoids of t [...] → [..., dim] float32, wavelengths 2π to 10000·2π (diffusers `get_timestep_embedding`)."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = t.astype(jnp.float32)[..., None] * frequencies
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


def time_features(config: UNetConfig, timestep: ArrayLike, pooled: jax.Array | None,
                  time_ids: jax.Array | None) -> dict[str, jax.Array]:
    """The inputs [B, F] of the embeddings that are added to the time embedding, by the embeddings' names."""
    sinusoids = functools.partial(
        sinusoidal_embedding, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
    features = {"time_embedding": sinusoids(jnp.asarray(timestep), config.block_out_channels[0])}
    if config.addition_embed:
        sizes = sinusoids(time_ids, config.addition_time_embed_dim).reshape(len(time_ids), -1)
        features["add_embedding"] = jnp.concatenate([pooled.astype(sizes.dtype), sizes], axis=-1)
    return features


class Embedding(nn.Module):
    """Two-layer SiLU MLP (diffusers `TimestepEmbedding`). [B, F] → [B, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden = nn.silu(nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x.astype(self.dtype)))
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(hidden)


class Stage(nn.Module):
    """One level, down, middle or up: residual blocks, the first `transformers` of them followed by attention.

    Covers diffusers' `(CrossAttn)DownBlock2D`, `UNetMidBlock2DCrossAttn` and `(CrossAttn)UpBlock2D`. In an up stage
    `skips` holds one feature map for each residual block, last first. `attention_inputs` are SpatialTransformer's.
    Returns (x, the feature map after every block and the downsampler, target maps, self-attention maps).
    """

    config: UNetConfig
    level: int
    resnets: int
    transformers: int
    resample: str | None
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x, time_embedding, attention_inputs, skips=(), size=None):
        c = self.config
        states, maps, self_maps = [], (), ()
        for j in range(self.resnets):
            if skips:
                x = jnp.concatenate([x, skips[-1 - j]], axis=-1)
            x = ResnetBlock(c.block_out_channels[self.level], c.norm_num_groups, c.norm_eps, self.dtype,
                            self.platform, name=f"resnets_{j}")(x, time_embedding)
            if j < self.transformers:
                x, new_maps, new_self_maps = SpatialTransformer(
                    c.heads[self.level], c.transformer_layers[self.level], c.norm_num_groups, c.use_linear_projection,
                    c.vision, self.dtype, self.platform, name=f"attentions_{j}")(x, *attention_inputs)
                maps, self_maps = maps + new_maps, self_maps + new_self_maps
            states.append(x)
        if self.resample == "down":
            x = Downsample(1, self.dtype, name="downsamplers_0")(x)
            states.append(x)
        elif self.resample == "up":
            x = Upsample(self.dtype, name="upsamplers_0")(x, size)
        return x, states, maps, self_maps


class UNet(nn.Module):
    """Predicts the noise (or velocity) in latents; see `__call__`. `weights.load_unet` makes one with parameters."""

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, sample: jax.Array, timestep: ArrayLike | None, text: jax.Array, *, pooled: jax.Array | None = None,
        time_ids: jax.Array | None = None, vision: jax.Array | None = None, mask: jax.Array | None = None,
        target: jax.Array | None = None, self_maps_at: tuple[int, int] | None = None,
        guidance_lanes: int | None = None,
    ) -> UNetOutput:
        """One denoising evaluation.

        Args:
            sample: noisy latents [B, H, W, C].
            timestep: scalar or [B], in training steps (0 … 999); None only where the variable collection "context"
                holds the shifts that it would add.
            text: text tokens [B, T, D]. pooled: pooled text [B, P] and time_ids [B, 6] (SDXL's kind of UNet only).
            vision: projected vision tokens [B, R, L, D]; None leaves the visual term out.
            mask: [B, R, h, w] weight of each reference's visual term, of any size; None = 1 everywhere.
            target: [B, R, T] 0/1, the tokens of each reference's phrase; None = no maps.
            self_maps_at: (h, w) of the self-attention layers whose weights are returned.
            guidance_lanes: None, or G where the batch are lanes of the sampler and the first G of them guide: these
                alone have maps, and the other B − G alone a visual term. Then target is [G, R, T], vision
                [B−G, R, L, D], mask [B−G, R, h, w], and the maps that are returned are [G, R, h_l, w_l].
        Raises:
            ValueError: inputs that the configuration wants are missing, or shapes disagree.
        """
        c = self.config
        self._check(sample, timestep, text, pooled, time_ids, vision, mask, target, self_maps_at, guidance_lanes)
        width, embedding = c.block_out_channels[0], None
        if timestep is None:
            self._check_shifts()
        else:
            timestep = jnp.broadcast_to(jnp.asarray(timestep), sample.shape[:1])
            embedding = sum(
                Embedding(4 * width, self.dtype, name=name)(x)
                for name, x in time_features(c, timestep, pooled, time_ids).items())
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        attention_inputs = (cast(text), None if vision is None else cast(vision), mask, target, self_maps_at)
        stage = functools.partial(Stage, c, dtype=self.dtype, platform=self.platform)
        levels = range(len(c.block_out_channels))
        x = nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name="conv_in")(cast(sample))
        skips, maps, self_maps = [x], (), ()
        for level in levels:
            x, states, *new = stage(
                level, c.layers(level), c.layers(level) * c.cross_attention[level],
                "down" if level + 1 < len(levels) else None, name=f"down_blocks_{level}",
            )(x, embedding, attention_inputs)
            skips, maps, self_maps = skips + states, maps + new[0], self_maps + new[1]
        x, _, *new = stage(levels[-1], 2, 1, None, name="mid_block")(x, embedding, attention_inputs)
        maps, self_maps = maps + new[0], self_maps + new[1]
        for i, level in enumerate(reversed(levels)):
            resnets = c.layers(level) + 1
            skips, used = skips[:-resnets], tuple(skips[-resnets:])
            x, _, *new = stage(
                level, resnets, resnets * c.cross_attention[level], "up" if level > 0 else None, name=f"up_blocks_{i}",
            )(x, embedding, attention_inputs, used, skips[-1].shape[1:3] if level > 0 else None)
            maps, self_maps = maps + new[0], self_maps + new[1]

        x = GroupNorm(c.norm_num_groups, c.norm_eps, self.dtype, self.platform, name="conv_norm_out")(x)
        noise = nn.Conv(c.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(nn.silu(x))
        return UNetOutput(noise, maps, self_maps)

    def _check_shifts(self):
        """Raises ValueError unless the context holds what a timestep adds, for every residual block: a block without
        it would run as if there were no timestep."""
        held = flatten_dict(self.variables.get("context", {}))
        needed = {path[:-2] for path in flatten_dict(self.variables.get("params", {})) if path[-2] == "time_emb_proj"}
        missing = sorted("/".join(path) for path in needed if (*path, "shift") not in held)
        if missing or not needed:
            blocks = f"{len(missing)} residual blocks, the first of which is {missing[0]}" if missing else "its blocks"
            raise ValueError(f"timestep is None, and the context lacks the shifts of {blocks}; give a timestep, or the "
                             "variable collection 'context' with what context.project_time makes.")

    def _check(self, sample, timestep, text, pooled, time_ids, vision, mask, target, self_maps_at,
               guidance_lanes):
        c, batch = self.config, sample.shape[0]
        if guidance_lanes is not None and not 0 <= guidance_lanes <= batch:
            raise ValueError(f"guidance_lanes is {guidance_lanes}; expected 0 to {batch}, the batch of sample.")
        if guidance_lanes is not None and self_maps_at is not None and target is None:
            raise ValueError("self_maps_at is given for guidance lanes without a target; give the target of their "
                             "maps.")
        guided = batch if guidance_lanes is None else guidance_lanes
        visual = batch if guidance_lanes is None else batch - guidance_lanes
        if sample.ndim != 4 or sample.shape[-1] != c.in_channels:
            raise ValueError(f"sample has shape {sample.shape}; this UNet expects [B,H,W,{c.in_channels}].")
        if text.ndim != 3 or text.shape[0] != batch or text.shape[-1] != c.cross_attention_dim:
            raise ValueError(f"text has shape {text.shape}; expected [{batch},T,{c.cross_attention_dim}].")
        if c.addition_embed and timestep is not None:
            for name, value, dim in (("pooled", pooled, c.pooled_dim), ("time_ids", time_ids, 6)):
                if value is None or value.shape != (batch, dim):
                    given = "missing" if value is None else f"of shape {value.shape}"
                    raise ValueError(f"{name} is {given}; this UNet needs {name} of shape [{batch},{dim}].")
        if vision is not None:
            if not c.vision:
                raise ValueError("vision tokens were given to a UNet without visual attention (its config has no "
                                 "image_prompt_settings).")
            if vision.ndim != 4 or vision.shape[0] != visual or vision.shape[-1] != c.cross_attention_dim:
                raise ValueError(f"vision has shape {vision.shape}; expected [{visual},R,L,{c.cross_attention_dim}].")
            if mask is not None and (mask.ndim != 4 or mask.shape[:2] != vision.shape[:2]):
                raise ValueError(f"mask has shape {mask.shape}; expected [{visual},{vision.shape[1]},h,w].")
        if target is not None and (target.ndim != 3 or target.shape[::2] != (guided, text.shape[1])):
            raise ValueError(f"target has shape {target.shape}; expected [{guided},R,{text.shape[1]}].")
