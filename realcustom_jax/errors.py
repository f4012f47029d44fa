"""How what goes wrong is told: which name was misspelt, which file is at fault, and how a command ends.

What a user can mend is raised as `ValueError` or `OSError` with a sentence that says what was given and what was
expected. A command then ends with 2, after that sentence. Every other exception means that our code failed: the command
ends with 1, after a sentence that admits it and does not blame the user's input, and `--debug` shows where it happened.
"""

import contextlib
import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raises ValueError, listing the known names and the closest one, unless ``given`` is among them."""
    known = list(known)
    if given not in known:
        close = difflib.get_close_matches(str(given), known, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"Unknown {what} {given!r}: known are {', '.join(known)}{suggestion}")


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


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


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
    except Exception as error:
        if debug:
            report("".join(traceback.format_exception(error)).rstrip())
        sentence = " ".join(str(error).split())
        if isinstance(error, unusable):
            report(f"error: {sentence}")
            return 2
        more = "please report it with the traceback above" if debug else "run again with --debug to see where"
        report(f"error: this is a bug in realcustom_jax, not a mistake in your input ({type(error).__name__}: "
               f"{sentence}); {more}.")
        return 1
