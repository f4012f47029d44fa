"""What a folder of pictures says about itself: manifest.jsonl, a JSON object on each line.

    {"target": "a.jpg", "caption": "a toy in the jungle", "word": "toy", "reference": "b.jpg"}
    {"target": "c.jpg", "caption": "a dog on a sofa", "word": "dog", "mask": "c-dog.png"}
    {"target": "d.jpg", "caption": "a red car", "word": "car", "box": [40, 60, 300, 220]}

docs/training/data.md describes all keys. Files are relative to the manifest's folder. A large one may be cut into
manifest-00000.jsonl, manifest-00001.jsonl …
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from realcustom_jax.data.rows import Row, Stored, StoredFile
from realcustom_jax.data.sources.contents import digest, is_file, stored_size
from realcustom_jax.data.sources.parts import BrokenRow, part_count
from realcustom_jax.data.sources.schema import Naming, named_pictures, row_of
from realcustom_jax.paths import as_path, joined, listing

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_SAMPLED = 64  # rows by whose pictures the size of all is guessed
_BLOCK = 2**24


@dataclasses.dataclass(frozen=True)
class Lines:
    """Some lines of a manifest: `count` from byte `start` on, the first of them the line `number`."""

    file: "AnyPath"
    naming: Naming
    start: int
    number: int
    count: int
    alone: bool

    @property
    def name(self) -> str:
        return f"{self.file.name}, lines {self.number} to {self.number + self.count - 1}"

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        for number, line in _lines(self.file, self.start, self.number, self.count):
            where = f"line {number}" if self.alone else f"{self.file.name} line {number}"
            try:
                given = self.naming.with_word(self.naming.renamed(_parsed(line)))
                yield row_of(given, where, functools.partial(_find, self.file.parent))
            except (ValueError, OSError) as error:
                yield BrokenRow(where, str(error))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One manifest, or several that follow each other."""

    files: tuple[...]
    naming: Naming = Naming()

    def parts(self) -> Sequence[Lines]:
        """See `Source.parts`."""
        found = []
        for file in self.files:
            starts = _starts(file)
            rows = len(starts) - 1
            count = part_count(_bytes(file, self.naming, starts), rows) if rows else 0
            cuts = np.linspace(0, rows, count + 1).round().astype(int).tolist()
            found += [Lines(file, self.naming, int(starts[low]), low + 1, high - low, len(self.files) == 1)
                      for low, high in itertools.pairwise(cuts)]
        return found

    def identity(self, seen: "AnyPath") -> str:
        """See `Source.identity`."""
        total = hashlib.sha256(repr(self.naming).encode() if self.naming != Naming() else b"")
        for file in self.files:
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
        total.update(digest(self.files[0].parent, self._names(), seen).encode())
        return total.hexdigest()[:16]

    def _names(self) -> Iterator[str]:
        for file in self.files:
            for _, line in _lines(file, 0, 1, None):
                try:
                    yield from named_pictures(self.naming.renamed(_parsed(line)))
                except ValueError:  # a broken row, which its part will say
                    continue


def manifests(folder: "AnyPath") -> "list[AnyPath]":
    """The manifest of a folder, or those that it is cut into."""
    return listing(folder, "manifest.jsonl") or listing(folder, "manifest-*.jsonl")


def _lines(file: "AnyPath", start: int, number: int, count: int | None) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the lines that are not empty."""
    with file.open("rb") as opened:
        opened.seek(start)
        for line in itertools.islice(opened, count):
            if line.strip():
                yield number, line
            number += 1


def _starts(file: "AnyPath") -> np.ndarray:
    """Where each line starts, and where the last one ends, in bytes."""
    ends, read = [], 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + read + 1)
            read += len(block)
    starts = np.concatenate([[0], *ends]).astype(np.int64)
    return starts if starts[-1] == read else np.append(starts, read)


def _bytes(file: "AnyPath", naming: Naming, starts: np.ndarray) -> float:
    """About how much the pictures of all rows are, by some of them."""
    rows = len(starts) - 1
    sizes = []
    with file.open("rb") as opened:
        for row in np.unique(np.linspace(0, rows - 1, _SAMPLED).astype(int)):
            opened.seek(int(starts[row]))
            try:
                given = naming.renamed(_parsed(opened.read(int(starts[row + 1] - starts[row]))))
            except ValueError:
                continue
            sizes.append(sum(stored_size(file.parent, name) for name in named_pictures(given)))
    return rows * sum(sizes) / max(len(sizes), 1)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # of JSON, of its encoding, of its depth
        raise ValueError(f"it is not JSON ({error})") from None


def _find(folder: "AnyPath", name: str) -> Stored:
    path = joined(folder, name)
    if not is_file(path):
        raise ValueError(f"the file {path} does not exist")
    return StoredFile(as_path(path))
