"""The networks that pictures are scored by, opened from the files in which they are published.

    clip = ClipEncoder.open("clip-vit-base-patch32", protocol.network("clip"))
    clip.picture(image), clip.text("a dog on the beach")         # [P] each, of length 1
    dino = DinoEncoder.open("dino_deitsmall16_pretrain.pth", protocol.network("dino"))
    dino.picture(image)                                          # [C], of length 1

Every encoder has `record`, what reports say of it: which files, their SHA-256, the architecture, and whether it is the
network that the protocol names (`as_published`).
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.errors import naming
from realcustom_jax.evaluation.preprocessing import Preparation
from realcustom_jax.evaluation.protocols import Network
from realcustom_jax.files import file_digest
from realcustom_jax.model_files.known_vision import KNOWN, arguments_of
from realcustom_jax.model_files.locate import on_this_host, read_config, weight_files
from realcustom_jax.model_files.tokenizer import read_tokenizer
from realcustom_jax.model_files.weights import load_clip_vision, load_text_encoder, load_vision_encoder

TEXT_TOKENS = 77
"""Of CLIP's text, start and end included."""
_PUBLISHED_CLIPS = {  # hidden_size, num_hidden_layers, patch_size, image_size, projection_dim
    "openai/clip-vit-base-patch32": (768, 12, 32, 224, 512), "openai/clip-vit-large-patch14": (1024, 24, 14, 224, 768),
    "openai/clip-vit-large-patch14-336": (1024, 24, 14, 336, 768),
}
_TRAINED_SIDE, _SEEN_SIDE = 518, 224
"""Pixels: what DINOv2 was trained on last, and what every script shows it."""
_ARCHITECTURE = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "reg_tokens")
_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_VITS = None, "vit", "dinov2", "dinov2_with_registers"
"""What the JSON of a DINO says as its model_type, timm's nothing."""


class ClipEncoder:
    """Both towers of a CLIP. Pictures and prompts one at a time, so that each tower is compiled once."""

    def __init__(self, vision, text, tokenizer, preparation: Preparation, record: dict[str, Any]):
        (self._vision, self._vision_params), (self._text, self._text_params) = vision, text
        self._tokenizer, self._preparation, self.record = tokenizer, preparation, record

    @classmethod
    def open(cls, folder: str | Path, network: Network) -> "ClipEncoder":
        """A CLIP from transformers' folder: config.json, a tokenizer, weights, and if there is one the
        preprocessor_config.json (or processor_config.json), which counts where the protocol's script loads
        transformers' processor; else the pictures are prepared as for the published CLIPs, with the config's
        `image_size`.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, or does not fit the others; in one sentence.
        """
        root = on_this_host(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; --{network.slot.replace('_', '-')} takes the folder of a "
                                    "CLIP as transformers saves it: config.json, tokenizer and weights.")
        config, files = read_config(root / "config.json"), weight_files(root)
        if not files:
            raise FileNotFoundError(f"The model is not complete: {root / 'model.safetensors'} is missing.")
        if not config.get("vision_config") or not config.get("text_config"):
            raise ValueError(f"{root / 'config.json'} is not that of a whole CLIP, which holds a text_config and a "
                             f"vision_config; give the folder of {network.published}.")
        with naming(root):
            vision, text = load_clip_vision(config, *files), load_text_encoder(config, *files)
            if not vision[0].with_projection or not text[0].with_projection:
                raise ValueError("the weights lack visual_projection.weight or text_projection.weight, without which "
                                 f"pictures and texts cannot be compared; give those of {network.published}.")
        positions = text[0].config.max_position_embeddings
        tokenizer = read_tokenizer(root, positions)
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions, TEXT_TOKENS)
        sizes = vision[0].config
        preparation = _preparation(root, network, Preparation.clip(sizes.image_size, network.preparation))
        _check_side(preparation, sizes.image_size, root)
        architecture = {"hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
                        "patch_size": sizes.patch_size, "image_size": sizes.image_size,
                        "projection_dim": sizes.projection_dim}
        published = _PUBLISHED_CLIPS[network.published] == tuple(architecture.values())
        return cls(vision, text, tokenizer, preparation, _record(folder, files, network, architecture, published))

    def picture(self, image: Image.Image) -> np.ndarray:
        """float64 [P], of length 1. Raises ValueError for a picture that cannot be prepared."""
        return _unit(self._project_picture(self._vision_params, self._preparation(image)[None]))

    def text(self, prompt: str) -> np.ndarray:
        """float64 [P], of length 1. A prompt of more than `TEXT_TOKENS` is cut, with a warning; its end token is kept.
        Raises ValueError for what is no text."""
        return _unit(self._project_text(self._text_params, encode_prompt(self._tokenizer, prompt, allow_empty=True)))

    @functools.cached_property
    def _project_picture(self):
        return jax.jit(lambda params, images: self._vision.apply({"params": params}, images).projected)

    @functools.cached_property
    def _project_text(self):
        return jax.jit(lambda params, tokens: self._text.apply({"params": params}, tokens).projected)


class DinoEncoder:
    """A DINO or DINOv2, by its class token."""

    def __init__(self, module, params, preparation: Preparation, record: dict[str, Any]):
        self._module, self._params, self._preparation, self.record = module, params, preparation, record

    @classmethod
    def open(cls, path: str | Path, network: Network) -> "DinoEncoder":
        """A DINO from a weight file or a folder.

        The architecture is said by a config.json beside the weights (timm's arguments, timm's own JSON on the hub, or
        that of transformers' ViTModel or Dinov2Model), or else by the file's or the folder's name, in which a name of
        `known_vision.KNOWN` or of the published files stands.

        What is shown to the network is 224 pixels, cut from 256, as every script does; to one whose `img_size` is
        another, as tests have them, that many, cut from a picture larger in the same proportion. 518 is what DINOv2 was
        trained on last; it becomes 224, with positions resampled as the protocol's script does.

        Raises:
            FileNotFoundError, ValueError: there is no such file, nothing says the architecture, or the weights do not
                fit it; in one sentence.
        """
        root = on_this_host(path)
        files = weight_files(root) if root.is_dir() else (root,)
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"{path} does not exist or holds no weights; --{network.slot} takes the weights of "
                                    f"{network.published}, a file or a folder.")
        folder = files[0].parent
        arguments = _arguments(files[0], network)
        preparation = _preparation(folder, network, Preparation.dino(_side(arguments, root), network.preparation))
        if preparation.crop and preparation.crop[0] == preparation.crop[1]:
            arguments["img_size"] = preparation.crop[0]
        registers = "_reg" if arguments.get("reg_tokens") and network.positions != "dino" else ""
        with naming(root):
            module, params = load_vision_encoder(arguments, *files, positions=network.positions + registers)
            if not module.with_norm or not module.config.class_token:
                raise ValueError(f"these are not the weights of {network.published}: they have no class token with a "
                                 "norm after the last block, by which pictures are compared.")
        _check_side(preparation, module.config.img_size[0], folder)
        known = type(module.config).from_config(KNOWN[network.published])
        architecture = {name: getattr(module.config, name) for name in _ARCHITECTURE}
        published = architecture == {name: getattr(known, name) for name in _ARCHITECTURE}
        return cls(module, params, preparation, _record(path, files, network, architecture, published))

    def picture(self, image: Image.Image) -> np.ndarray:
        """float64 [C], of length 1. Raises ValueError for a picture that cannot be prepared."""
        return _unit(self._class_token(self._params, self._preparation(image)[None]))

    @functools.cached_property
    def _class_token(self):
        return jax.jit(lambda params, images: self._module.apply({"params": params}, images, method="pooled"))


def open_encoder(path: str | Path, network: Network) -> "ClipEncoder | DinoEncoder":
    """The network of a slot. Raises as `ClipEncoder.open` and `DinoEncoder.open`."""
    return (ClipEncoder if network.slot.startswith("clip") else DinoEncoder).open(path, network)


def _unit(feature: jax.Array) -> np.ndarray:
    """[1, C] to float64 [C] of length 1."""
    values = np.asarray(feature, np.float64)[0]
    return values / np.linalg.norm(values)


def _preparation(folder: Path, network: Network, default: Preparation) -> Preparation:
    """As the processor in the folder says, if the script loads that and there is one."""
    if network.preparation != "transformers":
        return default
    for file in (folder / _PREPROCESSOR, folder / _PROCESSOR):
        said = read_config(file) if file.is_file() else {}
        # Since transformers 5 a whole processor is one file, in which that of pictures is a part.
        said = said.get("image_processor") if file.name == _PROCESSOR else said
        if isinstance(said, Mapping) and said:
            with naming(file):
                return Preparation.from_config(said, default)
    return default


def _check_side(preparation: Preparation, side: int, folder: Path) -> None:
    if preparation.crop not in (None, (side, side)):
        raise ValueError(f"{folder}: its preprocessor crops pictures to {preparation.crop[0]} × {preparation.crop[1]} "
                         f"pixels, and the network takes {side} × {side}; give the one that belongs to the weights.")


def _record(path: str | Path, files: Sequence[Path], network: Network, architecture: Mapping[str, Any],
            published: bool) -> dict[str, Any]:
    return {"file": Path(path).name, "sha256": {file.name: file_digest(file) for file in files},
            "architecture": {name: list(value) if isinstance(value, tuple) else value
                             for name, value in architecture.items()},
            "published": network.published, "as_published": published}


def _side(arguments: Mapping[str, Any], root: Path) -> int:
    """Pixels of a side that the network is shown, see `DinoEncoder.open`."""
    side = arguments.get("img_size", _SEEN_SIDE)
    if isinstance(side, list | tuple) and side and set(side) == {side[0]}:
        side = side[0]
    if type(side) is not int or side < 1:
        raise ValueError(f"{root}: img_size is {side!r} in its config.json; expected the pixels of a square's side.")
    return _SEEN_SIDE if side == _TRAINED_SIDE else side


def _arguments(file: Path, network: Network) -> dict[str, Any]:
    """timm's arguments, by the JSON beside a weight file or by its or its folder's name. Raises ValueError if neither
    says them."""
    named = known_name(file.name) or known_name(file.parent.name)
    for beside in (file.with_suffix(".json"), file.parent / "config.json"):
        if beside.is_file():
            config = read_config(beside)
            if named and config.get("model_type") not in _VITS:
                continue  # it belongs to another network in the same folder
            with naming(beside):
                return dict(arguments_of(config))
    if named:
        return dict(KNOWN[named])
    raise ValueError(f"{file}: nothing says which network this is; put a config.json with timm's arguments beside it, "
                     f"or name the file as the network is called ({network.published}{file.suffix}).")


_NAMES = (
    # torch.hub and transformers: dino_vits16, dino-vits16, dinov2_vitl14_reg4_pretrain, dinov2-small (patch 14 always)
    re.compile(r"(?P<family>dino(v2)?)[-_]vit(?P<size>[sblg])(?P<patch>\d+)(?P<reg>_reg)?"),
    re.compile(r"(?P<family>dinov2)[-_](?P<reg>with-registers-)?(?P<size>small|base|large|giant)"),
    # the published files of DINO: dino_deitsmall16_pretrain.pth, dino_vitbase8_pretrain.pth
    re.compile(r"(?P<family>dino)_(deit|vit)(?P<size>small|base)(?P<patch>\d+)"),
    # timm's on the hub: vit_small_patch16_224.dino, vit_small_patch14_dinov2, vit_small_patch14_reg4_dinov2
    re.compile(r"vit_(?P<size>small|base|large|giant)_patch(?P<patch>\d+)_(?P<reg>reg4_)?(224\.)?(?P<family>dino(v2)?)"),
)


def known_name(text: str) -> str | None:
    """torch.hub's name of the DINO or DINOv2 that a file's or a folder's name names; None if it names none."""
    for pattern in _NAMES:
        if found := pattern.search(text):
            parts = found.groupdict()
            patch, registers = parts.get("patch") or 14, "_reg" if parts.get("reg") else ""
            name = f"{parts['family']}_vit{parts['size'][0]}{patch}{registers}"
            if name in KNOWN:
                return name
    return None
