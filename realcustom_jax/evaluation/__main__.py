"""`python -m realcustom_jax.evaluation`: without a command, the miniature's methods side by side; `bench` and `score`
for benchmarks that papers print."""

import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {"bench": "realcustom_jax.evaluation.bench.command", "score": "realcustom_jax.evaluation.score.command"}
_MINIATURE = "realcustom_jax.evaluation.miniature.command"


def main(arguments: Sequence[str]) -> int:
    """Runs the command that the first argument names, with the others; returns its exit code."""
    name, *others = arguments or [""]
    if name in _COMMANDS:
        return importlib.import_module(_COMMANDS[name]).main(others)
    return importlib.import_module(_MINIATURE).main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
