"""How the command that runs is called."""

import sys
from pathlib import Path


def program(installed: str) -> str:
    """`python sample.py` for the script of a clone; else the name under which the command is installed."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else installed
