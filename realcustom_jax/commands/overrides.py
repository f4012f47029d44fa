"""Values of a configuration on the command line: lists, and what is said of a value that does not fit."""

import ast
import re
from typing import Any

from absl import flags

# What the parsers of absl and ml_collections say, and what was expected.
_EXPECTED = {
    r"invalid literal for int\(\)|integer string conversion": "a whole number",
    r"could not convert string to float": "a number",
    r"Non-boolean argument": "true or false",
    r"as a ConfigDict|Overriding .* is not allowed": "a key within it, such as KEY.NAME=VALUE",
    r"not a (valid )?tuple|as a tuple|Invalid tuple": "values with commas between, such as (1,2)",
}


class ListParser(flags.ArgumentParser):
    """Parses `[1,2]`, `(1,2)` and `1,2` for a key that holds a list."""

    def parse(self, argument: Any) -> list:
        """Raises ValueError for what is none of these."""
        try:
            value = argument if isinstance(argument, (list, tuple)) else ast.literal_eval(argument)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, (list, tuple)):
            raise ValueError("expected a list, such as [1,2]")
        return list(value)

    def flag_type(self) -> str:
        """What absl's help calls it."""
        return "list"


def explained(error: Exception) -> str:
    """One sentence for what a parser of flags raised."""
    message = " ".join(str(error).split())
    # ml_collections 1.0 does not say which value it was.
    if whole := re.search(r"ConfigDict'> of field ([\w.]+) is not supported", message):
        return f"--{whole[1]} has a value; expected a key within it, such as --{whole[1]}.NAME=VALUE."
    given = re.match(r"flag (--[\w.]+)=(.*?): ", message)
    if given is None:
        return message
    rest = message[given.end():]
    expected = next((words for pattern, words in _EXPECTED.items() if re.search(pattern, rest)), None)
    what = rest if expected is None else f"expected {expected}"
    return f"{given[1]} is {given[2]!r}; {what.rstrip('.')}."
