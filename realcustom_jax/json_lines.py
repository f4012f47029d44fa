"""Files of JSON lines that people and shells write: an object on each line that is not blank."""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realcustom_jax.errors import check_choice, quoted
from realcustom_jax.paths import as_path, local_copy

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

Kind = tuple[Callable[[Any], bool], str]
"""What a value must be: a test of it, and the words for it."""
_MOST_TOLD = 10


def numbered_lines(file: "str | AnyPath") -> list[tuple[int, bytes]]:
    """The lines that are not blank, each with its number from 1 on.

    Raises OSError or ValueError: the file cannot be read.
    """
    return [(number, line) for number, line in enumerate(_read(file).splitlines(), 1) if line.strip()]


def parse_object(line: bytes, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The object in a line. Raises ValueError that says what is wrong: no object, a key that `kinds` lacks, or a value
    of another kind."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1}); save the file "
                             "in that encoding") from None
        raise ValueError(f"not valid JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    for key, value in values.items():
        check_choice("key", key, kinds)
        fits, expected = kinds[key]
        if not fits(value):
            raise ValueError(f"{key} is {quoted(value)}, expected {expected}")
    return values


def is_text(value: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(value, str) and value.strip() != ""


def is_number(value: Any) -> bool:
    """Whether it is a number; true and false are none."""
    return type(value) in (int, float)


def told(problems: Sequence[tuple[int, str]]) -> str:
    """What is wrong with lines, (number, problem) each, as the part of a sentence; the first ten."""
    more = "; …" if len(problems) > _MOST_TOLD else ""
    return "; ".join(f"line {number}: {problem.rstrip('.')}" for number, problem in problems[:_MOST_TOLD]) + more


def _read(file: "str | AnyPath") -> bytes:
    """What a file of lines holds, without a byte order mark, in UTF-8 if it is in the UTF-16 of Windows' shells."""
    try:
        content = local_copy(as_path(file)).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(f"{file} cannot be read ({getattr(error, 'strerror', None) or error}); give a file with a JSON "
                   "object on each line.") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace").encode("utf-8", "surrogatepass")
    return content.removeprefix(codecs.BOM_UTF8)
