"""Features on disk: what the frozen encoders of a published model made of pictures and captions, once (module
`precompute`).

They lie, as float16 in plain .npy files that are read row by row: the autoencoder's mean and log-variance of each
target; the text encoders' states and pooled text of each caption; the image encoders' features of each reference, all
layers and parts one after the other (SDXL's `paper` projector reads 25 MB of a reference). Some rows of one shape are
a part, a folder of such files.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from realcustom_jax.data.batches import BucketBatches, Chosen
from realcustom_jax.errors import sentence
from realcustom_jax.files import read_npz
from realcustom_jax.paths import local_copy

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

SHARED = "shared.npz"
"""The file of what all parts share."""


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What all parts share. index int64 [N, 4]: each row's part, and the places of its first target, caption and
    reference within it. lengths: of the layers, of which features are joined. nothing: what replaces a condition that
    is dropped."""

    index: np.ndarray
    lengths: np.ndarray
    nothing: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Features on disk; see `compute_features`."""

    folder: "AnyPath"

    def batch(self, chosen: Chosen) -> dict[str, Any]:
        """targets [B, 2, h, w, C], text, pooled, time_ids, features (a tuple) of what a batch shows."""
        parts, *firsts = self._shared.index[chosen.rows].T
        places = dict(zip(("target", "caption", "reference"), np.array(firsts) + np.stack(
            [chosen.targets, chosen.captions, chosen.choices]), strict=True))
        kinds = {"targets": "target", "text": "caption", "features": "reference"}
        kinds |= {"pooled": "caption", "time_ids": "target"} if "empty-pooled" in self._shared.nothing else {}
        stored = {name: np.stack([self._part(part, name)[place] for part, place in zip(
            parts, places[kind], strict=True)]) for name, kind in kinds.items()}
        return {**stored, "features": self._layers(stored["features"])}

    def dropped(self) -> dict[str, Any]:
        """What replaces a dropped condition, without batch axis: `empty` {text, pooled} and `no_image`."""
        nothing = self._shared.nothing
        empty = {name: nothing[f"empty-{name}"] for name in ("text", "pooled") if f"empty-{name}" in nothing}
        return {"empty": empty, "no_image": self._layers(nothing["no_image"])}

    def _layers(self, wide: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(wide, np.cumsum(self._shared.lengths)[:-1], axis=-2))

    @functools.cached_property
    def _shared(self) -> "_Shared":
        with _whole(self.folder / SHARED), local_copy(self.folder / SHARED).open("rb") as file:
            arrays = read_npz(file)
            return _Shared(arrays.pop("index"), arrays.pop("lengths"), arrays)

    def _part(self, number: int, name: str) -> np.ndarray:
        return _opened(self.folder / part_name(number) / f"{name}.npy")


@dataclasses.dataclass(frozen=True)
class StoredBatches:
    """The features of whole batches, as `reading.Prefetched` reads them ahead."""

    stored: StoredFeatures
    batches: BucketBatches
    parts: int = 1

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batches)

    def __getitem__(self, step: int) -> dict[str, Any]:
        """See `StoredFeatures.batch`."""
        return self.stored.batch(self.batches.chosen(step))

    def read(self, step: int, part: int) -> dict[str, Any]:
        """The batch of a step, which is its only part."""
        return self[step]

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The one that there is."""
        return parts[0]


def part_name(number: int) -> str:
    """The folder of a part, within that of all."""
    return f"part-{number:06}"


@functools.lru_cache(maxsize=4096)
def _opened(file: "AnyPath") -> np.ndarray:
    """A file that is read row by row. As many stay open as the parts of some 100,000 rows have."""
    with _whole(file):
        return np.load(local_copy(file), mmap_mode="r")


@contextlib.contextmanager
def _whole(file: "AnyPath") -> Iterator[None]:
    """Around the opening of a file of features: one sentence for what is damaged."""
    try:
        yield
    except (ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({sentence(error)[:200]}): delete the folder {file.parent}, and its "
                         "features are computed again.") from None
