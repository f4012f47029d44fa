"""Your own pictures as a dataset: a folder with a manifest (module `manifest`) → ArrayRecord files for `loader`.

Targets are scaled and cropped to one of a few sizes of about the same area ("buckets", as SDXL was trained, arXiv
2307.01952, section 2.3), and what was lost is kept as numbers, for SDXL's size conditioning. References become squares.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tqdm import tqdm

from realcustom_jax.conditioning.images import load_image
from realcustom_jax.conditioning.references import square_reference
from realcustom_jax.data.cutouts import cut_out_subject, recontextualised
from realcustom_jax.data.pictures.manifest import ManifestRow, fingerprint, read_manifest
from realcustom_jax.data.shapes import bucket_of, buckets, cover
from realcustom_jax.files import png

RECONSTRUCTION, AUGMENTED, OTHER_VIEW = 0.0, 0.5, 1.0
"""Difficulties of the references: cut out of the target, the same changed, and another picture of the subject."""


@dataclasses.dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """What is made of which folder; the name follows from these and from `content`, the fingerprint of the manifest and
    of all files that it names. Where they lie does not matter."""

    folder: str
    content: str
    side: int = 1024
    reference_side: int = 768
    max_broken: int = 0
    seed: int = 0
    name: str = ""

    def __post_init__(self):
        self.name = (f"side{self.side}_reference{self.reference_side}_seed{self.seed}_broken{self.max_broken}_"
                     f"{self.content}")


class Folder(tfds.core.GeneratorBasedBuilder):
    """Rows of a manifest, in its order, without the broken ones."""

    VERSION = tfds.core.Version("2.0.0")  # since 2.0.0, references are resized as sampling does it

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        pair = tfds.features.Tensor(shape=(2,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self, disable_shuffling=True,
            description="Pictures, their captions, and references of the subject that a word of the caption names.",
            features=tfds.features.FeaturesDict({
                "target": picture, "caption": tfds.features.Text(), "word": tfds.features.Text(),
                "bucket": tfds.features.Scalar(np.int32), "original_size": pair, "crop_top_left": pair,
                "references": tfds.features.Sequence(picture),
                "difficulty": tfds.features.Sequence(tfds.features.Scalar(np.float32))}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        rows, broken = read_manifest(Path(config.folder) / "manifest.jsonl")
        _check(broken, config.max_broken)
        for message in broken:
            tqdm.write(f"skipped, {message}")
        sizes, made = buckets(config.side), 0
        for number, row in enumerate(tqdm(rows, desc="reading pictures", unit="row")):
            try:
                yield number, example(row, sizes, config.reference_side, np.random.default_rng((config.seed, number)))
                made += 1
            except (OSError, ValueError) as error:
                broken.append(f"{row.where}: {error}")
                tqdm.write(f"skipped, {broken[-1]}")
                _check(broken, config.max_broken)
        if broken:
            tqdm.write(f"{len(broken)} of {made + len(broken)} rows were skipped.")
        if not made:
            raise ValueError(f"{config.folder}/manifest.jsonl has no row that can be used; give at least one.")


def _check(broken: list[str], limit: int) -> None:
    if len(broken) > limit:
        more = "; …" if len(broken) > 10 else ""
        raise ValueError(f"{len(broken)} broken row(s), and max_broken is {limit}: {'; '.join(broken[:10])}{more}. "
                         "Mend them or raise max_broken.")


def example(row: ManifestRow, sizes: list[tuple[int, int]], reference_side: int, rng: np.random.Generator) -> dict:
    """The fields of one row. Raises OSError, ValueError: a picture that cannot be read, or a mask that does not fit."""
    picture = _to_pillow(load_image(row.target))
    mask = _mask(row, picture.size)
    focus = (picture.width / 2, picture.height / 2)
    if mask is not None:
        ys, xs = np.nonzero(mask)
        focus = ((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2)
    bucket = bucket_of(*picture.size, sizes)
    target, corner = cover(picture, sizes[bucket], focus)
    references = [(load_image(path), OTHER_VIEW) for path in row.references]
    if mask is not None:
        references.append((load_image(cut_out_subject(picture, mask)), RECONSTRUCTION))
    if row.mask is not None:
        references.append((load_image(recontextualised(picture, mask, rng, reference_side)), AUGMENTED))
    pictures, difficulty = zip(*references, strict=True)
    squares = [_to_pillow(square_reference(x, reference_side)) for x in pictures]
    return {
        "target": png(target), "caption": row.caption, "word": row.word, "bucket": bucket,
        "original_size": np.array([picture.height, picture.width], np.int32),
        "crop_top_left": np.array(corner, np.int32), "references": [png(x) for x in squares],
        "difficulty": list(difficulty)}


def _to_pillow(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.round(picture * 255)))


def _mask(row: ManifestRow, size: tuple[int, int]) -> np.ndarray | None:
    """Where the subject is, bool [H, W], or None where the row does not say."""
    if row.mask is not None:
        mask = load_image(row.mask).mean(axis=-1) > 0.5
        if mask.shape != (size[1], size[0]):
            raise ValueError(f"the mask {row.mask} is {mask.shape[1]} x {mask.shape[0]}, "
                             f"its target {size[0]} x {size[1]}")
        if not mask.any():
            raise ValueError(f"the mask {row.mask} is empty")
        return mask
    if row.box is None:
        return None
    left, top, right, bottom = row.box
    mask = np.zeros((size[1], size[0]), bool)
    mask[int(top):int(np.ceil(bottom)), int(left):int(np.ceil(right))] = True
    if not mask.any():
        raise ValueError(f"the box {list(row.box)} lies outside its target of {size[0]} x {size[1]}")
    return mask


def dataset_name(folder: Path) -> str:
    """What the dataset in a folder holds, as `make_dataset` made it: its configuration and how it was made."""
    return f"{folder.parent.name}_{folder.name}"


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


def content(folder: str | os.PathLike, data_dir: str | os.PathLike) -> str:
    """The identity of a folder's rows and pictures, known before a dataset is made of them; wherever they lie.

    Raises:
        FileNotFoundError: the folder has no manifest.jsonl. ValueError: `data_dir` lies in it.
    """
    if not (Path(folder) / "manifest.jsonl").is_file():
        raise FileNotFoundError(f"There is no manifest.jsonl in {folder}; it lists the pictures, one object a line.")
    if Path(data_dir).absolute().is_relative_to(Path(folder).absolute()):
        raise ValueError(f"The dataset cannot be written into its own pictures: {data_dir} lies in {folder}.")
    return fingerprint(Path(folder), Path(data_dir) / "seen.json")


def make_dataset(folder: str | os.PathLike, data_dir: str | os.PathLike, *, side: int = 1024, reference_side: int = 768,
          max_broken: int = 0, seed: int = 0) -> Path:
    """Makes the dataset of a folder under `data_dir`, or finds it made, and returns its own folder in there. A picture
    that changed, wherever it lies, makes another dataset; a folder that was only moved does not. `data_dir` lies
    outside of `folder`.

    Raises:
        FileNotFoundError: the folder has no manifest.jsonl.
        ValueError: more rows are broken than `max_broken`, whose lines it names, or none is good. Nothing is left
            behind.
    """
    config = FolderConfig(folder=os.fspath(folder), content=content(folder, data_dir), side=side,
                          reference_side=reference_side, max_broken=max_broken, seed=seed)
    made = Path(data_dir) / Folder.name / config.name / str(Folder.VERSION)
    if finished(made):
        return made
    shutil.rmtree(made.parent, ignore_errors=True)
    Folder(data_dir=os.fspath(data_dir), config=config, file_format="array_record").download_and_prepare()
    return made
