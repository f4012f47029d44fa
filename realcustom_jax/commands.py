"""How a command ends: with 0, with 2 after one sentence about input that cannot be used, or with 1 after one sentence
that admits a bug of ours.

What a user can mend is raised as `ValueError` or `OSError` with a sentence that says what was given and what was
expected. Every other exception means that our code failed. The user's input is then not blamed, and `--debug` shows
where it happened.
"""

import sys
import traceback
from collections.abc import Callable


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
