"""The pictures that an adapter is trained on: known before anything is built, then built by all processes together."""

import dataclasses
from typing import TYPE_CHECKING

import jax

from realcustom_jax.data.build import build, check_outside
from realcustom_jax.data.dataset import Dataset, read_about
from realcustom_jax.data.sources import Source, open_source
from realcustom_jax.devices.shared_disk import on_every_process, on_first_process
from realcustom_jax.paths import as_path
from realcustom_jax.training.published.config import PicturesConfig

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_LONGEST_NAME = 16


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures that are found, not read. identity: of their content and that of their rows. folder: of their dataset.
    source: what it is made of; None: it is there already."""

    identity: str
    folder: "AnyPath"
    source: Source | None
    max_broken: int
    side: int

    def dataset(self) -> Dataset:
        """The dataset, built if it is not there: every process builds a part of it.

        Raises:
            ValueError: too many rows are broken, or none can be used. OSError: a shard cannot be written. What is
                finished is kept.
        """
        if self.source is not None:
            on_every_process(lambda: self._build(jax.process_index(), jax.process_count()))
            # It looks through all parts, and writes what two that were last at the same time left to each other.
            on_first_process(lambda: self._build(0, 1))
        return Dataset(self.folder)

    def _build(self, number: int, of: int) -> None:
        build(self.source, self.folder, identity=self.identity, side=self.side, max_broken=self.max_broken,
              host=(number, of))


def find_pictures(config: PicturesConfig, parent: "AnyPath", side: int) -> Pictures:
    """The pictures that a configuration names: a source, whose dataset lies in `parent` by its identity, or a dataset
    that was built before.

    Raises:
        FileNotFoundError: there is nothing, or a dataset that is not finished. ValueError: it is neither, or damaged.
    """
    given = as_path(config.folder)
    if (about := read_about(given)) is not None:
        Dataset(given)  # whether it is finished
        return Pictures(about.identity, given, None, config.max_broken, side)
    check_outside(str(parent), config.folder)
    source, seen = open_source(config.folder), parent / "seen"
    on_first_process(lambda: source.identity(seen))  # the others then find what it has read
    identity = source.identity(seen)
    return Pictures(identity, parent / identity[:_LONGEST_NAME], source, config.max_broken, side)
