"""A folder for files that are being written: gone after its user, also, at the next one's start, after a killed one."""

import contextlib
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realcustom_jax.paths import is_bucket

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_NAME, _ABANDONED = ".building", 24 * 3600  # seconds; after which a folder of another machine is taken for abandoned


@contextlib.contextmanager
def scratch_folder(beside: "AnyPath") -> Iterator[Path]:
    """A new folder of this machine, removed at the end: within `beside`, where what is ready needs only be renamed, or
    anywhere if `beside` lies in a bucket."""
    home = Path(tempfile.gettempdir()) if is_bucket(beside) else Path(beside)
    home.mkdir(parents=True, exist_ok=True)
    machine = socket.gethostname()
    for left in home.glob(f"{_NAME}@*"):
        _, its_machine, process, _ = (left.name.split("@") + [""] * 4)[:4]
        with contextlib.suppress(OSError):
            gone = not _alive(process) if its_machine == machine else time.time() - left.stat().st_mtime > _ABANDONED
            if gone:
                shutil.rmtree(left)
    folder = home / f"{_NAME}@{machine}@{os.getpid()}@{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    if not process.isdigit():
        return False
    if os.name != "posix":  # where asking would stop the process
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
