"""A model's files as one object, whatever they are: a folder, a single file, or a name on the Hugging Face hub.

    source = ModelSource.open("stabilityai/stable-diffusion-xl-base-1.0")
    vae, params = source.load("vae")          # of source.config("vae") and source.tensors("vae")
    betas, prediction = source.schedule()

A part is named as its folder in diffusers' layout: unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2,
scheduler; ours are image_encoder_siglip, image_encoder_dinov2, adapter and judge. Each layout is one class here, and
nothing outside of it asks what a model's files look like: a new layout is one class more, and a line in
`ModelSource.open`.
"""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from realcustom_jax.conditioning.vocabulary import Vocabulary
from realcustom_jax.errors import naming
from realcustom_jax.model_files import locate, single_file, weights
from realcustom_jax.model_files.adapter import Adapter, check_backbone, find_adapter
from realcustom_jax.model_files.bundle import FEW_STEPS, FEW_STEPS_LORA, WEIGHT_FILES
from realcustom_jax.model_files.kinds import advice, identify
from realcustom_jax.model_files.lora import merge_loras
from realcustom_jax.model_files.lora_files import Lora
from realcustom_jax.model_files.prediction import said_of
from realcustom_jax.model_files.schedule import read_schedule, read_solver
from realcustom_jax.model_files.tensors import LazyTensors, read_tensors, reads_headers_only
from realcustom_jax.model_files.tokenizer import read_tokenizer
from realcustom_jax.models.clip_text import ClipTextConfig
from realcustom_jax.presets import PRESETS, Preset, find_preset, replace_choices


def _load_block_outputs(config: Mapping[str, Any], *files, **options):
    """An image encoder as adapters read it: without the final norm, so that a file that holds one and a file that does
    not are the same network."""
    return weights.load_vision_encoder({**config, "final_norm": False}, *files, **options)


_LOADERS = {
    "unet": weights.load_unet, "vae": weights.load_autoencoder, "text_encoder": weights.load_text_encoder,
    "text_encoder_2": functools.partial(weights.load_text_encoder, prefix="te2"),
    "image_encoder_siglip": _load_block_outputs, "image_encoder_dinov2": _load_block_outputs,
}


class ModelSource(abc.ABC):
    """An opened model. `root`: its folder or file, as errors name it."""

    def __init__(self, root: Path):
        self.root = root

    @staticmethod
    def open(model: str | Path) -> "ModelSource":
        """Opens a model given as a folder, a single file, a name on the hub ("owner/model"), or "mini".

        Raises:
            FileNotFoundError, ValueError: it is none of them, cannot be downloaded, or is of a kind that is not
                supported; says what to give instead.
        """
        path = locate.ASSETS / "mini" if model == "mini" else locate.on_this_host(model)
        if path.is_dir():
            return FolderSource(path)
        if path.is_file() and path.suffix in locate.SINGLE_FILES:
            return SingleFileSource(path)
        if locate.is_on_hub(model):
            return FolderSource(locate.download(str(model)))
        if path.is_file():
            problem = f"it is a file of another kind ({path.suffix or 'without an ending'})"
        elif path.suffix in locate.SINGLE_FILES:
            problem = "there is no such file"
        else:
            problem = "there is no such folder"
            if locate.could_be_on_hub(model):
                problem += ", and as its first word is that of a folder it was not asked for on the hub"
        raise FileNotFoundError(f"{path} is not a model folder: {problem}. Give a folder of diffusers' layout, a "
                                f"single-file checkpoint ({', '.join(locate.SINGLE_FILES)}), or a name on the hub "
                                "(owner/model).")

    @abc.abstractmethod
    def has(self, part: str) -> bool:
        """Whether the model holds this part."""

    @abc.abstractmethod
    def place(self, part: str) -> Path:
        """The file or folder that errors about this part name."""

    @abc.abstractmethod
    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration in the original JSON's keys. Raises FileNotFoundError or ValueError that names the
        missing or damaged file."""

    @abc.abstractmethod
    def tensors(self, part: str) -> LazyTensors:
        """A part's tensors in the original torch names (those of diffusers, transformers, timm). Raises as `config`."""

    @abc.abstractmethod
    def tokenizer(self, i: int = 0, *, positions: int | None = None) -> CLIPTokenizer:
        """The tokenizer of the i-th text encoder. `positions`: how many tokens that encoder takes, for a tokenizer that
        does not say how many it makes; None: as this model's own encoder. Raises as `config`."""

    @property
    @abc.abstractmethod
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that encode text: one, or SDXL's two. Raises FileNotFoundError if a second one is missing."""

    @abc.abstractmethod
    def preset(self) -> Preset:
        """How the model is best used, as it says itself; the default where it says nothing."""

    @abc.abstractmethod
    def vocabulary(self) -> Vocabulary | None:
        """The words that the model learnt; None for a model of open vocabulary."""

    @property
    @abc.abstractmethod
    def no_negative(self) -> str:
        """What the model reads where there is no negative prompt, see `Preset.no_negative`."""

    def check(self, *parts: str) -> None:
        """Raises as `config` for the first of these parts that is not there, before anything large is read."""
        for part in parts:
            self.config(part)

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Raises ValueError for a LoRA of another kind of model, as far as names tell, before anything large is read.
        Raises as `config`."""
        if loras:
            merge_loras(self.tensors("unet"), loras, "unet", self.config("unet"))
        for lora in loras if len(self.text_encoders) < 2 else ():
            for layer in lora.parts["te2"].values():
                raise ValueError(f"the LoRA {lora.where} changes a second text encoder, by {layer.down}, and this "
                                 "model has one: it was made for SDXL; give one that was made for this model.")

    def unet_file(self) -> LazyTensors:
        """The tensors of the file that holds the UNet, in its own names, and its metadata."""
        return self.tensors("unet")

    def text_positions(self, i: int = 0) -> int:
        """How many tokens the i-th text encoder takes. Raises as `config`."""
        part = _numbered("text_encoder", i)
        with naming(self.place(part)):
            return ClipTextConfig.from_config(self.config(part)).max_position_embeddings

    def schedule(self, prediction: str | None = None) -> tuple[np.ndarray, str]:
        """(betas [T], what the UNet predicts: "epsilon" or "v_prediction").

        `prediction`: as the caller says; None: as the UNet's file says, and else the scheduler's configuration (module
        `prediction`). Raises as `config`, and ValueError for a schedule that is not Stable Diffusion's.
        """
        with naming(self.place("unet")):
            file = self.unet_file() if self.has("unet") else LazyTensors({})
            said = said_of(file, file.metadata, prediction)
        with naming(self.place("scheduler")):
            return read_schedule(self.config("scheduler") | said)

    def solver(self) -> dict[str, Any]:
        """The arguments of `solvers.make_solver` by which the model's scheduler samples (module `schedule`); empty
        where the model says nothing, or what is not supported, which is warned of. Raises as `config`."""
        with naming(self.place("scheduler")):
            return read_solver(self.config("scheduler"))

    def few_steps(self) -> tuple[Path, dict[str, Any]]:
        """(a LoRA with which few steps suffice, the choices of `Preset` that are made then). Raises FileNotFoundError
        where the model brings no such form."""
        raise FileNotFoundError(f"{self.root} brings no form for few steps ({FEW_STEPS}/): leave few_steps out, or "
                                "give a LoRA that was distilled for them with loras (--lora).")

    @property
    def few_steps_limit(self) -> int:
        """For up to how many steps the form for few steps was made; 0: the model brings none."""
        return self.few_steps()[1]["steps"] if self.has(FEW_STEPS) else 0

    def adapter(self) -> Adapter:
        """The adapter that comes with the model. Raises FileNotFoundError for a base model, which has none."""
        if not self.has("adapter"):
            raise FileNotFoundError(f"The model is not complete: {self.root / 'adapter'} is missing. A base model "
                                    "needs an adapter: give the file or folder of one, e.g. RealCustom_highres.pth.")
        return find_adapter(self.place("adapter"))

    def load(self, part: str, **options):
        """(module, params) of a part, by its loader in `weights`, which takes the options."""
        with naming(self.place(part)):
            return _LOADERS[part](self.config(part), self.tensors(part), **options)

    def load_unet(self, adapter: Adapter, *, base_last: bool = False, **options):
        """(module, params) of the UNet with the adapter's visual attention; where both hold a weight, the adapter's is
        taken, unless `base_last`. Raises ValueError if they do not fit each other."""
        with naming(self.place("unet"), adapter.where):
            config = {**self.config("unet"), "image_prompt_settings": adapter.settings}
            check_backbone(adapter, config)
            base = self.tensors("unet")
            files = (adapter.tensors, base) if base_last else (base, adapter.tensors)
            return weights.load_unet(config, *files, **options)


def _numbered(part: str, i: int) -> str:
    """The i-th of several parts of a kind: tokenizer, tokenizer_2 …"""
    return f"{part}_{i + 1}" if i else part


class FolderSource(ModelSource):
    """A folder for each part: diffusers' layout, which is ours too, or that of the released RealCustom (`locate`)."""

    def __init__(self, root: Path):
        super().__init__(locate.on_this_host(root))
        self._opened: dict[tuple[str, bool], LazyTensors] = {}

    def has(self, part: str) -> bool:
        return self.place(part).is_dir()

    def place(self, part: str) -> Path:
        if part == "scheduler":
            return self.root / "scheduler" / "scheduler_config.json"
        folders = [self.root / name for name in locate.FOLDERS.get(part, (part,))]
        return next(filter(Path.is_dir, folders), folders[0])

    def config(self, part: str) -> dict[str, Any]:
        if part == "unet" and not self.has(part):
            raise FileNotFoundError(f"{self.root} is not a model folder: it holds no unet/ folder.")
        if part == "vae" and not self.has(part):
            raise _no_autoencoder(self.root)
        return self._scheduler() if part == "scheduler" else locate.part_config(self.place(part), part)

    def tensors(self, part: str) -> LazyTensors:
        folder = self.place(part)
        # What is wrong with a file is said once, and not whenever it is asked for something.
        if (key := (part, reads_headers_only())) not in self._opened:
            if not (files := locate.weight_files(folder)):
                raise FileNotFoundError(f"The model is not complete: {folder / WEIGHT_FILES[part]} is missing.")
            self._opened[key] = read_tensors(*files)
        return self._opened[key]

    def unet_file(self) -> LazyTensors:
        return self.tensors("unet") if locate.weight_files(self.place("unet")) else LazyTensors({})

    def tokenizer(self, i: int = 0, *, positions: int | None = None) -> CLIPTokenizer:
        if positions is None and self.has(_numbered("text_encoder", i)):
            positions = self.text_positions(i)
        return read_tokenizer(self.place(_numbered("tokenizer", i)), positions)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        if not self.has("text_encoder_2"):
            if not (self._document("model_index.json") or {}).get("text_encoder_2", [None])[0]:
                return ("text_encoder",)
            raise FileNotFoundError(f"The model is not complete: {self.place('text_encoder_2')} is missing.")
        return "text_encoder", "text_encoder_2"

    def preset(self) -> Preset:
        with naming(self.root / "preset.json"):
            choices = self._document("preset.json")
            return PRESETS["default"] if choices is None else find_preset(choices)

    def vocabulary(self) -> Vocabulary | None:
        with naming(self.root / "vocabulary.json"):
            words = self._document("vocabulary.json")
            return None if words is None else Vocabulary.from_config(words)

    def few_steps(self) -> tuple[Path, dict[str, Any]]:
        if not self.has(FEW_STEPS):
            return super().few_steps()
        folder = self.place(FEW_STEPS)
        choices = locate.read_config(folder / "preset.json")
        with naming(folder / "preset.json"):
            replace_choices(self.preset(), choices)
            if "steps" not in choices:
                raise ValueError("steps is missing: how many steps the LoRA beside it was made for.")
        return folder / FEW_STEPS_LORA, choices

    @property
    def no_negative(self) -> str:
        index = self._document("model_index.json") or {}
        return "zeros" if index.get("force_zeros_for_empty_prompt") else "encoded"

    def _scheduler(self) -> dict[str, Any]:
        """The released layout has no such file: its model is Stable Diffusion's."""
        if (file := self.place("scheduler")).is_file():
            return locate.read_config(file)
        if self._document("model_index.json") is not None:
            raise FileNotFoundError(f"The model is not complete: {file} is missing.")
        return {}

    def _document(self, name: str) -> dict[str, Any] | None:
        """A JSON file beside the parts' folders; None where there is none."""
        return locate.read_config(self.root / name) if (self.root / name).is_file() else None


class SingleFileSource(ModelSource):
    """A single-file checkpoint (`single_file`): UNet, autoencoder and text encoders, and nothing else.

    The file is opened when it is first asked for what it can hold, and once: one from before torch 1.6 cannot be
    mapped, and is read whole.
    """

    @functools.cached_property
    def _contents(self) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, LazyTensors], LazyTensors]:
        """(configuration of each part, tensors of each part, tensors of the file in its own names)."""
        tensors = read_tensors(self.root)
        with naming(self.root):
            if (kind := single_file.kind(tensors)) is None:
                what = identify(tensors)
                raise ValueError(f"it holds {what}; expected a whole Stable Diffusion 1.5 or SDXL checkpoint"
                                 f"{advice(what)}.")
            parts = single_file.split(tensors)
        return single_file.CONFIGS[kind] | {"scheduler": single_file.scheduler(tensors)}, parts, tensors

    def has(self, part: str) -> bool:
        return bool(self._contents[1].get(part))

    def place(self, part: str) -> Path:
        return self.root

    def config(self, part: str) -> dict[str, Any]:
        if part.startswith("image_encoder"):
            raise self._lacks("image encoders", "vision")
        if part == "vae" and not self.has(part):
            raise _no_autoencoder(self.root)
        if part.startswith("text_encoder") and not self.has(part):
            raise FileNotFoundError(f"{self.root} holds no {part}; give a checkpoint that holds all text encoders.")
        return dict(self._contents[0][part])

    def tensors(self, part: str) -> LazyTensors:
        return self._contents[1][part]

    def unet_file(self) -> LazyTensors:
        return self._contents[2]

    def tokenizer(self, i: int = 0, *, positions: int | None = None) -> CLIPTokenizer:
        raise self._lacks("tokenizer", "tokenizer")

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(part for part in self._contents[1] if part.startswith("text_encoder"))

    def preset(self) -> Preset:
        return PRESETS["default"]

    def vocabulary(self) -> None:
        return None

    @property
    def no_negative(self) -> str:
        # The file does not say it. The folders that SDXL and Stable Diffusion 1.5 were published in do.
        return "zeros" if len(self.text_encoders) == 2 else "encoded"

    def _lacks(self, what: str, option: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self.root} is a single file, which holds no {what}; name the folder that does with "
                                 f"{option} (--{option}).")


def _no_autoencoder(root: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{root} holds no autoencoder; give one with vae (--vae), a file or a folder.")
