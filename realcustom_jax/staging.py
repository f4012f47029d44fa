"""Folders of a bucket that are written by what knows files alone: TensorBoard, lines that are added to a file, arrays
that are filled in any order, and Orbax's checkpoints.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realcustom_jax.paths import cache_folder, download, file_system, is_bucket, reaching

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


_WHOLE = "whole.txt"


class Staging:
    """A folder of this host, `local`, whose files are copied to `folder` when `upload` is called; a context manager, at
    whose end it is removed. On a disk `local` is the folder itself, and nothing is copied or removed.

    Args:
        folder: of a disk or of a bucket.
        begin_with: names of files that `local` begins with, where the bucket holds them; else it is empty at first.
        process: the number of this process, where several of a host may stage the same folder.
    """

    def __init__(self, folder: "AnyPath", *begin_with: str, process: int = 0):
        self.folder, self._bucket = folder, is_bucket(folder)
        self._sent: dict[str, tuple[int, int]] = {}
        self._last = float("-inf")
        self.local = Path(folder)
        if self._bucket:
            name = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16]
            self.local = cache_folder() / "staging" / f"{name}-{process}"
            shutil.rmtree(self.local, ignore_errors=True)  # what a killed run has left
            self.local.mkdir(parents=True)
            for name in begin_with:
                with contextlib.suppress(FileNotFoundError):
                    self.fetch(name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Removes the folder of this host; what was not uploaded is lost."""
        if self._bucket:
            shutil.rmtree(self.local, ignore_errors=True)

    def fetch(self, name: str) -> None:
        """Copies a file of the bucket to `local`. Raises FileNotFoundError where there is none."""
        if self._bucket:
            download(self.folder / name, self.local / name)
            self._sent[name] = _state(self.local / name)

    def upload(self, part: str = "", *, but: str = "", every: float = 0.0) -> None:
        """Copies the files that are new or have changed, each whole or not at all.

        Args:
            part: a file or a folder in `local`, which alone is looked at; "": all of it.
            but: files of this name right in `part` are left out.
            every: nothing is done where the last call that copied was less than so many seconds ago.
        Raises:
            OSError: the bucket cannot be written.
        """
        if not self._bucket or time.monotonic() < self._last + every:
            return
        self._last = time.monotonic()
        top = self.local / part
        left_out = {top / but} if but else set()
        for file in sorted(file for file in {top, *top.rglob("*")} - left_out if file.is_file()):
            name, state = file.relative_to(self.local).as_posix(), _state(file)
            if self._sent.get(name) != state:
                with reaching(self.folder / name):
                    file_system(self.folder).put_file(str(file), os.fspath(self.folder / name))
                self._sent[name] = state


@contextlib.contextmanager
def staged(folder: "AnyPath", *begin_with: str, process: int = 0) -> Iterator[Staging]:
    """A `Staging` of which everything is uploaded at the end, whichever way that comes."""
    with Staging(folder, *begin_with, process=process) as staging:
        try:
            yield staging
        finally:
            staging.upload()


@contextlib.contextmanager
def whole_folder(folder: "AnyPath") -> Iterator[Path]:
    """A new folder of this host that becomes `folder` when the block ends well, and nothing when it does not: it is
    renamed or, into a bucket, copied with the object last by which `is_whole` knows it."""
    if is_bucket(folder):
        with Staging(folder) as staging:
            yield staging.local
            staging.upload()
            file_system(folder).pipe_file(os.fspath(folder / _WHOLE), b"All files of this folder are here.")
        return
    partial = Path(folder).with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run has left
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_whole(folder: "AnyPath") -> bool:
    """Whether `whole_folder` has finished a folder."""
    return (folder / _WHOLE).exists() if is_bucket(folder) else folder.is_dir()


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
