"""Trains the miniature, all stages or one: python train.py --config=configs/mini.py --workdir=runs/mini"""

import math
import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, e.g. configs/mini.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, samples and bundle; run again to resume.")


def main(argv: list[str]) -> None:
    del argv
    # Two half-batches side by side keep two cores busier than one batch whose every operation is divided (1.3x).
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not asked:
        jax.config.update("jax_num_cpu_devices", math.gcd(os.cpu_count() or 1, 8))
    from realcustom_jax.stages import miniature

    try:
        miniature.run(_CONFIG.value.lock(), Path(_WORKDIR.value))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
