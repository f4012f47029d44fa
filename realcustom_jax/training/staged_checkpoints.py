"""Checkpoints of one process in a bucket: written on its host, then copied, while training goes on.

Orbax writes to disks. To gs:// it writes too, with all processes at once, and that is used where there are several. To
s3:// it does not write. So a single process lets it write to a folder of its host, whose files are copied to the bucket
in the layout that Orbax gives them; `commit_success.txt`, by which Orbax knows a checkpoint in gs:// as finished, is
the object that is written last. A copy that was interrupted is therefore no checkpoint.
"""

import contextlib
import os
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax

from realcustom_jax.files import write_file
from realcustom_jax.paths import file_system, is_bucket, listing, reaching, remove_tree
from realcustom_jax.staging import Staging
from realcustom_jax.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_MARK = "commit_success.txt"
_LOOK_EVERY = 0.05  # seconds, for whether Orbax has finished a folder


def open_checkpoints(folder: "AnyPath", **options) -> "Checkpoints | StagedCheckpoints":
    """The checkpoints in a folder of a disk or of a bucket, opened as `Checkpoints(folder, **options)`.

    Raises:
        ValueError: several processes cannot write there. Others as `Checkpoints`.
    """
    if not is_bucket(folder):
        return Checkpoints(folder, **options)
    if jax.process_count() == 1:
        return StagedCheckpoints(folder, **options)
    if os.fspath(folder).startswith("s3://"):
        raise ValueError(f"{jax.process_count()} processes cannot write checkpoints to {folder}, because Orbax has no "
                         "writer for s3://; give a workdir on a disk that all of them share, or in gs://.")
    return Checkpoints(folder, **options)


class StagedCheckpoints:
    """`Checkpoints` in a folder of this host, and their copies in `folder`; a context manager of the same methods.

    Args:
        keep: as of `Checkpoints`; so many of the newest are fetched from the bucket, and the older ones stay there.
    Raises:
        OSError, from `save` on too: the bucket cannot be reached. Others as `Checkpoints`.
    """

    def __init__(self, folder: "AnyPath", *, keep: int = 2, on_existing: str = "resume", **options):
        self.folder, self._staging = folder, Staging(folder, "run.json")
        self._copying: Future | None = None
        self._given_up = threading.Event()
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._staging)
            if on_existing == "overwrite":
                remove_tree(folder)
            self._copied = set(self._fetch_newest(keep))
            self._inner = opened.enter_context(
                Checkpoints(self._staging.local, keep=keep, on_existing=on_existing, **options))
            self._copy()
            self._thread = opened.enter_context(ThreadPoolExecutor(1, "checkpoints"))
            self._opened = opened.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._opened:
            self.wait()

    def save(self, step: int, state: Any) -> None:
        """As `Checkpoints.save`; the copy is made meanwhile, and the next one waits for it."""
        self.wait()
        self._inner.save(step, state)
        self._copying = self._thread.submit(self._copy_when_written, self._staging.local / str(step))

    def restore(self, wanted: Any) -> Any | None:
        """As `Checkpoints.restore`."""
        try:
            return self._inner.restore(wanted)
        finally:
            self._copy()  # those that are damaged have another name now

    def wait(self) -> None:
        """Until everything is written and copied."""
        try:
            self._inner.wait()
        except BaseException:
            self._given_up.set()
            raise
        finally:
            copying, self._copying = self._copying, None
            if copying is not None:
                copying.result()
        self._copy()  # Orbax deletes those that are not kept after the new one is written

    def _fetch_newest(self, count: int) -> list[str]:
        """Copies the newest checkpoints to this host; their names."""
        steps = sorted((path for path in listing(self.folder) if path.name.isdigit()), key=lambda path: int(path.name))
        fetched: list[str] = []
        for step in reversed(steps):
            if len(fetched) == count:
                break
            with reaching(step):
                names = file_system(step).find(os.fspath(step))
            start = os.fspath(self.folder).partition("://")[2] + "/"
            names = [name.removeprefix(start) for name in names if not name.endswith("/")]
            if f"{step.name}/{_MARK}" not in names:
                warnings.warn(f"The checkpoint {step} is not whole, as its copy was interrupted; the one before it is "
                              "looked at.", stacklevel=4)
                continue
            for name in names:
                self._staging.fetch(name)
            fetched.append(step.name)
        return fetched

    def _copy_when_written(self, step) -> None:
        while not step.is_dir():  # Orbax writes under another name, and renames
            if self._given_up.wait(_LOOK_EVERY):
                return
        self._copy()

    def _copy(self) -> None:
        """Makes the bucket hold what this host's folder holds, of the checkpoints that were ever in it."""
        here = {path.name for path in self._staging.local.iterdir()
                if path.name.isdigit() or path.name.startswith("damaged-")}
        self._staging.upload("run.json")
        for name in sorted(here - self._copied):
            remove_tree(self.folder / name)  # what an interrupted copy has left
            self._staging.upload(name, but=_MARK)
            if name.isdigit():
                write_file(self.folder / name / _MARK, b"The copy of this checkpoint is complete.")
        for name in self._copied - here:
            remove_tree(self.folder / name / _MARK)
            remove_tree(self.folder / name)
        self._copied = here
