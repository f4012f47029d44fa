"""The image autoencoder of latent diffusion (diffusers `AutoencoderKL`)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.norm import GroupNorm
from realcustom_jax.models.resnet import Downsample, ResnetBlock, Upsample


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The architecture, from a diffusers `AutoencoderKL` JSON file."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "VAEConfig":
        """Reads the original JSON; raises ValueError for block types or activations that are not AutoencoderKL's."""
        for key, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if unknown := set(mapping.get(key, [only])) - {only}:
                raise ValueError(f"autoencoder config: {key} holds {sorted(unknown)}; only {only} is supported.")
        if mapping.get("act_fn", "silu") != "silu":
            raise ValueError(f"autoencoder config: act_fn is {mapping['act_fn']!r}; only 'silu' is supported.")
        if shifted := [key for key in ("shift_factor", "latents_mean", "latents_std") if mapping.get(key) is not None]:
            raise ValueError(f"autoencoder config: {shifted[0]} is {mapping[shifted[0]]!r}; only latents that are "
                             "scaled, by scaling_factor, are supported.")
        names = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in mapping.items() if k in names and v is not None}
        if "block_out_channels" in values:
            values["block_out_channels"] = tuple(values["block_out_channels"])
        return cls(**values)


@flax.struct.dataclass
class LatentDistribution:
    """Diagonal normal distribution of the latents: mean and logvar [B, h, w, latent_channels]."""

    mean: jax.Array
    logvar: jax.Array


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels (diffusers `Attention` of the VAE's middle). [B, H, W, C] → same."""

    groups: int
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x):
        batch, h, w, channels = x.shape
        dense = functools.partial(nn.Dense, channels, dtype=self.dtype)
        hidden = GroupNorm(self.groups, 1e-6, self.dtype, self.platform, name="group_norm")(x)
        hidden = hidden.reshape(batch, h * w, channels)
        query, key, value = (dense(name=n)(hidden)[:, :, None] for n in ("to_q", "to_k", "to_v"))
        out = jax.nn.dot_product_attention(query, key, value, implementation=self.platform.encoder_attention)[:, :, 0]
        return x + dense(name="to_out_0")(out).reshape(x.shape)


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution (diffusers `UNetMidBlock2D`)."""

    groups: int
    attention: bool
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x):
        block = functools.partial(ResnetBlock, x.shape[-1], self.groups, 1e-6, self.dtype, self.platform)
        x = block(name="resnets_0")(x)
        if self.attention:
            x = PixelAttention(self.groups, self.dtype, self.platform, name="attentions_0")(x)
        return block(name="resnets_1")(x)


class ResnetStack(nn.Module):
    """Resnets at one resolution, then the resampler (diffusers `DownEncoderBlock2D`, `UpDecoderBlock2D`)."""

    channels: int
    layers: int
    groups: int
    resample: str | None
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x):
        for j in range(self.layers):
            x = ResnetBlock(self.channels, self.groups, 1e-6, self.dtype, self.platform, name=f"resnets_{j}")(x)
        if self.resample == "down":
            x = Downsample(((0, 1), (0, 1)), self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.dtype, name="upsamplers_0")(x)
        return x


class ImageEncoder(nn.Module):
    """images [B, H, W, 3] → moments [B, h, w, 2·latent_channels]."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x):
        c = self.config
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        x = conv(c.block_out_channels[0], name="conv_in")(x)
        for i, channels in enumerate(c.block_out_channels):
            resample = "down" if i + 1 < len(c.block_out_channels) else None
            x = ResnetStack(channels, c.layers_per_block, c.norm_num_groups, resample, self.dtype, self.platform,
                      name=f"down_blocks_{i}")(x)
        x = MidBlock(c.norm_num_groups, c.mid_block_add_attention, self.dtype, self.platform, name="mid_block")(x)
        x = GroupNorm(c.norm_num_groups, 1e-6, self.dtype, self.platform, name="conv_norm_out")(x)
        return conv(2 * c.latent_channels, name="conv_out")(nn.silu(x))


class ImageDecoder(nn.Module):
    """latents [B, h, w, latent_channels] → images [B, H, W, 3]."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform = Platform()

    @nn.compact
    def __call__(self, x):
        c = self.config
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        x = conv(c.block_out_channels[-1], name="conv_in")(x)
        x = MidBlock(c.norm_num_groups, c.mid_block_add_attention, self.dtype, self.platform, name="mid_block")(x)
        for i, channels in enumerate(reversed(c.block_out_channels)):
            resample = "up" if i + 1 < len(c.block_out_channels) else None
            x = ResnetStack(channels, c.layers_per_block + 1, c.norm_num_groups, resample, self.dtype, self.platform,
                      name=f"up_blocks_{i}")(x)
        x = GroupNorm(c.norm_num_groups, 1e-6, self.dtype, self.platform, name="conv_norm_out")(x)
        return conv(c.out_channels, name="conv_out")(nn.silu(x))


class Autoencoder(nn.Module):
    """Images in [-1, 1] ↔ latents. No scaling factor inside: the diffusion model's latents are
    `mean · config.scaling_factor`."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    def setup(self):
        c = self.config
        self.encoder = ImageEncoder(c, self.dtype, self.platform)
        self.decoder = ImageDecoder(c, self.dtype, self.platform)
        if c.use_quant_conv:
            self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1), dtype=self.dtype)
        if c.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: jax.Array) -> LatentDistribution:
        """images [B, H, W, 3] in [-1, 1], H and W multiples of the downsampling factor."""
        moments = self.encoder(images)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return LatentDistribution(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: jax.Array) -> jax.Array:
        """latents [B, h, w, latent_channels] (unscaled) → images [B, H, W, 3], about [-1, 1], not clipped."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruction through the mean; used to create all parameters."""
        return self.decode(self.encode(images).mean)
