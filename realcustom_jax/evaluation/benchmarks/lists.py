"""Reading the lists of benchmarks: files of others, of which nothing is taken for granted."""

import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from realcustom_jax.errors import quoted
from realcustom_jax.paths import reaching

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_LONGEST = 80
_KINDS = {str: "a text", list: "a list", dict: "a mapping", int: "a whole number"}


def read_text(path: "AnyPath") -> str:
    """The text of a list. Raises OSError if it cannot be read, ValueError if it is no UTF-8."""
    with reaching(path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise damaged(path, "it is no text in UTF-8") from None


def read_json(path: "AnyPath", kind: type) -> Any:
    """The entries of a JSON file, a list or a mapping with at least one. Raises as `read_text`, and ValueError for
    broken JSON and other kinds."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, f"it is no JSON ({error})") from None
    if not isinstance(value, kind):
        raise damaged(path, f"it holds {quoted(value, 40)} where {_KINDS[kind]} of entries is expected")
    if not value:
        raise damaged(path, "it has no entries")
    return value


def damaged(path: "AnyPath", reason: str) -> ValueError:
    """The error that says what is wrong with a list."""
    return ValueError(f"{path} is not the list that its authors published, or it is damaged: {reason}.")


def entry(path: "AnyPath", place: str, holder: Any, key: "str | int", kind: type) -> Any:
    """`holder[key]`, which must be there and of its kind; a text or a list must not be empty. Raises ValueError that
    names the place in the list."""
    try:
        value = holder[key]
    except (KeyError, IndexError, TypeError):
        raise damaged(path, f"{place} has no {quoted(key)}") from None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise damaged(path, f"{quoted(key)} of {place} is {quoted(value, 40)}; expected {_KINDS[kind]}")
    if kind in (str, list) and not (value.strip() if kind is str else value):
        raise damaged(path, f"{quoted(key)} of {place} is empty")
    return value


def base_of(pictures: Sequence[str], bases: "Sequence[AnyPath]") -> "AnyPath":
    """The first of the folders in which one of the pictures lies; the first folder if none has any."""
    return next((base for base in bases if any(below(base, name).is_file() for name in pictures)), bases[0])


def below(base: "AnyPath", name: str) -> "AnyPath":
    """The file that a list names relative to `base`, with either kind of slash."""
    return base.joinpath(*posixpath.normpath(name.replace("\\", "/")).split("/"))


def check_pictures(pictures: "Iterable[AnyPath]", folder: "AnyPath", title: str, source: str) -> None:
    """Raises FileNotFoundError that says how many of the pictures are missing, and which is the first."""
    pictures = list(dict.fromkeys(pictures))
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        count = "the only picture" if len(pictures) == 1 else f"{len(missing)} of the {len(pictures)} pictures"
        raise FileNotFoundError(f"{folder} lacks {count} that these rows of {title} need, first of all {missing[0]}; "
                                f"get them as {source} says.")


def file_name(*parts: str) -> str:
    """A file's name without its ending: the parts, at most `_LONGEST` letters of each, with an underscore for what not
    every disk can hold."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_.")[:_LONGEST] for part in parts)
