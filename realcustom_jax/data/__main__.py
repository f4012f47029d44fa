"""The command that makes datasets, and shows what is in one:

    python -m realcustom_jax.data build SOURCE --out DIR
    python -m realcustom_jax.data show DIR

docs/training/data.md says what a source is. On several hosts that share DIR, each gives --host I/N.
"""

import argparse
import sys

from realcustom_jax import errors, interruption
from realcustom_jax.commands.program import share_option


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, see module `errors`."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        with errors.needs_extra("train", "building a dataset"):
            {"build": _build, "show": _show}[options.command](options)

    with interruption.raised():
        return errors.exit_code(work, debug=options.debug)


def _build(options: argparse.Namespace) -> None:
    from realcustom_jax.data.build import build, check_outside
    from realcustom_jax.data.shapes import buckets
    from realcustom_jax.data.sources import open_source
    from realcustom_jax.disk import enough_disk

    _check_given("--out", options.out)
    buckets(options.side)  # whether there are shapes of this side
    source = open_source(options.source)
    check_outside(options.out, options.source)
    with enough_disk(options.out):
        dataset = build(source, options.out, side=options.side, workers=options.workers,
                        max_broken=options.max_broken, host=options.host)
    if dataset is None:
        print(f"The parts of host {options.host[0]} are built; parts of other hosts are missing. The host that is the "
              "last to finish finishes the dataset.")
    else:
        print(f"{len(dataset)} rows: {options.out}")


def _show(options: argparse.Namespace) -> None:
    from realcustom_jax.data.summary import describe

    _check_given("DIR", options.folder)
    for line in describe(options.folder):
        print(errors.printable(errors.visible(line), sys.stdout))


def _check_given(option: str, folder: str) -> None:
    """An empty path, as an unset variable of a shell gives it, is not the folder that the command runs in."""
    if not folder:
        raise ValueError(f"{option} is empty; expected the folder of a dataset.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.data", description="Makes datasets of your pictures for training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="make the dataset of a source, or what is missing of it")
    add = build.add_argument
    add("source", metavar="SOURCE", help="pictures and captions; docs/training/data.md says what can be given")
    add("--out", required=True, metavar="DIR", help="folder of the dataset; give the same again to go on")
    add("--side", type=int, default=1024, help="of a square target in pixels, as the dataset's default (1024)")
    add("--workers", type=int, default=None, metavar="N", help="processes; as many as there are processors")
    add("--max-broken", type=int, default=0, metavar="K", help="how many rows may be unusable (0)")
    add("--host", type=share_option, default=(0, 1), metavar="I/N", help="this is host I of N; all give the same DIR")
    show = commands.add_parser("show", help="say what is in a dataset")
    show.add_argument("folder", metavar="DIR", help="of the dataset, finished or not")
    for command in (build, show):
        command.add_argument("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    return parser


if __name__ == "__main__":
    sys.exit(main())
