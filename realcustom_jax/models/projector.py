"""CCP, the cross-layer cross-scale projector of RealCustom++ (arXiv 2408.09744).

It turns features of the frozen image encoders into the tokens of the visual cross-attention. Three streams:

    deep        Linear(deep)
    detail      MLP(Attention(Q = deep, KV = local))       cross-scale: the reference at twice the size
    structure   MLP(Attention(Q = deep, KV = shallow))     cross-layer: earlier blocks of the encoders

and three variants of putting them together (‖ concatenates on tokens):

    highres     deep + detail                  released `ProjectorHighResMinAttn`
    shallow     deep ‖ structure               released `ProjectorHighResShallowMinAttnV1`
    paper       (deep + detail) ‖ structure    the paper's text; this project's default for new training

Dimensions: B batch, L tokens, C channels of the features, D channels of the result.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realcustom_jax.devices.platform import Platform
from realcustom_jax.errors import check_choice

VARIANTS = ("highres", "shallow", "paper")
_RELEASED = {
    "models.projectors.ProjectorHighResMinAttn": "highres",
    "models.projectors.ProjectorHighResShallowMinAttnV1": "shallow",
}


def _with_structure(variant: str) -> bool:
    return variant != "highres"


def check_layers(variant: str, count: int) -> None:
    """Raises ValueError, which says what to change, if a projector of this variant does not read `count` layers of each
    encoder: the deep one and, for the structure stream, shallow ones before it."""
    if not _with_structure(variant) and count != 1:
        raise ValueError(f"The {variant!r} projector reads one layer of each encoder, not {count}; leave the deepest "
                         "one in siglip_layers and dino_layers, or take the variant 'paper'.")
    if _with_structure(variant) and count < 2:
        raise ValueError(f"The {variant!r} projector reads shallow layers before the deep one, not one layer alone; "
                         "add some to siglip_layers and dino_layers, or take the variant 'highres'.")


LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """The architecture.

    Attributes:
        variant: highres | shallow | paper.
        vision_dim: C, the encoders' channels together.
        out_dim: D, the width of the UNet's cross-attention context.
        dim_head: channels of one attention head.
        adaptive_scale: a learned factor on the detail stream (ignored by `shallow`, which drops that stream).
        scale_value: that factor's initial value.
    """

    variant: str
    vision_dim: int
    out_dim: int
    dim_head: int = 64
    adaptive_scale: bool = False
    scale_value: float = 1.0

    def __post_init__(self):
        check_choice("projector variant", self.variant, VARIANTS)
        if self.vision_dim % self.dim_head:
            raise ValueError(f"Projector config: vision_dim={self.vision_dim} is not a multiple of "
                             f"dim_head={self.dim_head}.")

    @property
    def with_structure(self) -> bool:
        """Whether shallow layers are read too, for tokens of their own beside the deep ones."""
        return _with_structure(self.variant)

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> "ProjectorConfig":
        """Reads the released JSON, or its `image_prompt_settings` alone.

        Its `vision_projection_config` names the variant by the released `target` or by our `variant`:
        `{"variant": "paper", "params": {"vision_dim": …, "out_dim": …}}`.

        Raises:
            ValueError: for an unknown variant, or an unknown or missing parameter.
        """
        projection = settings.get("image_prompt_settings", settings)["vision_projection_config"]
        variant = projection.get("variant")
        if variant is None:
            check_choice("projector target", projection.get("target"), _RELEASED)
            variant = _RELEASED[projection["target"]]
        params = dict(projection["params"])
        if unknown := sorted(set(params) - {field.name for field in dataclasses.fields(cls)}):
            raise ValueError(f"Projector config: unknown parameters {', '.join(unknown)}.")
        if missing := [name for name in ("vision_dim", "out_dim") if name not in params]:
            raise ValueError(f"Projector config: params lacks {' and '.join(missing)}; give the JSON that the adapter "
                             "was trained with.")
        return cls(variant=variant, **params)


class Projector(nn.Module):
    """Encoder features to vision tokens; the variant is the config's."""

    config: ProjectorConfig
    dtype: jnp.dtype = jnp.float32
    platform: Platform | None = dataclasses.field(default=None, repr=False)
    """None: this machine's. Not in the repr, by which features are found that any platform computes alike."""

    def __post_init__(self):
        self.platform = Platform.of(self.platform)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        """Projects the features of B references.

        Args:
            features: (deep, local) for `highres`, else (shallow, …, deep, local) with one or more shallow
                layers; each [B, L, C], L differing between them.
        Returns:
            [B, L', D]; L' is the number of deep tokens, doubled where structure is concatenated.
        Raises:
            ValueError: if their number or their channels do not fit the config.
        """
        config = self.config
        _check_features(config, features)
        *shallow, deep, local = features

        tokens = nn.Dense(config.out_dim, dtype=self.dtype, name="projector_base")(deep)
        if config.variant != "shallow":
            detail = self._stream("", deep, local)
            if config.adaptive_scale:
                detail = detail * Scale(config.scale_value, name="scale_value")().astype(self.dtype)
            tokens = tokens + detail
        elif self.is_initializing():
            # The released class computes this stream and drops it; its weights are in the file all the same.
            self._stream("", deep, local)
        if config.with_structure:
            structure = self._stream("2", deep, jnp.concatenate(shallow, axis=1))
            tokens = jnp.concatenate([tokens, structure], axis=1)
        return tokens

    def _stream(self, suffix, deep, context):
        # Names are flat, as in the files: torch's projector.0 is our projector_0.
        def dense(index, width):
            return nn.Dense(width, dtype=self.dtype, name=f"projector{suffix}_{index}")

        out_dim = self.config.out_dim
        x = MinAttention(self.config.dim_head, self.dtype, self.platform, name=f"min_attention{suffix}")(deep, context)
        x = nn.gelu(dense(0, 4 * x.shape[-1])(x), approximate=False)
        x = nn.gelu(dense(2, out_dim)(x), approximate=False)
        return LayerNorm(dtype=self.dtype, name=f"projector{suffix}_5")(dense(4, out_dim)(x))


class MinAttention(nn.Module):
    """Cross-attention of the deep tokens to another stream. [B, L, C], [B, S, C] → [B, L, C]."""

    dim_head: int
    dtype: jnp.dtype
    platform: Platform

    @nn.compact
    def __call__(self, deep, context):
        def project(name, x):
            dense = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)
            return dense(x).reshape(*x.shape[:2], -1, self.dim_head)

        deep = LayerNorm(dtype=self.dtype, name="norm1")(deep)
        context = LayerNorm(dtype=self.dtype, name="norm2")(context)
        out = jax.nn.dot_product_attention(
            project("to_q", deep), project("to_k", context), project("to_v", context),
            implementation=self.platform.encoder_attention)
        return out.reshape(deep.shape)


class Scale(nn.Module):
    """One learned number."""

    init_value: float

    @nn.compact
    def __call__(self):
        return self.param("value", nn.initializers.constant(self.init_value), ())


def _check_features(config: ProjectorConfig, features: Sequence[jax.Array]) -> None:
    names, fits = "(deep, local)", len(features) == 2
    if config.with_structure:
        names, fits = "(shallow, …, deep, local)", len(features) >= 3
    if not fits or any(x.ndim != 3 or x.shape[-1] != config.vision_dim for x in features):
        given = ", ".join(str(list(x.shape)) for x in features)
        raise ValueError(f"The {config.variant!r} projector takes features {names}, "
                         f"each [B, L, {config.vision_dim}], not {len(features)} of shapes {given}.")
