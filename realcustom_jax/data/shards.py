"""One shard of a dataset: a part's rows as an ArrayRecord file, and the marker that says that the file is whole.

A marker is written after its shard. It holds the shard's size and hash, the part of the index for its rows, and a
sentence for each row that could not be used. What a marker says of a shard that is not as it was written is not
believed, and the shard is written again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from realcustom_jax.data.index import Index
from realcustom_jax.data.records import Entry, write_record
from realcustom_jax.data.rows import Row
from realcustom_jax.data.sources.parts import BrokenRow
from realcustom_jax.disk import enough_disk, is_full
from realcustom_jax.errors import sentence
from realcustom_jax.files import read_npz, write_file
from realcustom_jax.paths import file_system, is_bucket, object_version, reaching

if TYPE_CHECKING:
    from realcustom_jax.data.sources import Part
    from realcustom_jax.paths import AnyPath

# One record in a group, so that a row is read alone; pictures are compressed already.
_OPTIONS = "group_size:1,uncompressed"
_AT_ONCE = 16
_ENTRIES = 4096  # of the index as objects, which take ten times the memory of its arrays


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the shard with a number lies in the dataset's folder, and of which dataset it is."""

    folder: "AnyPath"
    number: int
    shards: int
    identity: str

    @property
    def shard(self) -> "AnyPath":
        return self.folder / shard_name(self.number, self.shards)

    @property
    def marker(self) -> "AnyPath":
        return self.folder / "done" / f"{self.number:05d}.npz"


@dataclasses.dataclass(frozen=True)
class Marker:
    """What is known of a shard that is whole. `broken`: a sentence for each row that could not be used."""

    index: Index
    size: int
    broken: tuple[str, ...]


def shard_name(number: int, shards: int) -> str:
    """TFDS's name of a shard."""
    return f"realcustom-train.array_record-{number:05d}-of-{shards:05d}"


def write_part(part: "Part", place: Place, scratch: Path, on_row: Callable[[], None] = lambda: None) -> None:
    """Writes the shard of a part, and then its marker.

    Args:
        scratch: a folder of this machine for the file that is being written; on the dataset's own disk, if that is one.
        on_row: is called after each row.
    Raises:
        OSError: the shard cannot be written, as the disk is full. Neither it nor its marker is there then.
    """
    index, entries, broken = [Index.of([])], [], []
    temporary = scratch / place.shard.name
    with _writing(place):
        writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    try:
        for row in part.rows():
            made = _record(row)
            if isinstance(made, str):
                broken.append(made)
            else:
                with _writing(place):
                    writer.write(made[0])
                entries.append(made[1])
                if len(entries) == _ENTRIES:
                    index.append(Index.of(entries))
                    entries.clear()
            on_row()
        with _writing(place):
            writer.close()
            with open(temporary, "r+b") as file:
                digest = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
                os.fsync(file.fileno())  # what the marker says has to hold after a loss of power too
            size = temporary.stat().st_size
            if is_bucket(place.shard):
                with reaching(place.shard):
                    file_system(place.shard).put_file(str(temporary), os.fspath(place.shard))
            else:
                place.shard.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, place.shard)
            whole = Index.concatenate([*index, Index.of(entries)])
            _write_marker(place, whole, {"size": size, "hash": digest, "broken": broken})
    finally:
        with contextlib.suppress(RuntimeError):  # of a disk that was full before
            if writer.is_open():
                writer.close()
        temporary.unlink(missing_ok=True)


def read_marker(place: Place) -> Marker | None:
    """What the marker of a shard says, or None if it is not there, or is not that of the shard which lies there.

    The shard is read only if its times say that it may have been changed, or copied, since it was looked at.
    """
    try:
        with place.marker.open("rb") as file:
            arrays = read_npz(file)
        about, index = json.loads(str(arrays["about"])), Index.of_arrays(arrays)
        if about["identity"] != place.identity or about["number"] != [place.number, place.shards]:
            return None
        state = _state(place.shard)
        if about["size"] != state[0]:
            return None
        if about["state"] != state:
            with place.shard.open("rb") as file:
                if hashlib.file_digest(file, hashlib.blake2b).hexdigest() != about["hash"]:
                    return None
            with contextlib.suppress(OSError):  # it is read again at the next start, if it cannot be noted
                _write_marker(place, index, about)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Marker(index, about["size"], tuple(about["broken"]))


def read_markers(folder: "AnyPath", shards: int, identity: str) -> list[Marker | None]:
    """`read_marker` of every shard of a dataset. Several are read at once, as each takes requests to a bucket."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(read_marker, (Place(folder, number, shards, identity) for number in range(shards))))


def _record(row: Any) -> tuple[bytes, Entry] | str:
    """A row as a record with its entry, or the sentence that says why it cannot be used."""
    if not isinstance(row, Row):
        return sentence(row)
    try:
        return write_record(row)
    except (OSError, ValueError) as error:
        return sentence(BrokenRow(row.where, str(error)))


def _write_marker(place: Place, index: Index, about: dict[str, Any]) -> None:
    about = about | {"identity": place.identity, "number": [place.number, place.shards], "state": _state(place.shard)}
    write_file(place.marker, index.to_bytes(about=np.array(json.dumps(about))))


def _state(path: "AnyPath") -> list[Any]:
    """The size of a file, and what changes when it is written anew."""
    if is_bucket(path):
        with reaching(path):
            return object_version(file_system(path).info(os.fspath(path)))
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


@contextlib.contextmanager
def _writing(place: Place):
    """One sentence for what goes wrong while a shard is written; ArrayRecord raises RuntimeError."""
    with enough_disk(place.folder):
        try:
            yield
        except (OSError, RuntimeError) as error:
            if is_full(error):
                raise
            reason = getattr(error, "strerror", None) or sentence(error).partition("; ")[0]
            raise OSError(f"The shard {place.shard} cannot be written ({reason}). What was finished is kept: mend what "
                          "is in the way, and run the same command again.") from error
