"""What files hold, as a hash of each: read once, and again only when their size or one of their times has changed."""

import concurrent.futures
import contextlib
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from realcustom_jax.files import write_file
from realcustom_jax.paths import as_path, file_system, is_bucket, joined, reaching

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_SETTLED = 2 * 10**9  # nanoseconds; some file systems count whole seconds
_WHOLE = 64 * 2**20  # bytes; of a larger file, as a tar, samples are read, because a terabyte cannot be read at a start
_SAMPLES, _SAMPLE = 32, 2**18
_BLOCK = 2**15  # files that are looked at together
_READERS = 8
_UNREADABLE = b"unreadable"
_KNOWN = np.dtype([("name", "<u8"), ("size", "<i8"), ("modified", "<i8"), ("changed", "<i8"), ("content", "S32")])


def digest(root: "AnyPath", names: Iterable[str], seen: "AnyPath") -> str:
    """A hash of the content of all files with these names, relative to `root`; where they lie does not matter.

    A file that is not there counts as such. Of files above 64 MiB, samples are read: their size, both ends and 30
    pieces between. `seen` is a file that keeps what was read, so that a file that is known costs one look at its times.
    """
    known = _read(seen)
    found = []
    for block in _blocks(names):
        found.append(_looked_at(os.fspath(root), block, known))
    found = np.concatenate(found) if found else np.zeros(0, _KNOWN)
    _keep(found, known, seen)
    return hashlib.sha256(found["content"].tobytes()).hexdigest()


def is_file(path: str) -> bool:
    """Whether there is such a file; False for what can be the name of none. Raises OSError: the bucket cannot say."""
    return _state(path)[0] >= 0 if is_bucket(path) else os.path.isfile(path)


def digest_of_files(files: "Sequence[AnyPath]", seen: "AnyPath") -> str:
    """The same of files that are named by their whole paths."""
    paths = [os.fspath(file) for file in files]
    root = os.path.commonprefix(paths).rpartition("/")[0]
    return digest(as_path(root or "/"), (path[len(root) + 1:] for path in paths), seen)


def stored_size(root: "AnyPath", name: str) -> int:
    """Bytes of a file, 0 where it is not there."""
    return max(_state(joined(root, name))[0], 0)


def _blocks(names: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    """(hash of its name, name) of the different files, in their order."""
    block, met = [], set()
    for name in tqdm(names, desc="looking at pictures", unit="file", leave=False, mininterval=1):
        if hash(name) not in met:  # the names themselves would take much memory
            met.add(hash(name))
            content = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            block.append((int.from_bytes(content, "little"), name))
            if len(block) == _BLOCK:
                yield block
                block = []
    if block:
        yield block


def _looked_at(root: str, block: list[tuple[int, str]], known: np.ndarray) -> np.ndarray:
    paths = [joined(root, name) for _, name in block]
    found = np.zeros(len(block), _KNOWN)
    found["name"] = [key for key, _ in block]
    readers = _READERS * (4 if is_bucket(root) else 1)  # a bucket answers late, and many at once
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        states = list(pool.map(_state, paths) if is_bucket(root) else map(_state, paths))
    found["size"], found["modified"], found["changed"] = np.array(states, np.int64).T
    if len(known):
        at = np.minimum(np.searchsorted(known["name"], found["name"]), len(known) - 1)
        same = np.all([known[name][at] == found[name] for name in ("name", "size", "modified", "changed")], axis=0)
        found["content"][same] = known["content"][at[same]]
    unread = np.flatnonzero((found["content"] == b"") & (found["size"] >= 0))
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        found["content"][unread] = list(pool.map(_content, [paths[i] for i in unread], found["size"][unread].tolist()))
    return found


def _state(path: str) -> tuple[int, int, int]:
    """(bytes, when it was written, when it was changed); −1 bytes where there is no such file."""
    try:
        if is_bucket(path):
            with reaching(as_path(path)):
                remote = as_path(path).stat()
            return (remote.length, int(remote.mtime * 10**9), 0) if not remote.is_directory else (-1, 0, 0)
        local = os.stat(path)
    except FileNotFoundError:
        return -1, 0, 0
    except (OSError, ValueError):  # a name that no file can have
        if is_bucket(path):
            raise
        return -1, 0, 0
    return local.st_size, local.st_mtime_ns, local.st_ctime_ns


def _content(path: str, size: int) -> bytes:
    try:
        if size > _WHOLE:
            hashed = hashlib.sha256(str(size).encode())
            for piece in _pieces(path, np.linspace(0, size - _SAMPLE, _SAMPLES).astype(int).tolist()):
                hashed.update(piece)
        else:
            with as_path(path).open("rb") if is_bucket(path) else open(path, "rb") as file:
                hashed = hashlib.file_digest(file, "sha256")
    except OSError:
        if is_bucket(path):
            raise
        return _UNREADABLE  # which the row that names it will say
    return hashed.hexdigest()[:32].encode()


def _pieces(path: str, starts: list[int]) -> Iterator[bytes]:
    if is_bucket(path):
        with reaching(as_path(path)):
            for start in starts:
                yield file_system(as_path(path)).cat_file(path, start=start, end=start + _SAMPLE)
        return
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            yield file.read(_SAMPLE)


@contextlib.contextmanager
def fetched(path: "AnyPath") -> Iterator[Path]:
    """A file on this machine with a file's content: itself, or a copy of an object in a bucket, which is deleted after
    the context. Raises OSError."""
    if not is_bucket(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="realcustom-") as folder:
        with reaching(path):
            file_system(path).get_file(os.fspath(path), os.path.join(folder, path.name))
        yield Path(folder, path.name)


def _read(seen: "AnyPath") -> np.ndarray:
    """What is known, sorted by name; nothing where the file is not there, or damaged."""
    try:
        known = np.load(io.BytesIO(seen.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0, _KNOWN)
    return known if known.dtype == _KNOWN and known.ndim == 1 else np.zeros(0, _KNOWN)


def _keep(found: np.ndarray, known: np.ndarray, seen: "AnyPath") -> None:
    # A file that was written a moment ago may change once more without another time.
    settled = time.time_ns() - np.maximum(found["modified"], found["changed"]) > _SETTLED
    kept = np.sort(found[settled & (found["size"] >= 0) & (found["content"] != _UNREADABLE)], order="name")
    if not np.array_equal(kept, known):
        buffer = io.BytesIO()
        np.save(buffer, kept)
        write_file(seen, buffer.getvalue())
