"""ImageReward (arXiv 2304.05977) through its own package, `image-reward`: how well a picture fits its prompt."""

import importlib.util
import math
from pathlib import Path
from typing import Any

from PIL import Image

from realcustom_jax.evaluation.protocols import Network
from realcustom_jax.files import file_digest
from realcustom_jax.paths import as_path, local_copy

PACKAGE = "ImageReward"


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


class Reward:
    """The opened network. `record`: as of the encoders."""

    def __init__(self, model: Any, record: dict[str, Any]):
        self._model, self.record = model, record

    @classmethod
    def open(cls, path: str | Path, network: Network) -> "Reward":
        """The network from ImageReward.pt; med_config.json is taken from beside it.

        Raises:
            FileNotFoundError, ValueError: a file is missing, or the package cannot read it.
        """
        file = local_copy(as_path(path), "med_config.json")
        beside = file.parent / "med_config.json"
        for needed in (file, beside):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed} does not exist; ImageReward needs ImageReward.pt and, in the same "
                                        "folder, med_config.json.")
        package = importlib.import_module(PACKAGE)
        try:
            model = package.load(str(file), med_config=str(beside))
        except Exception as error:  # the package and torch raise many kinds for a broken file
            raise ValueError(f"{file}: the package image-reward cannot read it ({error}).") from None
        return cls(model, {"file": Path(path).name, "sha256": {file.name: file_digest(file)}, "architecture": {},
                           "published": network.published, "as_published": file.name == "ImageReward.pt"})

    def score(self, prompt: str, image: Image.Image) -> float:
        """The raw score: about −2 … 2, over many pictures and prompts of mean 0 and standard deviation 1."""
        return float(self._model.score(prompt, image))


def normalised(score: float) -> float:
    """A raw score's place among all, 0 … 1: the normal distribution's, which raw scores are made to follow.

    DSH-Bench prints such numbers and says nowhere how it makes them; compare raw scores where you can.
    """
    return (1 + math.erf(score / math.sqrt(2))) / 2
