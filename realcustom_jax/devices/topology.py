"""Accelerators that this machine need not have: what a program is compiled for ahead of time.

TPUs are described by libtpu (`pip install libtpu`), which compiles for them on any Linux CPU.
"""

import importlib.util
import os
from typing import Any

from jax.experimental import topologies


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice such as "v5e:4x4", in order.

    Raises ValueError where libtpu is missing or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"Compiling for {topology} needs libtpu: run `pip install libtpu`.")
    # No device is touched: libtpu need not ask a cloud machine's metadata server, nor keep other processes out.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # libtpu reports an unknown name as a plain runtime error
        raise ValueError(
            f"libtpu gives no TPU slice {topology!r} ({str(error).splitlines()[0]}); slices that it knows are "
            "v5e:2x2, v5e:4x4, v5e:16x16 and v4:2x2x2.") from error
