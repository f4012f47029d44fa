"""The pictures that an adapter is trained on: known before anything is built, then built by all processes together."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from realcustom_jax.data.build import build, check_outside
from realcustom_jax.data.dataset import Dataset, Mixed, read_about
from realcustom_jax.data.selection import select
from realcustom_jax.data.sources import Source
from realcustom_jax.devices.shared_disk import on_every_process, on_first_process
from realcustom_jax.paths import as_path
from realcustom_jax.training.published.config import PicturesConfig

if TYPE_CHECKING:
    from realcustom_jax.data.sources.mixture import MixtureEntry
    from realcustom_jax.paths import AnyPath

_NAME = 16  # letters of an identity that name a dataset's folder


@dataclasses.dataclass(frozen=True)
class Found:
    """One source that is found, not read.

    identity: of its rows and their pictures. folder: of its dataset. source: what that is made of; None: it is there
    already. weight: how often its rows are shown.
    """

    identity: str
    folder: "AnyPath"
    source: Source | None
    weight: float


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Everything that a configuration names, found and not read. side: of targets, which new datasets note."""

    found: tuple[Found, ...]
    config: PicturesConfig
    side: int

    @property
    def identity(self) -> str:
        """Of all rows and their pictures, wherever they lie."""
        if len(self.found) == 1:
            return self.found[0].identity
        return hashlib.sha256(repr([one.identity for one in self.found]).encode()).hexdigest()[:_NAME]

    @property
    def about(self) -> dict[str, Any]:
        """What of a run's identity the pictures are: JSON values."""
        return {"content": self.identity, "weights": [one.weight for one in self.found], "seed": self.config.seed,
                **{name: str(value) for name, value in self.config.filters.items()}}

    def rows(self) -> Dataset | Mixed:
        """All rows, one source after the other. What is not built yet is built, a part by every process.

        Raises:
            ValueError: too many rows are broken, or none can be used. OSError: a shard cannot be written. What is
                finished is kept.
        """
        datasets = []
        for one in self.found:
            if one.source is not None:
                on_every_process(lambda one=one: self._build(one, jax.process_index(), jax.process_count()))
                # It looks through all parts, and writes what two that were last at the same time left to each other.
                on_first_process(lambda one=one: self._build(one, 0, 1))
            datasets.append(Dataset(one.folder))
        return datasets[0] if len(datasets) == 1 else Mixed(datasets)

    def weights(self, rows: Dataset | Mixed, split: str = "train") -> np.ndarray:
        """How often each of these rows is shown: float [N], 0 for those that a filter leaves out. Raises ValueError:
        none is left."""
        weights = np.zeros(len(rows))
        kept = select(rows.index, split=split, **self.config.filters)
        lengths = [len(rows)] if isinstance(rows, Dataset) else rows.lengths
        weights[kept] = np.repeat([one.weight for one in self.found], lengths)[kept]
        return weights

    def _build(self, one: Found, number: int, of: int) -> None:
        build(one.source, one.folder, identity=one.identity, side=self.side, max_broken=self.config.max_broken,
              host=(number, of))


def find_pictures(config: PicturesConfig, parent: "AnyPath", side: int) -> Pictures:
    """The pictures that a configuration names: sources, whose datasets lie in `parent` by their identities, or datasets
    that were built before.

    Raises:
        FileNotFoundError: there is nothing, or a dataset that is not finished. ValueError: it is neither, or damaged.
    """
    found = [_find(entry, parent, parent / f"seen-{number}") for number, entry in enumerate(config.mixture())]
    return Pictures(tuple(found), config, side)


def _find(entry: "MixtureEntry", parent: "AnyPath", seen: "AnyPath") -> Found:
    given = as_path(entry.path)
    if (about := read_about(given)) is not None:
        Dataset(given)  # whether it is finished
        return Found(about.identity, given, None, entry.weight)
    source = entry.source()
    check_outside(str(parent), entry.path)
    on_first_process(lambda: source.identity(seen))  # the others then find what it has read
    identity = source.identity(seen)
    return Found(identity, parent / identity[:_NAME], source, entry.weight)
