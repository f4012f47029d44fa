"""The sprite dataset: a TFDS builder that writes ArrayRecord files, without TensorFlow.

`write` makes the dataset (or finds it finished) and returns its folder, which `loader` reads. TFDS writes
into a temporary folder that it renames at the end; what an interruption or a broken copy leaves is rebuilt.
"""

import dataclasses
import functools
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tqdm import tqdm

from realcustom_jax.data.sprites.pairs import DIFFICULTIES, KINDS, MAX_SUBJECTS, SPLITS, paint_example
from realcustom_jax.data.sprites.world import SCENES
from realcustom_jax.files import png

_SIDE = 64
_ROWS_WORTH_A_PROCESS = 1000
_PICTURES = ("target", "second_reference")


@dataclasses.dataclass(kw_only=True)
class SpritesConfig(tfds.core.BuilderConfig):
    """How many rows of each split, and the seed of the painting; the name follows from them."""

    num_train: int
    num_test: int
    seed: int = 0
    name: str = ""

    def __post_init__(self):
        for field in ("num_train", "num_test"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; a split needs at least one row.")
        self.name = f"train{self.num_train}_test{self.num_test}_seed{self.seed}"


class Sprites(tfds.core.GeneratorBasedBuilder):
    """Rows of `pairs.paint_example`, in the order of their index."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [SpritesConfig(num_train=20_000, num_test=1_000)]

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="png")
        views = len(DIFFICULTIES)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Painted subjects in painted scenes, with reference pictures of the same identities.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "target": picture,
                    "masks": tfds.features.Tensor(
                        shape=(MAX_SUBJECTS, _SIDE, _SIDE), dtype=np.bool_, encoding="zlib"
                    ),
                    "caption": tfds.features.Text(),
                    "description": tfds.features.Text(),
                    "words": tfds.features.Sequence(tfds.features.Text(), length=MAX_SUBJECTS),
                    "scene": tfds.features.ClassLabel(names=SCENES),
                    "nouns": tfds.features.Tensor(shape=(MAX_SUBJECTS,), dtype=np.int32),
                    "attributes": tfds.features.Tensor(shape=(MAX_SUBJECTS, 5), dtype=np.int32),
                    "references": tfds.features.Sequence(picture, length=views),
                    "kind": tfds.features.Sequence(tfds.features.ClassLabel(names=KINDS), length=views),
                    "difficulty": tfds.features.Tensor(shape=(views,), dtype=np.float32),
                    "second_reference": picture,
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        counts = _wanted_rows(self.builder_config)
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        paint_row = functools.partial(_encoded_example, self.builder_config.seed, split)
        yield from enumerate(tqdm(_map(paint_row, count), total=count, desc=f"painting {split}", unit="row"))


def _wanted_rows(config: SpritesConfig) -> dict[str, int]:
    return dict(zip(SPLITS, (config.num_train, config.num_test), strict=True))


def _map(function, count: int) -> Iterator:
    """`map(function, range(count))`, in several processes when there is work for them."""
    workers = min(os.cpu_count() or 1, count // _ROWS_WORTH_A_PROCESS)
    if workers < 2:
        yield from map(function, range(count))
        return
    # JAX's threads do not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, range(count), chunksize=50)


def _encoded_example(seed: int, split: str, index: int) -> dict:
    # TFDS passes encoded pictures through; only encoding arrays would need TensorFlow.
    example = paint_example(seed=seed, split=split, index=index)
    encoded = {name: png(Image.fromarray(example[name])) for name in _PICTURES}
    return example | encoded | {"references": [png(Image.fromarray(picture)) for picture in example["references"]]}


def finished(folder: Path) -> bool:
    """Whether every file of a dataset is there, whole, and holds the rows that the dataset says it has."""
    if not (folder / "dataset_info.json").is_file():
        return False
    splits = tfds.builder_from_directory(folder).info.splits.values()
    try:
        return all(
            sum(ArrayRecordReader(str(path)).num_records() for path in split.filepaths) == split.num_examples
            for split in splits)
    except (FileNotFoundError, RuntimeError, ValueError):
        return False


def write(data_dir: str | os.PathLike, *, num_train: int, num_test: int, seed: int = 0) -> Path:
    """Paints the dataset under `data_dir` and returns its own folder in there.

    A finished dataset of the same numbers and seed is reused; a half-written or damaged one is rebuilt. Only
    one process may write at a time. Scripts that call it need the `if __name__ == "__main__"` guard: several
    processes paint a large dataset.
    """
    config = SpritesConfig(num_train=num_train, num_test=num_test, seed=seed)
    options = {"data_dir": os.fspath(data_dir), "config": config, "file_format": "array_record"}
    parent = Path(data_dir) / Sprites.name / config.name
    folder = parent / str(Sprites.VERSION)
    if finished(folder):
        return folder
    shutil.rmtree(parent, ignore_errors=True)
    tfds.display_progress_bar(False)
    try:
        Sprites(**options).download_and_prepare()
    finally:
        tfds.display_progress_bar(True)
    return folder
