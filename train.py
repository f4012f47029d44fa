"""Trains the miniature, all stages or one: python train.py --config=configs/mini.py --workdir=runs/mini"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, e.g. configs/mini.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, samples and bundle; run again to resume.")


def main(argv: list[str]) -> None:
    del argv
    from realcustom_jax.stages import miniature

    try:
        miniature.run(_CONFIG.value.lock(), Path(_WORKDIR.value))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
