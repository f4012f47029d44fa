"""What several processes that share a disk must agree on; with one process, all of it is done at once."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from realcustom_jax.interruption import Preempted


def on_first_process(change: Callable[[], object]) -> None:
    """A change of the shared disk: the first process makes it once all are here, the others wait until it is made.

    What it raises, the first process raises; the others then raise a ValueError that points to it, or, where the first
    was asked to stop, Preempted as it does.
    """
    multihost_utils.sync_global_devices("before a change of the disk")
    on_every_process(change if jax.process_index() == 0 else lambda: None)


def on_every_process(change: Callable[[], object]) -> None:
    """What every process does with its own part of the disk; each waits until all have done theirs.

    What it raises in a process, that one raises; the others then raise a ValueError that points to it, or, where it was
    asked to stop, Preempted as it does.
    """
    error = None
    try:
        change()
    except (Exception, Preempted) as caught:
        error = caught
    fine, stays = all_agree(error is None), all_agree(not isinstance(error, Preempted))
    if error is not None:
        raise error
    if not stays:
        raise Preempted
    if not fine:
        raise ValueError("another process could not write what all need; its message says why.")


def all_agree(fine: bool) -> bool:
    """Whether all processes say so."""
    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))
