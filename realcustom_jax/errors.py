"""How what goes wrong is told: which name was misspelt, which file is at fault, and how a command ends.

What a user can mend is raised as `ValueError` or `OSError` with a sentence that says what was given and what was
expected. A command then ends with 2, after that sentence. Every other exception means that our code failed: the command
ends with 1, after a sentence that admits it and does not blame the user's input, and `--debug` shows where it happened.
What is stopped from outside is no error: it ends with 75 after SIGTERM and with 130 after Ctrl-C, each with a sentence.
"""

import contextlib
import difflib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from realcustom_jax.interruption import EXIT_CODE, Preempted

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_QUOTE, _LONGEST_SENTENCE = 160, 4000  # characters


def quoted(value: Any, limit: int = _LONGEST_QUOTE) -> str:
    """A value as a sentence shows it: its `repr`, which can always be printed; only the beginning of a long text."""
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]!r}…"
    shown = repr(value)
    return shown if len(shown) <= 2 * limit + 2 else f"{shown[:limit]}…"


def sentence(error: object) -> str:
    """What an exception, or whatever else is told, says, as one line of bounded length that holds nothing a terminal
    would obey or refuse."""
    said = " ".join(str(error).split())
    return visible(said if len(said) <= _LONGEST_SENTENCE else f"{said[:_LONGEST_SENTENCE]}…")


def visible(text: str) -> str:
    """The text with escapes for what cannot be seen or printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(line: str, stream: TextIO | None) -> str:
    """The line with escapes for what the stream's encoding lacks: a sentence must not fail where it is printed."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def check_text(what: str, text: Any) -> None:
    """Raises ValueError unless ``text`` is a str without halved characters, which no tokenizer and no file takes.

    Python holds them as lone surrogates; JSON from JavaScript, whose `slice` cuts an emoji in two, brings them, and so
    does a command line that is not UTF-8.
    """
    if not isinstance(text, str):
        raise ValueError(f"The {what} is {quoted(text)}; expected a text.")
    if half := _SURROGATE.search(text):
        around = text[max(half.start() - 40, 0) : half.start() + 40]
        raise ValueError(f"The {what} holds half of a character, \\u{ord(half[0]):04x}, in {around!r}: an emoji was "
                         "cut in two, or the text is not UTF-8; remove it or give the whole character.")


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raises ValueError, listing the known names and the closest one, unless ``given`` is among them."""
    known = list(known)
    if given not in known:
        close = difflib.get_close_matches(str(given)[:_LONGEST_QUOTE], known, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"Unknown {what} {quoted(given)}: known are {', '.join(known)}{suggestion}")


@contextlib.contextmanager
def naming(*places: str | Path) -> Iterator[None]:
    """Puts the places in front of what is wrong with the files there, unless that names them itself; what a broken
    configuration makes our own code raise becomes a ValueError. Without a place it does the latter alone."""
    where = f"{' with '.join(map(str, places))}: " if places else ""
    try:
        yield
    except ValueError as error:
        named = any(str(place) in str(error) for place in places)
        raise ValueError(str(error) if named else f"{where}{error}") from None
    except KeyError as error:
        raise ValueError(f"{where}the configuration lacks {error}.") from error
    except (TypeError, AttributeError, IndexError, ArithmeticError, AssertionError) as error:
        reason = str(error) or "a size in it does not fit"
        raise ValueError(f"{where}the configuration cannot be used ({reason}), or our code that reads it is wrong; "
                         "--debug shows where.") from error


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str, instead: str = "") -> Iterator[None]:
    """Around imports of packages that an installation may lack: ValueError with the name of the extra that brings them.

    Args:
        extra: a name in `[project.optional-dependencies]` of pyproject.toml.
        purpose: what needs them, as the sentence begins.
        instead: what can be done without, e.g. "or give the weights as .safetensors".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == __name__.partition(".")[0]:
            raise
        more = f", {instead}" if instead else ""
        raise ValueError(
            f'{purpose} needs the package {package}, which is not installed: run pip install "realcustom-jax[{extra}]" '
            f'(in a clone: pip install ".[{extra}]"){more}.') from None


def _to_stderr(line: str) -> None:
    print(printable(line, sys.stderr), file=sys.stderr)


def exit_code(work: Callable[[], int | None], *, debug: bool = False, report: Callable[[str], None] = _to_stderr,
              unusable: tuple[type[Exception], ...] = (ValueError, OSError)) -> int:
    """Does the work of a command and returns the command's exit code.

    Args:
        work: returns an exit code; None stands for 0.
        debug: whether the traceback of an exception is reported before its sentence.
        report: is told each sentence, one line, and the traceback.
        unusable: the exceptions whose sentence is for the user.
    """
    try:
        return work() or 0
    except Preempted as stopped:
        report(sentence(stopped))
        return EXIT_CODE
    except KeyboardInterrupt:
        report("stopped (Ctrl-C); what was finished is kept.")
        return 130  # as shells say it: 128 and the number of the signal
    except Exception as error:
        if debug:
            report("".join(traceback.format_exception(error)).rstrip())
        said = sentence(error)
        if isinstance(error, unusable):
            report(f"error: {said}")
            return 2
        more = "please report it with the traceback above" if debug else "run again with --debug to see where"
        report(f"error: this is a bug in realcustom_jax, not a mistake in your input ({type(error).__name__}: "
               f"{said}); {more}.")
        return 1
