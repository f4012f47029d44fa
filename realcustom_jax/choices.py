"""The error for a misspelt option."""

import difflib
from collections.abc import Iterable


def check_choice(what: str, given: str, known: Iterable[str]) -> None:
    """Raises ValueError, listing the known names and the closest one, unless ``given`` is among them."""
    known = list(known)
    if given not in known:
        close = difflib.get_close_matches(str(given), known, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"Unknown {what} {given!r}: known are {', '.join(known)}{suggestion}")
