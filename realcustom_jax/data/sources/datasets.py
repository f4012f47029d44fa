"""Folders that TensorFlow Datasets reads: those that were built here, and others with pictures and texts."""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from realcustom_jax.data.records import FEATURES, Record, Undecoded, read_record, size_of
from realcustom_jax.data.rows import MaskPicture, Row, Stored, Subject
from realcustom_jax.data.sources.contents import digest_of_files
from realcustom_jax.data.sources.parts import BrokenRow, part_count
from realcustom_jax.data.sources.schema import Naming, row_of
from realcustom_jax.data.sources.tables import StoredBytes, Table
from realcustom_jax.paths import local_copy, local_folder

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_AT_ONCE = 8  # rows in memory
_KINDS = tfds.features.Image, tfds.features.Text, tfds.features.ClassLabel, tfds.features.BBoxFeature


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of a dataset that was built here."""

    file: "AnyPath"
    count: int

    @property
    def name(self) -> str:
        return self.file.name

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        try:
            reader = ArrayRecordReader(str(local_copy(self.file)))
            if reader.num_records() != self.count:
                raise ValueError(f"it holds {reader.num_records()} of {self.count} rows")
            for start in range(0, self.count, _AT_ONCE):
                for content in reader.read(list(range(start, min(start + _AT_ONCE, self.count)))):
                    yield _row(read_record(content))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{self.file} is damaged ({str(error)[:200]}): copy it again, or build it anew.") from None


@dataclasses.dataclass(frozen=True)
class Examples:
    """Some examples of another dataset."""

    folder: "AnyPath"
    split: str
    table: Table
    first: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.folder.name}, {self.split} {self.first} to {self.end - 1}"

    @property
    def count(self) -> int:
        return self.end - self.first

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        builder = _builder(self.folder)
        skipped = {name: Undecoded() for name, feature in builder.info.features.items() if _pictures(feature)}
        data = builder.as_data_source(split=self.split, decoders=skipped)
        for number in range(self.first, self.end):
            where = f"{self.split} {number}"
            try:
                cells = {name: _cell(data[number][name], builder.info.features[name], f"{where}, {name}")
                         for name in self.table.columns}
                yield row_of(_in_pixels(self.table.described(cells)), where, _no_name)
            except (ValueError, OSError) as error:
                yield BrokenRow(where, str(error))
            except RuntimeError as error:  # of ArrayRecord
                yield BrokenRow(where, f"{self.folder} is damaged there ({error}); copy it again")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A folder with a dataset_info.json, features.json and ArrayRecord shards."""

    folder: "AnyPath"
    naming: Naming = Naming()

    def check(self) -> None:
        """Raises ValueError: it cannot be read, or has no column of pictures; says what it has."""
        if not self._built():
            self._table()

    def parts(self) -> Sequence[Shard | Examples]:
        """See `Source.parts`."""
        if self._built():
            return [Shard(*pair) for pair in zip(self._files(), self._split().shard_lengths, strict=True)]
        split, table = self._split(), self._table()
        count = part_count(split.num_bytes, split.num_examples)
        cuts = np.linspace(0, split.num_examples, count + 1).round().astype(int).tolist()
        return [Examples(self.folder, split.name, table, *pair) for pair in itertools.pairwise(cuts)]

    def identity(self, seen: "AnyPath") -> str:
        """See `Source.identity`."""
        found = f"dataset {self.naming} {digest_of_files(self._files(), seen)}"
        return hashlib.sha256(found.encode()).hexdigest()[:16]

    def _built(self) -> bool:
        return _builder(self.folder).info.features.keys() == FEATURES.keys()

    def _split(self) -> tfds.core.SplitInfo:
        splits = _builder(self.folder).info.splits
        if "train" not in splits or not splits["train"].num_examples:
            raise ValueError(f"{self.folder} has no rows in a split train; it has {', '.join(splits) or 'no split'}.")
        return splits["train"]

    def _files(self) -> "list[AnyPath]":
        return [self.folder / os.path.basename(file) for file in self._split().filepaths]

    def _table(self) -> Table:
        features = _builder(self.folder).info.features
        usable = {name: feature for name, feature in sorted(features.items()) if isinstance(_inner(feature), _KINDS)
                  or feature.np_dtype in (str, object, np.float32, np.float64) or name in dict(self.naming.columns)}
        classes = {name: tuple(feature.names) for name, feature in features.items()
                   if isinstance(feature, tfds.features.ClassLabel)}
        return Table.of(usable, self.naming, classes, os.fspath(self.folder))


@functools.lru_cache(maxsize=8)
def _builder(folder: "AnyPath") -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder_from_directory(os.fspath(local_folder(folder)))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} is no dataset that TensorFlow Datasets reads ({str(error)[:200]}).") from None
    kind = builder.info.file_format
    if kind is not None and kind.value != "array_record":
        raise ValueError(f"{folder} is written as {kind.value}, which is not read at random; prepare it with "
                         "file_format='array_record'.")
    return builder


def _row(record: Record) -> Row:
    subjects = []
    for number, word in enumerate(record.words):
        mask, box = record.masks.get(number), record.boxes.get(number)
        mask = None if mask is None else MaskPicture(StoredBytes(f"{record.where}, mask", mask))
        subjects.append(Subject(word, tuple(record.views[record.views[:, 0] == number, 1].tolist()), mask,
                                None if box is None else tuple(box.tolist())))
    pictures = tuple(StoredBytes(f"{record.where}, picture {i}", content) for i, content in enumerate(record.pictures))
    return Row(record.where, pictures, tuple(record.captions), tuple(subjects), record.targets, record.identity,
               None if np.isnan(record.score) else record.score)


def _inner(feature: Any) -> Any:
    return _inner(feature.feature) if isinstance(feature, tfds.features.Sequence) else feature


def _pictures(feature: Any) -> bool:
    return isinstance(_inner(feature), tfds.features.Image)


def _cell(value: Any, feature: Any, where: str) -> Any:
    """A feature's value with its pictures as stored ones."""
    if isinstance(feature, tfds.features.Sequence):
        return [_cell(x, feature.feature, where) for x in value]
    if isinstance(feature, tfds.features.Image):
        return StoredBytes(where, value)
    if isinstance(feature, tfds.features.BBoxFeature):
        top, left, bottom, right = np.asarray(value).tolist()
        return _Share([left, top, right, bottom])
    value = value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()
    return value.decode() if isinstance(value, bytes) else value


class _Share(list):
    """A box in parts of the picture, as TFDS keeps it."""


def _in_pixels(given: dict[str, Any]) -> dict[str, Any]:
    box = given.get("box")
    if isinstance(box, list) and len(box) == 1 and isinstance(box[0], _Share):  # of one object
        box = box[0]
    if not isinstance(box, _Share):
        return given
    height, width = size_of(given["target"].read(), given["target"].name)
    return given | {"box": [x * side for x, side in zip(box, (width, height, width, height), strict=True)]}


def _no_name(name: str) -> Stored:
    raise ValueError(f"a picture is the text {name[:80]!r}; expected a feature of the type Image")
