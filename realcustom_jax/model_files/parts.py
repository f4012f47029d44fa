"""A model, some of whose parts are taken from other files: another autoencoder, another base UNet.

A part may be given as its own folder, as a model's folder that holds it, as a file in diffusers' or in the original
names, within a single file, or as a name on the hub. What such a file does not say, the configuration, is that of the
model whose part it replaces.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from realcustom_jax.conditioning.vocabulary import Vocabulary
from realcustom_jax.errors import naming
from realcustom_jax.model_files import locate, single_file
from realcustom_jax.model_files.kinds import advice, identify
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors
from realcustom_jax.presets import Preset

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_CALLED = {"unet": "UNet", "vae": "autoencoder"}
_FITTING = {  # what files of a part may be, in `kinds.identify`'s words; those of no known kind the loader judges
    "unet": {"a diffusers UNet", "a UNet in Stable Diffusion's original names", "a RealCustom adapter",
             "a UNet with RealCustom's visual attention", "a single-file Stable Diffusion checkpoint",
             "no model that we know"},
    "vae": {"a diffusers autoencoder", "an autoencoder in Stable Diffusion's original names",
            "a single-file Stable Diffusion checkpoint", "no model that we know"},
}


def with_parts(model: ModelSource, **parts: str | Path | None) -> ModelSource:
    """The model with its `unet` or `vae` from other files; those that are None stay.

    Raises:
        FileNotFoundError: there is no such file, folder or model on the hub.
    """
    given = {part: path for part, path in parts.items() if path is not None}
    return PatchedSource(model, given) if given else model


class PatchedSource(ModelSource):
    """A model (`source.ModelSource`) with other files' parts."""

    def __init__(self, model: ModelSource, parts: Mapping[str, str | Path]):
        super().__init__(model.root)
        self._model = model
        self._places = {part: _find(part, path) for part, path in parts.items()}

    @functools.cached_property
    def _contents(self) -> dict[str, tuple[dict[str, Any], LazyTensors, LazyTensors]]:
        """Of each part, see `_read`."""
        return {part: self._read(part, place) for part, place in self._places.items()}

    def _read(self, part: str, place: Path) -> tuple[dict[str, Any], LazyTensors, LazyTensors]:
        """(configuration, tensors in diffusers' names, tensors as the file has them) of a part."""
        files = locate.weight_files(place) if place.is_dir() else (place,)
        if not files:
            raise FileNotFoundError(f"{place} holds no weights of the {_CALLED[part]}; expected one file, or shards "
                                    "with their index.")
        tensors = read_tensors(*files)
        what = identify(tensors)
        # A released adapter's file may hold the UNet too; one that does not is no UNet.
        if what not in _FITTING[part] or what == "a RealCustom adapter" and "conv_in.weight" not in tensors:
            raise ValueError(f"{place} is no {_CALLED[part]} but {what}{advice(what)}.")
        config = _config_beside(place, part) or self._config_without_file(part, place)
        with naming(place):
            return config, single_file.part(tensors, part, config), tensors

    def _config_without_file(self, part: str, place: Path) -> dict[str, Any]:
        """The model's own part's, or where it has none, that of the autoencoder published with its kind of UNet."""
        if self._model.has(part):
            return self._model.config(part)
        if part == "vae":
            unet = _config_beside(self._places["unet"], "unet") if "unet" in self._places else None
            with_sizes = (unet or self._model.config("unet")).get("addition_embed_type")
            return dict(single_file.CONFIGS["sdxl" if with_sizes else "sd15"]["vae"])
        raise FileNotFoundError(f"{place} has no config.json beside it, and {self.root} holds no UNet whose "
                                "configuration would be taken for it; put one there.")

    def has(self, part: str) -> bool:
        return part in self._places or self._model.has(part)

    def place(self, part: str) -> Path:
        return self._places.get(part) or self._model.place(part)

    def config(self, part: str) -> dict[str, Any]:
        return dict(self._contents[part][0]) if part in self._places else self._model.config(part)

    def tensors(self, part: str) -> LazyTensors:
        return self._contents[part][1] if part in self._places else self._model.tensors(part)

    def unet_file(self) -> LazyTensors:
        return self._contents["unet"][2] if "unet" in self._places else self._model.unet_file()

    def tokenizer(self, i: int = 0, *, positions: int | None = None) -> CLIPTokenizer:
        return self._model.tokenizer(i, positions=positions)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return self._model.text_encoders

    def preset(self) -> Preset:
        return self._model.preset()

    def few_steps(self) -> tuple[Path, dict[str, Any]]:
        return self._model.few_steps()

    def vocabulary(self) -> Vocabulary | None:
        return self._model.vocabulary()

    @property
    def no_negative(self) -> str:
        return self._model.no_negative


def _find(part: str, path: str | Path) -> Path:
    """The file, or the folder of nothing but this part."""
    place = locate.on_this_host(path)
    if not place.exists() and locate.is_on_hub(path):
        place = locate.download(str(path))
    if not place.exists():
        raise FileNotFoundError(f"{path}, given as the {_CALLED[part]}, does not exist.")
    return place / part if (place / part).is_dir() else place


def _config_beside(place: Path, part: str) -> dict[str, Any] | None:
    """The part's JSON in its folder or beside its file; None where there is none, or beside a file that of another."""
    if place.is_dir():
        file = locate.config_file(place)
    else:
        file = next(filter(Path.is_file, (place.with_suffix(".json"), place.parent / "config.json")), None)
    config = locate.read_config(file) if file else None
    if config is None or config.get("_class_name", _CLASSES[part]) == _CLASSES[part]:
        return config
    if place.is_dir():
        raise ValueError(f"{file} describes a {config['_class_name']}; expected the {_CALLED[part]}, a "
                         f"{_CLASSES[part]}.")
    return None
