"""Parquet files, as Hugging Face's `datasets` writes them: pictures lie in a column's cells. A row group is a part."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from realcustom_jax.data.rows import Row, Stored, StoredFile
from realcustom_jax.data.sources.contents import digest_of_files, is_file
from realcustom_jax.data.sources.parts import BrokenRow
from realcustom_jax.data.sources.schema import Naming, row_of
from realcustom_jax.data.sources.tables import StoredBytes, Table
from realcustom_jax.errors import needs_extra, sentence
from realcustom_jax.paths import as_path, joined

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_AT_ONCE = 8  # rows in memory
_READERS = 16
with needs_extra("parquet", "reading Parquet files"):
    import pyarrow as pa
    import pyarrow.parquet as pq


class _Damaged(Exception):
    """The file cannot be read from here on."""


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """One row group of a file with `count` rows; the first of them is the file's row `first`."""

    file: "AnyPath"
    table: Table
    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.file.name}, row group {self.number}"

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        number = self.first
        find = functools.partial(_find, self.file.parent)
        try:
            for cells in self._cells():
                where = f"{self.file.name} row {number}"
                number += 1
                try:
                    given = {name: _cell(cell, f"{where}, {name}") for name, cell in cells.items()}
                    yield row_of(self.table.described(given), where, find)
                except (ValueError, OSError) as error:
                    yield BrokenRow(where, str(error))
        except _Damaged as damage:
            for lost in range(number, self.first + self.count):
                yield BrokenRow(f"{self.file.name} row {lost}", f"the file is damaged at row {number} ({damage}), and "
                                "nothing after it can be read in this row group; copy the file again")

    def _cells(self) -> Iterator[dict[str, Any]]:
        with self.file.open("rb") as opened:
            try:
                with pq.ParquetFile(opened) as tables:
                    for batch in tables.iter_batches(_AT_ONCE, [self.number], columns=self.table.columns):
                        yield from batch.to_pylist()
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno:  # of the disk or the network; Arrow's own have no number
                    raise
                raise _Damaged(sentence(error)[:200]) from None


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Several files with the same columns."""

    files: "tuple[AnyPath, ...]"
    naming: Naming = Naming()

    @functools.cached_property
    def table(self) -> Table:
        """The columns that are used. Raises ValueError, OSError: there is none of pictures; says which there are."""
        schema = _metadata(self.files[0]).schema.to_arrow_schema()
        return Table.of(schema.names, self.naming, _class_names(schema), os.fspath(self.files[0]))

    def check(self) -> None:
        """Raises ValueError, OSError: a file cannot be read, or has no column of pictures; says which it has."""
        self.table  # noqa: B018

    def parts(self) -> Sequence[RowGroup]:
        """See `Source.parts`."""
        found = []
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # a bucket answers late, and many at once
            metadata_of_files = list(pool.map(_metadata, self.files))
        for file, metadata in zip(self.files, metadata_of_files, strict=True):
            if missing := set(self.table.columns) - set(metadata.schema.to_arrow_schema().names):
                raise ValueError(f"{file} has no column {sorted(missing)[0]!r}, which {self.files[0].name} has.")
            first = 0
            for number in range(metadata.num_row_groups):
                count = metadata.row_group(number).num_rows
                found.append(RowGroup(file, self.table, number, first, count))
                first += count
        return found

    def identity(self, seen: "AnyPath") -> str:
        """See `Source.identity`."""
        return hashlib.sha256(f"parquet {self.naming} {digest_of_files(self.files, seen)}".encode()).hexdigest()[:16]


def _metadata(file: "AnyPath") -> pq.FileMetaData:
    try:
        with file.open("rb") as opened:
            return pq.read_metadata(opened)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is no whole Parquet file ({error}): copy it again.") from None


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names of numbered classes, as `datasets` notes them, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(map(str, about["names"])) for name, about in features.items()
                if isinstance(about, dict) and about.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _cell(cell: Any, where: str) -> Any:
    """A cell with its pictures as stored ones."""
    if isinstance(cell, bytes):
        return StoredBytes(where, cell)
    if isinstance(cell, dict) and "bytes" in cell:
        return StoredBytes(where, cell["bytes"]) if cell["bytes"] is not None else cell.get("path")
    if isinstance(cell, dict):
        return {name: value if isinstance(value, bytes) else _cell(value, where) for name, value in cell.items()}
    if isinstance(cell, list):
        return [_cell(value, where) for value in cell]
    return cell


def _find(folder: "AnyPath", name: str) -> Stored:
    path = joined(folder, name)
    if not is_file(path):
        raise ValueError(f"the cell holds no picture but the name {name!r}, and the file {path} does not exist")
    return StoredFile(as_path(path))
