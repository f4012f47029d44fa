"""What several processes that share a disk must agree on; with one process, all of it is done at once."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def by_the_first(change: Callable[[], object]) -> None:
    """A change of the shared disk: the first process makes it once all are here, the others wait until it is made."""
    multihost_utils.sync_global_devices("before a change of the disk")
    if jax.process_index() == 0:
        change()
    multihost_utils.sync_global_devices("after it")


def everywhere(fine: bool) -> bool:
    """Whether all processes say so."""
    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))
