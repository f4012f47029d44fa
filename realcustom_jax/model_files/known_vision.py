"""The published DINO and DINOv2 image encoders by torch.hub's names: timm's arguments, and how their positions fit.

    arguments = KNOWN["dinov2_vits14"]
    positions = POSITIONS["dinov2_vits14"]
    module, params = rc.load_vision_encoder(arguments, "dinov2_vits14_pretrain.pth", positions=positions)

`img_size` is 224, what the scripts of the benchmarks give them, though DINOv2 was trained on 518: the 37 × 37 positions
that its files hold are resampled to 16 × 16, in a way that changes the features a little, hence `POSITIONS`.

Sources: facebookresearch/dino `vision_transformer.py` and `hubconf.py`, facebookresearch/dinov2
`dinov2/hub/backbones.py`.
"""

from collections.abc import Mapping
from typing import Any

from realcustom_jax.errors import check_choice
from realcustom_jax.model_files.locate import ARCHITECTURES
from realcustom_jax.models.vit_config import timm_arguments

_WIDTHS = {  # embed_dim, depth, num_heads
    "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24),
}


def _vit(size: str, patch: int, **more: Any) -> dict[str, Any]:
    width, depth, heads = _WIDTHS[size]
    return {"img_size": 224, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, **more}


def _dinov2(size: str, **more: Any) -> dict[str, Any]:
    # The giant's hidden layer has 2 × 4096 channels, of which one half gates the other.
    giant = {"mlp_layer": "SwiGLUPacked", "mlp_ratio": 2.66667 * 2, "act_layer": "silu"} if size == "g" else {}
    return _vit(size, 14, init_values=1.0, **giant, **more)


KNOWN: dict[str, dict[str, Any]] = {
    **{f"dino_vit{size}{patch}": _vit(size, patch) for size in "sb" for patch in (16, 8)},
    **{f"dinov2_vit{size}14": _dinov2(size) for size in "sblg"},
    **{f"dinov2_vit{size}14_reg": _dinov2(size, reg_tokens=4, no_embed_class=True) for size in "sblg"},
}
"""timm's arguments by torch.hub's names."""

POSITIONS: dict[str, str] = {
    name: "dinov2_reg" if name.endswith("_reg") else name.partition("_")[0] for name in KNOWN}
"""`positions` of `load_vision_encoder` that gives what torch.hub's network gives, by its name."""

_LETTERS = {"small": "s", "base": "b", "large": "l", "giant": "g"}
_TIMM = {
    **ARCHITECTURES,
    **{f"vit_{size}_patch{patch}_224": _vit(_LETTERS[size], patch) for size in ("small", "base") for patch in (16, 8)},
    **{f"vit_{size}_patch14{reg}_dinov2": KNOWN[f"dinov2_vit{letter}14{known}"]
       for size, letter in _LETTERS.items() for reg, known in (("", ""), ("_reg4", "_reg"))},
}
"""timm's arguments by timm's names."""


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's arguments of a vision transformer that is described in any of three ways: by these arguments; by the JSON
    of transformers (`vit_config.timm_arguments`); by that of timm's own files on the hub, which names an architecture
    and says the size of its pictures.

    Raises:
        ValueError: for another network.
    """
    if "architecture" not in config:
        return timm_arguments(config)
    check_choice("architecture of a vision transformer", config["architecture"], _TIMM)
    arguments = dict(_TIMM[config["architecture"]])
    if size := config.get("pretrained_cfg", {}).get("input_size"):
        arguments["img_size"] = tuple(size[1:])
    return arguments | config.get("model_args", {})
