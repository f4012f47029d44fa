"""A finished dataset: a folder of ArrayRecord shards with the index of all their rows (module `build` makes it)."""

import collections
import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from realcustom_jax.data.index import Index
from realcustom_jax.data.records import Record, read_record
from realcustom_jax.data.shards import shard_name
from realcustom_jax.errors import sentence
from realcustom_jax.files import read_npz
from realcustom_jax.paths import as_path, is_bucket, listing, local_copy

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

FORMAT = 1
"""Changes when a dataset that was written before cannot be read any more."""
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 2**16  # bytes; a record is larger, and then read past the buffer
_OPEN = 128  # shards that a process keeps open


@dataclasses.dataclass(frozen=True)
class About:
    """What a dataset says of itself before it is finished. side: of the targets, where a reader is told none."""

    identity: str
    shards: int
    side: int = 1024
    format: int = FORMAT


def read_about(folder: "AnyPath") -> About | None:
    """What the dataset in a folder says of itself; None where there is no dataset, finished or not.

    Raises ValueError: it is damaged, or of another version of this program.
    """
    file = folder / "identity.json"
    try:
        found: Any = json.loads(file.read_bytes())
        version = found["format"]
        if version == FORMAT:
            return About(**found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{file}, which says of which pictures the dataset there is, is damaged: delete the folder "
                         "and build it again.") from None
    raise ValueError(f"The dataset in {folder} has the format {version}, and this version of realcustom_jax reads "
                     f"{FORMAT}: build it again, into another folder.")


class Mixed:
    """The rows of several datasets, one dataset after the other, as if they were one's."""

    def __init__(self, datasets: Sequence["Dataset"]):
        self.lengths = [len(dataset) for dataset in datasets]
        self.index = Index.concatenate([dataset.index for dataset in datasets])
        self._datasets, self._ends = tuple(datasets), np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.index)

    def record(self, row: int) -> Record:
        """See `Dataset.record`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._datasets[number].record(row - int(self._ends[number] - self.lengths[number]))


class Dataset:
    """Random access to the rows of a finished dataset: `len(dataset)`, `dataset.record(i)`.

    Opening it reads the index and no record. Each process opens the shards that it reads from when it needs them, so a
    dataset can be sent to worker processes; several threads may read at once.

    Args:
        folder: of the dataset, on a disk or in a bucket.
    Attributes:
        index: of all rows. identity: of their content, wherever it lies. side: the default of its targets' side.
    Raises:
        FileNotFoundError: there is no dataset, it is not finished, or a shard is missing.
        ValueError: it is damaged, or of another version.
    """

    def __init__(self, folder: "str | os.PathLike | AnyPath"):
        self.folder = as_path(folder)
        about = read_about(self.folder)
        if about is None:
            raise FileNotFoundError(f"There is no dataset in {self.folder}; build one first.")
        self.identity, self.side = about.identity, about.side
        unfinished = (f"The dataset in {self.folder} is not finished; give the command that builds it again, and it "
                      "goes on.")
        file = self.folder / "index.npz"
        try:
            with local_copy(file).open("rb") as opened:
                arrays = read_npz(opened)
            self.index, rows, sizes = Index.of_arrays(arrays), arrays["shard_rows"], arrays["shard_sizes"]
        except FileNotFoundError:
            raise FileNotFoundError(unfinished) from None
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({sentence(error)}); give the command that builds the dataset again, "
                             "and it is mended.") from None
        self._starts = np.concatenate([[0], np.cumsum(rows)])
        self._shards = [shard_name(number, len(rows)) for number in range(len(rows))]
        self._check(sizes)
        self._begin()

    def __len__(self) -> int:
        return len(self.index)

    def record(self, row: int) -> Record:
        """The record of a row, 0 … len − 1; its pictures are not decoded.

        Raises:
            IndexError: there is no such row. ValueError: its shard is damaged; says which.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a dataset of {len(self)}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        try:
            (content,) = self._reader(number).read([int(row - self._starts[number])])
            return read_record(content)
        except (RuntimeError, IndexError, KeyError) as error:
            raise ValueError(
                f"The shard {self.folder / self._shards[number]} is damaged ({sentence(error)}); build the dataset "
                "again, and it alone is written anew.") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def _reader(self, number: int) -> ArrayRecordReader:
        if self._process != os.getpid():  # a fork has the same files open at the same position
            self._begin()
        with self._lock:
            reader = self._readers.pop(number, None)
            if reader is None:
                path = local_copy(self.folder / self._shards[number])
                reader = ArrayRecordReader(str(path), _OPTIONS, file_reader_buffer_size=_BUFFER)
                if len(self._readers) >= _OPEN:
                    self._readers.popitem(last=False)  # closed when no thread reads from it any more
            self._readers[number] = reader
        return reader

    def _check(self, sizes: np.ndarray) -> None:
        """That all shards are there, and as long as they were."""
        if is_bucket(self.folder):  # one request; when a shard is fetched, its length is compared anyway
            there = {path.name for path in listing(self.folder)}
            missing = [name for name in self._shards if name not in there]
        else:
            found = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
            missing = [name for name, size in zip(self._shards, sizes, strict=True) if found.get(name) != size]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of the {len(self._shards)} shards of the dataset in {self.folder} "
                                    f"are missing or cut off, such as {missing[0]}; give the command that builds it "
                                    "again, and they alone are written anew.")
