"""Paths of disks and of buckets: `gs://bucket/…` and `s3://bucket/…` beside those of the operating system.

`as_path` makes one of a text: a `pathlib.Path`, or the `etils.epath.Path` of a bucket, which has the same methods. What
a bucket does otherwise than a disk is here and in module `files`: objects appear whole when they are written, there are
no folders but what objects' names share, nothing is renamed or locked, and reading costs a request. What is read often,
or by a library that knows files alone, is read from `local_copy`, the copy that a host keeps of it.

Neither etils nor fsspec is imported before a path of a bucket is used.
"""

import contextlib
import errno
import fnmatch
import hashlib
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from realcustom_jax.errors import needs_extra, quoted, sentence

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "REALCUSTOM_BUCKET_CACHE"
"""The environment's variable that names the folder of local copies."""
_CACHE = Path("~/.cache/realcustom_jax/buckets")
_EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # scheme → extra that brings it, package
_BUCKETS = tuple(f"{scheme}://" for scheme in _EXTRAS)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")  # of two letters or more: C:\ is a drive
_LARGE = 2**26  # bytes from which on copying shows how far it is
_VERSION = ("generation", "etag", "ETag", "VersionId", "md5Hash", "updated", "LastModified")
"""What file systems call the version of an object. It follows the content, or at least the write."""


def is_bucket(path: "str | os.PathLike[str]") -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def as_path(text: "str | os.PathLike[str]") -> "AnyPath":
    """The path that a text names, on the disk or in a bucket. Nothing is looked up.

    Raises:
        ValueError: a scheme other than gs:// and s3://, a bucket without its name, or the package that reaches such
            buckets is not installed; says what was expected.
    """
    text = os.fspath(text)
    found = _SCHEME.match(text)
    if not found or (not found[2] and found[1].lower() not in _EXTRAS):
        return Path(text)
    scheme, rest = found[1].lower(), text[found.end():]
    if scheme not in _EXTRAS:
        if os.path.lexists(text):  # a file of a disk may be called so
            return Path(text)
        raise ValueError(f"{quoted(text)} has the scheme {scheme}:, which is not supported: a path is a file or a "
                         "folder of this machine, gs://bucket/… or s3://bucket/….")
    if found[1] != scheme or found[2] != "//" or not re.match(r"[a-z0-9][a-z0-9_.-]*(/|$)", rest):
        raise ValueError(f"{quoted(text)} is no path in a bucket: write {scheme}://bucket/folder, in small letters "
                         "and with two slashes, then the bucket's name.")
    _check_installed(scheme)
    return _epath().Path(text)


def _check_installed(scheme: str) -> None:
    extra, package = _EXTRAS[scheme]
    with needs_extra(extra, f"a path that begins with {scheme}://"):
        _epath()
        __import__(package)


def _epath():
    # epath takes TensorFlow's file systems where TensorFlow is installed; these know no s3, and list otherwise.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # TensorStore, which writes Orbax's arrays, has a name of its own for the address of an emulator.
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
    import fsspec
    from etils import epath

    for client in ("gcsfs", "s3fs"):  # what they log, with tracebacks, is raised too, and told in a sentence
        if (logger := logging.getLogger(client)).level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    for protocol in ("gs", "gcs", "s3"):  # a listing that is kept would not show what another process writes
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath


def file_system(path: "AnyPath") -> Any:
    """The fsspec file system of a path in a bucket; of this process, also where that was forked."""
    _epath()
    import fsspec

    return fsspec.filesystem(os.fspath(path).partition("://")[0])


@contextlib.contextmanager
def reaching(path: "AnyPath") -> Iterator[None]:
    """Around what asks a bucket: OSError, in one sentence that names the path, for whatever its client raises.

    FileNotFoundError stays what it is. The clients raise many kinds: no credentials, no permission, no network.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)} does not exist.") from None
    except Exception as error:
        if not is_bucket(path):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"The disk of {cache_folder()} is full, so that {os.fspath(path)} cannot be copied to it; "
                          f"make room, or name another folder by {CACHE_VARIABLE}.") from None
        raise OSError(f"{os.fspath(path)} cannot be reached ({sentence(error)[:300] or type(error).__name__}); are the "
                      "bucket's name, your credentials and their permissions right (docs/training/buckets.md)?"
                      ) from error


def beside(folder: "AnyPath", name: str) -> "AnyPath":
    """What a file in `folder` calls `name`: a path from there on, or a whole one, of a disk or in a bucket. Raises as
    `as_path`."""
    path = as_path(name)
    return path if is_bucket(path) else as_path(joined(folder, name))


def joined(folder: "str | os.PathLike[str]", name: str) -> str:
    """`beside` as a text, quickly and without looking at the scheme."""
    if is_bucket(name) or not is_bucket(folder):
        return name if is_bucket(name) else os.path.join(folder, name)
    scheme, _, place = os.fspath(folder).partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join('/', place, name)).lstrip('/')}"  # a bucket knows no ".."


def absolute(path: "AnyPath") -> "AnyPath":
    """The path from the root on; that of a bucket, whose own `absolute()` would put it under the working directory, is
    already."""
    return path if is_bucket(path) else Path(path).absolute()


def check_reachable(path: "AnyPath") -> None:
    """Raises OSError, in one sentence, where a path lies in a bucket that cannot be read."""
    if is_bucket(path):
        bucket = "/".join(os.fspath(path).split("/")[:3])
        with reaching(path):
            there = file_system(path).exists(os.fspath(path)) or file_system(path).exists(bucket)
        if not there:
            raise FileNotFoundError(f"{os.fspath(path)}: there is no bucket {bucket}, or your credentials do not see "
                                    "it.")


def make_folder(path: "AnyPath") -> None:
    """Makes a folder with those above it; in a bucket there is nothing to make."""
    if not is_bucket(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def listing(folder: "AnyPath", pattern: str = "*") -> "list[AnyPath]":
    """What lies directly in a folder and has a name that fits, sorted; empty where there is no such folder."""
    if not is_bucket(folder):
        return sorted(path for path in Path(folder).glob("*") if fnmatch.fnmatchcase(path.name, pattern))
    try:
        with reaching(folder):
            found = file_system(folder).ls(os.fspath(folder), detail=False)
    except FileNotFoundError:
        return []
    names = sorted({name.rstrip("/").rpartition("/")[2] for name in found})
    # The object that some consoles make for an empty folder is listed with the folder's own name.
    itself = {name for name in names if f"{_key(folder)}/{name}" not in {name.rstrip("/") for name in found}}
    return [folder / name for name in names if name not in itself and fnmatch.fnmatchcase(name, pattern)]


def remove_tree(path: "AnyPath") -> None:
    """Removes a folder with everything in it, or a file; nothing where there is none."""
    if not is_bucket(path):
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
        return
    with reaching(path), contextlib.suppress(FileNotFoundError):
        file_system(path).rm(os.fspath(path), recursive=True)


def object_version(about: dict[str, Any]) -> list[Any]:
    """Of what a file system says of an object: its size, and what is another one when it is written anew."""
    return [about.get("size"), *(str(about[key]) for key in _VERSION if about.get(key))]


def local_copy(path: "AnyPath", *beside: str) -> Path:
    """A file of this machine with the content of `path`: the path itself on a disk; of an object in a bucket, the copy
    that this host keeps, which is made at the first call and anew when the object has changed.

    Every call asks for the object's version, one request. Several processes may call it at once: one copies, the others
    wait. A copy has the object's name, so that its suffix is kept.

    Args:
        beside: names of files in the same folder that are copied along, where they are there.
    Raises:
        FileNotFoundError: there is no such object. OSError: the bucket cannot be reached, or the disk is full.
    """
    if not is_bucket(path):
        return Path(path)
    files = {}
    for name in (path.name, *beside):
        with reaching(path) if name == path.name else contextlib.suppress(FileNotFoundError):
            files[name] = file_system(path).info(os.fspath(path.parent / name))
    if files[path.name].get("type") == "directory":
        raise IsADirectoryError(f"{os.fspath(path)} is a folder; expected a file.")
    return _snapshot(path.parent, files) / path.name


def local_folder(path: "AnyPath", chosen: Callable[[Collection[str]], Collection[str]] = lambda names: names) -> Path:
    """The same of a folder with everything below it.

    Args:
        chosen: gives those of the files' names, relative to the folder and with slashes, that are copied.
    Raises:
        FileNotFoundError: nothing there. OSError: as `local_copy`.
    """
    if not is_bucket(path):
        return Path(path)
    with reaching(path):
        found = file_system(path).find(os.fspath(path), detail=True)
    start = _key(path) + "/"
    files = {name.removeprefix(start): about for name, about in found.items() if name.startswith(start)}
    names = chosen([name for name in files if name and not name.endswith("/")])
    files = {name: files[name] for name in sorted(names)}
    if not files:
        raise FileNotFoundError(f"{os.fspath(path)} does not exist.")
    return _snapshot(path, files)


def host_folder(path: "AnyPath") -> Path:
    """A folder of this host to work in for what belongs to a folder that may be in a bucket: of a disk the folder
    itself. What stands there is this host's alone, and can be made again."""
    return cache_folder() / "work" / _in_cache(path) if is_bucket(path) else Path(path)


def _in_cache(path: "AnyPath") -> str:
    scheme, _, key = os.fspath(path).partition("://")
    return f"{scheme}/{key}"


def _key(path: "AnyPath") -> str:
    return os.fspath(path).partition("://")[2].rstrip("/")


def cache_folder() -> Path:
    """Where this host keeps copies of what lies in buckets."""
    return Path(os.environ.get(CACHE_VARIABLE) or _CACHE).expanduser()


def _snapshot(folder: "AnyPath", files: dict[str, dict[str, Any]]) -> Path:
    """A local folder with these files of a folder in a bucket, relative name → what the bucket says of it.

    Its name is made of the versions of all files, so that it never changes once it is there.
    """
    versions = [(name, *object_version(about)) for name, about in sorted(files.items())]
    digest = hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
    place = cache_folder() / _in_cache(folder) / f"@{digest}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.partial")
    with _alone(place.with_name(f"{place.name}.lock")):
        if not place.is_dir():
            sizes = {name: about.get("size") or 0 for name, about in files.items()}
            total = sum(sizes.values())
            with tqdm(total=total, desc=f"copying {os.fspath(folder)}", unit="B", unit_scale=True, leave=False,
                      disable=total < _LARGE) as bar:
                for name, size in sizes.items():
                    if not (partial / name).is_file():  # an earlier process may have been ended before it had all
                        download(folder / name, partial / name, size)
                    bar.update(size)
            partial.replace(place)
    return place


def download(path: "AnyPath", target: Path, size: int | None = None) -> None:
    """Copies an object of a bucket to a file, whole or not at all. Raises OSError where it does not come, or not with
    `size` bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with reaching(path):
            file_system(path).get_file(os.fspath(path), str(temporary))
        if size is not None and temporary.stat().st_size != size:
            raise OSError(f"{os.fspath(path)} came with {temporary.stat().st_size} bytes of {size}: it was changed "
                          "meanwhile, or the connection broke; run the same command again.")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process of this host at a time; where the system has no such locks, each does the work for itself."""
    with open(file, "w") as opened:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield
