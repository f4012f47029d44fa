"""What a configuration says of the training of an adapter on a published model: `train` of configs/sdxl.py.

The defaults are those of both published models; their files say only in what they differ.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from realcustom_jax.conditioning.references import VisionSettings
from realcustom_jax.data.selection import check_filters
from realcustom_jax.data.shapes import buckets
from realcustom_jax.errors import check_choice
from realcustom_jax.model_files import single_file
from realcustom_jax.models.projector import VARIANTS, check_layers
from realcustom_jax.presets import Preset
from realcustom_jax.training.checkpoints import ON_EXISTING
from realcustom_jax.training.config import read_settings
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.settings import TrainSettings

if TYPE_CHECKING:
    from realcustom_jax.data.sources.mixture import MixtureEntry

TRAINED_DTYPES = ("float32", "bfloat16")
"""Of everything frozen, and of computation; float16's range is too small for gradients."""


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """What a source calls the keys of a row; "": as docs/training/data.md says."""

    target: str = ""
    views: str = ""
    caption: str = ""
    word: str = ""
    reference: str = ""
    mask: str = ""
    box: str = ""
    subjects: str = ""
    subject: str = ""
    score: str = ""


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Your own pictures, see docs/training/data.md. Filters work when pictures are read: nothing is built anew."""

    folder: str = ""  # a source: a folder, a file, a pattern as train-{000..012}.tar, or a mixture's .json or .py file
    sources: tuple[Mapping[str, Any], ...] = ()  # instead: [{"path", "weight"?, "columns"?, "word"?}, …]
    columns: ColumnsConfig = ColumnsConfig()  # of sources that say nothing of their own
    word: str = ""  # the subject's, in rows that have none
    max_broken: int = 0  # how many rows may be unusable
    seed: int = 0  # of how references are changed
    min_side: int = 0  # least of a target's shorter side in pixels
    max_aspect: float = math.inf  # most of its longer side divided by its shorter one
    min_score: float = -math.inf  # least score of a row; with one, rows without a score are left out
    held_out: float = 0.0  # share of the subjects that is kept from training
    workers: int = -1  # threads that read ahead; 0: none; -1: as many as cores, up to 16
    prefetch: int = 2  # batches that are read ahead

    def __post_init__(self):
        check_filters(**self.filters)
        if self.folder and self.sources:
            raise ValueError(f"folder is {self.folder!r}, and sources are given too; give one of them.")
        for name, least in (("max_broken", 0), ("seed", 0), ("workers", -1), ("prefetch", 1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} is {number!r}; expected a whole number, {least} or more.")

    @property
    def filters(self) -> dict[str, Any]:
        """The options of `selection.select`."""
        return {name: getattr(self, name) for name in ("min_side", "max_aspect", "min_score", "held_out")}

    def mixture(self) -> tuple["MixtureEntry", ...]:
        """The sources with their weights. Raises ValueError, OSError: there is none, or it makes no sense."""
        from realcustom_jax.data.sources.mixture import read_mixture  # needs packages that sampling does not

        if not (self.folder or self.sources):
            raise ValueError("config.train.data.folder is empty: the folder of your pictures and their manifest.jsonl, "
                             "or another source, see docs/training/data.md.")
        given = {name: column for name, column in dataclasses.asdict(self.columns).items() if column}
        return read_mixture(self.sources or self.folder, columns=given, word=self.word)


@dataclasses.dataclass(frozen=True)
class FreshAdapterConfig:
    """What a new adapter is; one that is continued brings its own."""

    variant: str = "paper"  # of the projector: highres (released), shallow (released) or paper
    dim_head: int = 64  # channels of one attention head of the projector
    vision_settings: VisionSettings = VisionSettings(
        local="tiles", siglip_layers=(7, 13, 19, 25), dino_layers=(4, 10, 16, 22))

    def __post_init__(self):
        check_choice("projector variant", self.variant, VARIANTS)
        if self.dim_head < 1:
            raise ValueError(f"dim_head is {self.dim_head}; expected a whole number, at least 1.")
        check_layers(self.variant, len(self.vision_settings.siglip_layers))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices lie along each axis of the mesh; one of them may be -1, as many as are left."""

    data: int = 1  # each has a part of the batch, and copies of the parameters
    fsdp: int = -1  # each has a part of the batch, and a part of the parameters
    tensor: int = 1  # each has a part of every layer
    dcn_data: int = 1  # TPU slices, each a mesh of the sizes above; gradients alone cross from one to the other

    def __post_init__(self):
        if self.dcn_data < 1:
            raise ValueError(f"dcn_data is {self.dcn_data}; expected the number of TPU slices, at least 1.")
        for name, count in dataclasses.asdict(self).items():
            if count != -1 and count < 1:
                raise ValueError(f"{name} is {count}; expected a number of devices, or -1 for as many as are left.")


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """`train` of a configuration; a path that is "" is not given."""

    kind: str = "sdxl"  # sdxl or sd15: whose shapes --compile_only and --print_sharding take
    model: str = ""  # a folder, a single file or a name on the hub
    vision: str = "ckpts"  # folder of the image encoders, where the model does not bring them
    tokenizer: str = ""  # a folder, where the model is a single file
    adapter: str = ""  # one to continue from; none: a fresh one, as `fresh` says
    dtype: str = "bfloat16"  # of everything frozen, and of computation
    on_existing: str = "resume"  # what to do with checkpoints in the workdir; or overwrite, refuse
    side: int = 1024  # of a square target in pixels; others have about its area
    precomputed: bool = False  # whether latents, texts and image features are computed once, to WORKDIR/features
    data: PicturesConfig = PicturesConfig()
    preset: Preset = Preset()  # what the base model is conditioned with; an adapter remembers it
    fresh: FreshAdapterConfig = FreshAdapterConfig()
    curriculum: Curriculum = Curriculum()
    snr_limit: float = 0.0  # of min-SNR weights (arXiv 2303.09556), e.g. 5.0; 0: all timesteps count alike
    mesh: MeshConfig = MeshConfig()
    optimization: TrainSettings = TrainSettings(
        steps=100_000, batch_size=16, learning_rate=1e-5, warmup=1000, decay=0.1, weight_decay=0.01, ema=0.9999,
        save_every=1000, sample_every=1000, keep_every=10_000)

    def __post_init__(self):
        check_choice("kind", self.kind, single_file.CONFIGS)
        check_choice("dtype", self.dtype, TRAINED_DTYPES)
        check_choice("on_existing", self.on_existing, ON_EXISTING)
        buckets(self.side)  # whether there are shapes of this side
        if not (math.isfinite(self.snr_limit) and self.snr_limit >= 0):
            raise ValueError(f"snr_limit is {self.snr_limit}; expected a number, 0 (no weights) or more.")

    @classmethod
    def from_config(cls, train: Mapping[str, Any]) -> "PublishedConfig":
        """Reads a configuration's `train`, plain dicts. `on_existing` is said once, for the optimization too.

        Raises ValueError that names the key whose name or value cannot be used.
        """
        config = read_settings(cls, train, "config.train")
        settings = dataclasses.replace(config.optimization, on_existing=config.on_existing)
        return dataclasses.replace(config, optimization=settings)


def published_defaults(**given: Any) -> dict[str, Any]:
    """`train` of a configuration file: the defaults with what is `given`, as plain values that a `ConfigDict` takes.

    The preset holds only what is given, because what a preset leaves out is the preset's own business.
    """
    config = dataclasses.asdict(PublishedConfig(**{name: x for name, x in given.items() if name != "preset"}))
    config["preset"] = given.get("preset", {})
    config["optimization"].pop("on_existing")  # which is said above, once for all
    vision = config["fresh"]["vision_settings"]
    return config | {"fresh": config["fresh"] | {"vision_settings": {
        name: list(x) if isinstance(x, tuple) else x for name, x in vision.items()}}}
