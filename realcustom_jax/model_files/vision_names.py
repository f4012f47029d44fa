"""The names under which published files hold a vision transformer → timm's, which ours are.

    timm            blocks.3.attn.qkv.weight                          cls_token    reg_token        norm.weight
    torch.hub       blocks.3.attn.qkv.weight, or blocks.0.3.… of FSDP cls_token    register_tokens  norm.weight
    transformers    encoder.layer.3.attention.attention.query.weight  embeddings.cls_token  …       layernorm.weight

torch.hub's are of facebookresearch/dino and facebookresearch/dinov2, whose checkpoints of training hold a teacher and a
student; transformers' of `ViTModel`, `Dinov2Model` and `Dinov2WithRegistersModel`, as these save themselves and as
their modules are called since version 5. open_clip puts `visual.trunk.` in front of timm's.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from realcustom_jax.model_files.tensors import LazyTensors
from realcustom_jax.models.vit_config import VitConfig

OPEN_CLIP_PREFIX = "visual.trunk."

_NETWORKS = ("teacher.", "student.")
"""What DINO's training keeps, the better first: both repositories evaluate the teacher."""
_HEADS = re.compile(r"(head|dino_head|ibot_head)\.")
_HUB = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_TRANSFORMERS = (
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""), (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"), (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."), (r"^layernorm\.", "norm."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.layernorm_before\.", ".norm1."), (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.)?(query|key|value)\.", r".attn.\2."), (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."), (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."), (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
)
_TRANSFORMERS_HEADS = re.compile(r"(pooler|classifier)\.")
_FUSED = {"attn.qkv": ("attn.query", "attn.key", "attn.value"), "mlp.fc1": ("mlp.gate_proj", "mlp.up_proj")}


def to_timm(tensors: LazyTensors) -> LazyTensors:
    """A file's tensors under timm's names; what is none of a vision transformer's names stays as it is."""
    tensors = _unwrapped(tensors)
    if not any("embeddings.patch_embeddings.projection." in name for name in tensors):
        return tensors.rename(lambda name: _replaced(name, _HUB))
    return _fused(tensors.rename(
        lambda name: None if _TRANSFORMERS_HEADS.match(name) else _replaced(name, _TRANSFORMERS)))


def _unwrapped(tensors: LazyTensors) -> LazyTensors:
    """The network that another module holds: open_clip's trunk, or the backbone of DINO's training without its heads,
    the teacher's if there are two."""
    for network in _NETWORKS:
        if any(name.startswith(network) for name in tensors):
            tensors = tensors.rename(lambda name, of=network: name.removeprefix(of) if name.startswith(of) else None)
            tensors = tensors.rename(lambda name: name.removeprefix("module."))
            break
    if any(name.startswith("backbone.") for name in tensors):
        tensors = tensors.rename(lambda name: None if _HEADS.match(name) else name.removeprefix("backbone."))
    if any(name.startswith(OPEN_CLIP_PREFIX) for name in tensors):
        tensors = tensors.rename(lambda name: name.removeprefix(OPEN_CLIP_PREFIX))
    return tensors


def _replaced(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fused(tensors: LazyTensors) -> LazyTensors:
    """Linear maps that are stored apart, one below the other; each is read when the whole is."""
    readers = dict(tensors.readers)
    for whole, parts in _FUSED.items():
        for name in tensors:
            if parts[0] not in name:
                continue
            names = [name.replace(parts[0], part) for part in parts]
            if all(part in readers for part in names):
                readers[name.replace(parts[0], whole)] = _stacked(name, [readers.pop(part) for part in names])
    return LazyTensors(readers, tensors.metadata)


def _stacked(name: str, readers: Sequence[Callable[[], np.ndarray]]) -> Callable[[], np.ndarray]:
    def read():
        parts = [part() for part in readers]
        if len({(part.shape, part.dtype) for part in parts}) > 1 or not parts[0].ndim:
            raise ValueError(f"the weights (of a ViT of transformers) are damaged: {name} and those beside it have "
                             f"shapes and types {', '.join(f'{part.shape} {part.dtype}' for part in parts)}; equal "
                             "ones were expected.")
        return np.concatenate(parts)
    return read


def with_positions(tensors: LazyTensors, config: VitConfig, resample: Callable[[np.ndarray], np.ndarray]):
    """The tensors, in timm's names, with positions for the tokens that the configuration gives them to.

    Args:
        resample: the positions [1, n, C] to those of the configuration's grid.
    """
    if "pos_embed" not in tensors:
        return tensors
    positions = tensors["pos_embed"]
    if positions.ndim == 3 and _holds_class_token(positions, config) and "cls_token" in tensors:
        # torch.hub and transformers give the class token a position though registers follow it, which have none. timm
        # adds that to the token itself.
        own, positions = np.asarray(positions[:, :1], np.float32), positions[:, 1:]
        token = tensors.readers["cls_token"]
        tensors = tensors.replace(cls_token=lambda: np.asarray(token(), np.float32) + own)
    if positions.ndim == 3:
        tensors = tensors.replace(pos_embed=lambda: resample(positions))
    return tensors


def _holds_class_token(positions: np.ndarray, config: VitConfig) -> bool:
    """Whether there is one more than a square number of positions, though the configuration gives the class token
    none."""
    patches = positions.shape[1] - 1
    return config.class_token and config.no_embed_class and patches > 0 and math.isqrt(patches) ** 2 == patches
