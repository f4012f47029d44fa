"""What all commands have in common."""

import argparse
import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from realcustom_jax.errors import printable, sentence
from realcustom_jax.paths import as_path, check_reachable, is_bucket

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def program(installed: str) -> str:
    """`python sample.py` for the script of a clone; else the name under which the command is installed."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else installed


def say_nothing_of_accelerators() -> None:
    """That JAX finds no accelerator is no news to whoever runs on a CPU."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def say(line: str) -> None:
    """Prints a line beside what the command makes, above its progress bars."""
    tqdm.write(printable(line, sys.stderr), file=sys.stderr)


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code once all is written, and takes nothing apart: to free a model's objects
    and programs one by one would take Python most of a second, and the system takes them back at once."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError:
        sys.exit(code)  # Nobody reads any more: Python has an exit code of its own for that.
    os._exit(code)


@contextlib.contextmanager
def warnings_as_sentences(say: Callable[[str], None]) -> Iterator[None]:
    """Our warnings as one line each, told to `say`; none of the libraries' other kinds."""
    with warnings.catch_warnings():  # which also puts the caller's way of showing warnings back
        warnings.showwarning = lambda message, kind, *_: kind is UserWarning and say(f"warning: {sentence(message)}")
        yield


def path_option(text: str) -> "AnyPath":
    """`paths.as_path` as the type of an option of argparse, which shows the sentence of no other exception. An empty
    path, as an unset variable of a shell gives, is not the folder that the command runs in."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share_option(text: str) -> tuple[int, int]:
    """I/N as the type of an option: (I, N), the first of N being 0."""
    if not (found := re.fullmatch(r"(\d+)/(\d+)", text)) or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4 for the first of 4")
    return int(found[1]), int(found[2])


def check_output_file(option: str, path: "AnyPath") -> None:
    """Raises ValueError or OSError, before the long part of a command, if a file could not be written there.

    Args:
        option: that names it, for the sentence.
    """
    check_reachable(path)
    if is_bucket(path):
        return
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option} {path} cannot be written: the folder {path.absolute().parent} does not "
                                "exist.")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file.")
