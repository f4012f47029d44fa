"""What a configuration says of the training of a miniature: configs/mini.py."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.errors import check_choice, naming
from realcustom_jax.models.projector import ProjectorConfig, check_layers
from realcustom_jax.presets import Preset
from realcustom_jax.training.checkpoints import ON_EXISTING
from realcustom_jax.training.config import read_settings
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.settings import TrainSettings


def _check(settings: Any, shares: tuple[str, ...], weights: tuple[str, ...]) -> None:
    """Raises ValueError for a share that is not in [0, 1], or a weight of a loss below 0."""
    for name in (*shares, *weights):
        value, most = getattr(settings, name), 1 if name in shares else math.inf
        if not (math.isfinite(value) and 0 <= value <= most):
            expected = "a share, from 0 to 1" if name in shares else "the weight of a loss, 0 or more"
            raise ValueError(f"{name} is {value!r}; expected {expected}.")


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """What the base stage does beside denoising; see `base.BaseTask`."""

    placed: float = 0.05  # weight of drawing a noun's attention to its thing
    pooled_told: float = 0.25  # how often the pooled text, too, tells what things look like

    def __post_init__(self):
        _check(self, shares=("pooled_told",), weights=("placed",))


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What the adapter is trained on; see `adapter.AdapterTask`. All but `second` is 0 in the paper."""

    second: float = 0.25  # share of references that show a second thing, so that the word has to choose
    bystanders: float = 0.0  # share of targets with a second, described thing
    masked: float = 0.0  # share of the pairs that are trained with the mask of sampling
    taught: float = 0.0  # how much of the target is the base model's prediction, told in words
    spelled: float = 0.0  # weight of finding the words of a reference among its vision tokens

    def __post_init__(self):
        _check(self, shares=("second", "bystanders", "masked", "taught"), weights=("spelled",))


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """How few steps the distilled form makes; see `distill.DistillTask`."""

    steps: int = 4  # of the student
    substeps: int = 3  # of the teacher for each of them
    rank: int = 24  # of the change of each weight
    freeze: int = 2  # the student's first step without a mask of its own
    bystanders: float = 0.5  # share of pictures with a second, described thing

    def __post_init__(self):
        _check(self, shares=("bystanders",), weights=())
        for name in ("steps", "substeps", "rank", "freeze"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(f"{name} is {value!r}; expected a whole number, at least 1.")


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How each stage is optimised."""

    autoencoder: TrainSettings
    encoders: TrainSettings
    judge: TrainSettings
    base: TrainSettings
    adapter: TrainSettings
    distill: TrainSettings


@dataclasses.dataclass(frozen=True)
class ModelConfigs:
    """The parts' configurations in the original JSON's keys, which the networks check themselves."""

    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    image_encoder_siglip: Mapping[str, Any]
    image_encoder_dinov2: Mapping[str, Any]
    unet: Mapping[str, Any]
    adapter: Mapping[str, Any]
    judge: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class MiniatureConfig:
    """A whole configuration."""

    models: ModelConfigs
    optimization: Optimization
    stage: str = "all"  # or the names of stages, with commas between
    warm_start: str = ""  # a bundle whose base model and adapter those stages start from
    on_existing: str = "resume"  # what a stage does with checkpoints that it finds; or overwrite, refuse
    seed: int = 0
    data: BankConfig = BankConfig()
    prediction: str = "v_prediction"  # what the UNet predicts; or epsilon
    preset: Preset = Preset()  # how the trained model is used
    base: BaseSettings = BaseSettings()
    adapter: AdapterSettings = AdapterSettings()
    distill: DistillSettings = DistillSettings()
    curriculum: Curriculum = Curriculum()
    said: Mapping[str, Any] = dataclasses.field(init=False, compare=False, repr=False)
    """The plain dicts that it was read from: what the checkpoints of a run are compared by."""

    def __post_init__(self):
        check_choice("on_existing", self.on_existing, ON_EXISTING)
        check_choice("prediction", self.prediction, ("epsilon", "v_prediction"))
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected a whole number, 0 or more.")
        for name, value in dataclasses.asdict(self.data).items():
            if name not in ("seed", "split") and value < 1:
                raise ValueError(f"data.{name} is {value}; expected a whole number, at least 1.")
        with naming("models.adapter"):
            projector = ProjectorConfig.from_config(self.models.adapter)
            vision = VisionSettings.from_config(self.models.adapter["vision_settings"])
            check_layers(projector.variant, len(vision.siglip_layers))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MiniatureConfig":
        """Reads a configuration, plain dicts. `seed` and `on_existing` are said once, for every stage.

        Raises ValueError that names the key whose name or value cannot be used.
        """
        read = read_settings(cls, config, "config")
        stages = {field.name: dataclasses.replace(
            getattr(read.optimization, field.name), seed=read.seed, on_existing=read.on_existing)
            for field in dataclasses.fields(Optimization)}
        read = dataclasses.replace(read, optimization=Optimization(**stages))
        object.__setattr__(read, "said", config)
        return read
