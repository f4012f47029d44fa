"""What all commands have in common."""

import logging
import sys
from pathlib import Path


def program(installed: str) -> str:
    """`python sample.py` for the script of a clone; else the name under which the command is installed."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else installed


def say_nothing_of_accelerators() -> None:
    """That JAX finds no accelerator is no news to whoever runs on a CPU."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
