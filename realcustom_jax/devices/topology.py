"""Accelerators that this machine need not have: what a program is compiled for ahead of time.

TPUs are described by libtpu (`pip install libtpu`), which compiles for them on any Linux CPU.
"""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice such as "v5e:4x4", in order, or of several such as "2 v5e:4x4", one after the other.

    Raises ValueError where libtpu is missing or knows no such slice.
    """
    count, _, name = topology.rpartition(" ")
    slices = {"num_slices": int(count)} if count.isdecimal() and int(count) > 1 else {}
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"Compiling for {topology} needs libtpu: run `pip install libtpu`.")
    # No device is touched: libtpu need not ask a cloud machine's metadata server, nor keep other processes out.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **slices).devices)
    except Exception as error:  # libtpu reports an unknown name as a plain runtime error
        raise ValueError(
            f"libtpu gives no TPU slice {topology!r} ({str(error).splitlines()[0]}); slices that it knows are "
            "v5e:2x2, v5e:4x4, v5e:16x16 and v4:2x2x2; several are given as '2 v5e:4x4'.") from error
