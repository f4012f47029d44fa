"""What a vision transformer is made of: timm's keyword arguments, or the JSON of transformers' ViTs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from realcustom_jax.errors import check_choice
from realcustom_jax.models.activations import ACTIVATIONS

# Arguments of timm that would change the block outputs; only these values are implemented.
_FIXED = {
    "in_chans": 3, "pos_embed": "learn", "proj_bias": True, "qk_norm": False, "scale_attn_norm": False,
    "scale_mlp_norm": False, "pre_norm": False, "dynamic_img_pad": False, "embed_layer": None,
    "embed_norm_layer": None, "norm_layer": None, "block_fn": None, "attn_layer": None,
}
# Arguments of timm that concern the head, the initialisation or training noise, none of which is here.
_IRRELEVANT = {
    "num_classes", "global_pool", "fc_norm", "final_norm", "pool_include_prefix", "weight_init", "fix_init",
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "dynamic_img_size",
}
GATED = "SwiGLUPacked"
"""timm's class of feed-forward layers in which the activation of one half gates the other (arXiv 2002.05202)."""
_LATER = {"norm_eps", "mlp_layer"}
_IN_TRANSFORMERS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""Names of activations that differ from timm's."""


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The architecture, in timm's names and with timm's defaults. Sizes are (height, width) in pixels."""

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float | None = None
    class_token: bool = True
    no_embed_class: bool = False
    reg_tokens: int = 0
    act_layer: str = "gelu"
    mlp_layer: str | None = None  # None or `GATED`
    norm_eps: float = 1e-6  # timm's is fixed; ViTs of transformers have others

    def __repr__(self):
        # Features that lie on disk are found again by this text (module `fingerprint`): it leaves out what was added
        # later, where that is as it always was.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if field.name not in _LATER or getattr(self, field.name) != field.default}
        return f"VitConfig({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"ViT config: embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}.")
        check_choice("act_layer", self.act_layer, ACTIVATIONS)
        if self.mlp_layer not in (None, GATED):
            raise ValueError(f"ViT config: mlp_layer={self.mlp_layer!r} is not supported; only None and {GATED!r} "
                             "are.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VitConfig":
        """Reads timm `VisionTransformer` keyword arguments, or what `timm_arguments` makes into them.

        Raises:
            ValueError: for an argument that is not timm's or that asks for a network not implemented here.
        """
        config = timm_arguments(config)
        for key, only in _FIXED.items():
            if config.get(key, only) != only:
                raise ValueError(f"ViT config: {key}={config[key]!r} is not supported; only {only!r} is.")
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(config) - fields - _FIXED.keys() - _IRRELEVANT):
            raise ValueError(f"ViT config: {', '.join(unknown)} is no argument of timm's VisionTransformer.")
        values = {key: value for key, value in config.items() if key in fields}
        for key in {"img_size", "patch_size"} & values.keys():
            values[key] = _pair(values[key])
        if values.get("act_layer", "") is None:
            del values["act_layer"]
        return cls(**values)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (vertically, horizontally); pixels beyond the last whole patch are not seen."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def num_embedded_prefix(self) -> int:
        """Prefix tokens that have entries of their own in `pos_embed`."""
        return 0 if self.no_embed_class else self.num_prefix


def timm_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's arguments of the JSON of transformers' `ViTConfig`, `Dinov2Config` or `Dinov2WithRegistersConfig`, and
    `norm_eps`, which timm does not take. Arguments of timm's are returned as they are.

    Raises:
        ValueError: for the JSON of another network.
    """
    if not {"model_type", "hidden_size"} & set(config):
        return dict(config)
    kind = config.get("model_type")
    if kind not in ("vit", "dinov2", "dinov2_with_registers"):
        raise ValueError(f"ViT config: model_type={kind!r} is not supported; expected transformers' vit, dinov2 or "
                         "dinov2_with_registers, or the arguments of timm's VisionTransformer.")
    width, dinov2 = config.get("hidden_size", 768), kind != "vit"
    hidden = int(width * config.get("mlp_ratio", 4)) if dinov2 else config.get("intermediate_size", 3072)
    act, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12)
    arguments = {
        "img_size": config.get("image_size", 224), "patch_size": config.get("patch_size", 14 if dinov2 else 16),
        "in_chans": config.get("num_channels", 3), "embed_dim": width, "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12), "qkv_bias": config.get("qkv_bias", True),
        "act_layer": _IN_TRANSFORMERS.get(act, act), "norm_eps": eps,
    }
    if dinov2:
        arguments["init_values"] = config.get("layerscale_value", 1.0)
    if config.get("use_swiglu_ffn"):
        hidden = 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8)
        arguments |= {"mlp_layer": GATED, "act_layer": "silu"}
    if kind == "dinov2_with_registers":
        arguments |= {"reg_tokens": config.get("num_register_tokens", 4), "no_embed_class": True}
    ratio = hidden / width
    # timm rounds the product of the two down.
    return arguments | {"mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)}


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
