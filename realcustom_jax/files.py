"""Files that are written whole or not at all, and folders that have one user at a time; on disks and in buckets."""

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from realcustom_jax.errors import sentence
from realcustom_jax.paths import file_system, is_bucket, listing, reaching

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LEFTOVER = re.compile(r"\.(.+\.[a-z]+)\.[a-z0-9_]{8}")  # the temporary name of a file


def write_file(path: "AnyPath", content: bytes, *, mode: int = 0o644) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed. `mode`: who may read it.

    In a bucket, where an object appears only when all of it has come, it is written under its own name.
    """
    if is_bucket(path):
        with reaching(path):
            file_system(path).pipe_file(os.fspath(path), content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def clear_leftovers(folder: "AnyPath", of: Collection[str] | None = None) -> None:
    """Takes away what a process that was killed within `write_file` has left in a folder: of any file, or of those with
    these names alone, where other processes may be writing theirs."""
    for file in listing(folder, ".*"):
        found = _LEFTOVER.fullmatch(file.name)
        if found and (of is None or found[1] in of):
            file.unlink()


def file_digest(path: Path) -> str:
    """SHA-256 of a local file's content, read in pieces."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_json(path: "AnyPath", value: Mapping[str, Any]) -> None:
    """Writes indented JSON, whole or not at all."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of an opened .npz file.

    Raises:
        ValueError: it is damaged. For that, zipfile, zlib and NumPy raise many kinds: a bit of a header may ask for a
            password, or for more memory than there is. OSError: the disk cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"it is no whole .npz file ({sentence(error)[:200] or type(error).__name__})") from None


@contextlib.contextmanager
def sole_user(folder: "AnyPath"):
    """Holds the folder for this process; raises BlockingIOError that names it if another one does.

    It is the operating system's lock on the folder itself: it ends with its process, however that ends, and leaves no
    file behind. Where there are no such locks (Windows, some network file systems, buckets) it does nothing.
    """
    with _held(folder, folder, shared=False):
        yield


@contextlib.contextmanager
def user_of_share(folder: "AnyPath", number: int, of: int):
    """The same for one of several processes, each of which works at a share of its own in the folder: it keeps out a
    second process of this share, and whoever wants the folder alone. `of` 1 is `sole_user`.

    The share's own lock is on `.shares/NUMBER-of-OF` in the folder, which stays.
    """
    if of == 1 or is_bucket(folder):
        with sole_user(folder):
            yield
        return
    own = Path(folder) / ".shares" / f"{number}-of-{of}"
    own.mkdir(parents=True, exist_ok=True)
    with _held(folder, folder, shared=True), _held(own, f"Share {number}/{of} of {folder}", shared=False):
        yield


@contextlib.contextmanager
def _held(folder: "AnyPath", what: "AnyPath | str", *, shared: bool):
    """Locks a folder against all others, or, `shared`, against those that want it alone; `what` the sentence names."""
    if fcntl is None or is_bucket(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{what} is in use by another run that is still going on; wait for it to end, or "
                                  "choose another folder.") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
