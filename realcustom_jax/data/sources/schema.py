"""The keys of a row, the same in every kind of source: what a row says, made a `Row`. docs/training/data.md lists them.

A source brings what it finds to an object with these keys. A picture in it is a text, which the source's own `find`
makes a stored picture of, or a stored picture already.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from realcustom_jax.conditioning.words import word_spans
from realcustom_jax.data.rows import Mask, MaskPicture, Row, Stored, Subject
from realcustom_jax.data.sources.masks import mask_of_numbers
from realcustom_jax.errors import check_text, quoted

KEYS = ("box", "caption", "mask", "reference", "score", "subject", "subjects", "target", "views", "word")
_SUBJECT_KEYS = ("box", "mask", "reference", "word")
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_Find = Callable[[str], Stored]


def row_of(given: Any, where: str, find: _Find) -> Row:
    """The row that an object describes. `find` gives the picture of a name.

    Raises:
        ValueError: it cannot be used; says why, without the row's own name.
    """
    if not isinstance(given, Mapping):
        raise ValueError("it is not a JSON object")
    _check_keys(given, KEYS)
    given = {key: value for key, value in given.items() if value is not None}
    views = _group(given) if "views" in given else []
    described = _subjects(given)
    captions = _captions(given)
    for subject in described:
        _check_subject(subject, captions, views)
    pictures = [_picture(x, find) for x in views or [given["target"]]]
    targets, subjects = len(pictures), []
    for subject in described:
        shown = list(range(targets)) if views else []
        for reference in _references(subject):
            shown.append(len(pictures))
            pictures.append(_picture(reference, find))
        subjects.append(Subject(subject["word"], tuple(shown), _mask(subject.get("mask"), find),
                                _box(subject.get("box"))))
    return Row(where, tuple(pictures), captions, tuple(subjects), targets, _identity(given.get("subject", "")),
               _score(given.get("score")))


def named_pictures(given: Any) -> Iterator[str]:
    """The names of all pictures of an object; nothing where it makes no sense."""
    if not isinstance(given, Mapping):
        return
    several = given.get("subjects")
    for part in (given, *(several if isinstance(several, list) else ())):
        if isinstance(part, Mapping):
            for key in ("target", "views", "reference", "mask"):
                value = part.get(key)
                if isinstance(value, str):
                    yield value
                elif isinstance(value, list):
                    yield from (name for name in value if isinstance(name, str))


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a source that was not written for this names what a row needs.

    columns: the source's own name for keys of `KEYS`. word: for rows that have none.
    """

    columns: tuple[tuple[str, str], ...] = ()
    word: str = ""

    @classmethod
    def of(cls, columns: Mapping[str, str], word: str) -> "Naming":
        """Raises ValueError for keys that no row has."""
        if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns.values()):
            raise ValueError(f"columns is {quoted(columns)}; expected an object that gives keys of a row the names of "
                             "columns.")
        _check_keys(columns, KEYS)
        check_text("word", word)
        return cls(tuple(sorted(columns.items())), word)

    def renamed(self, given: Any) -> Any:
        """An object with the keys of a row."""
        if not isinstance(given, Mapping) or not self.columns:
            return given
        found = {key: given[name] for key, name in self.columns if name in given}
        names = {name for _, name in self.columns}
        return {name: value for name, value in given.items() if name not in names} | found

    def with_word(self, given: Any) -> Any:
        """The object, with the word where it has none."""
        if isinstance(given, Mapping) and self.word and given.get("word") is None and given.get("subjects") is None:
            return {**given, "word": self.word}
        return given


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(str(key) for key in given if key not in known):
        close = difflib.get_close_matches(unknown[0][:80], known, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown key {quoted(unknown[0])}; known are {', '.join(known)}{nearest}")


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "read")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _group(given: dict[str, Any]) -> list[Any]:
    views = given["views"]
    if not isinstance(views, list) or not all(map(_is_picture, views)):
        raise ValueError("'views' is no list of file names")
    if other := next((key for key in ("target", "mask", "box", "subjects") if key in given), None):
        raise ValueError(f"it has 'views' and {other!r}: views are a group, each may be the target, of one 'word'")
    if len(views) + len(_references(given)) < 2:
        raise ValueError("'views' are fewer than two: there is no other picture of the subject")
    if not views:
        raise ValueError("'views' are none: there is no target")
    return views


def _subjects(given: dict[str, Any]) -> list[dict[str, Any]]:
    if "views" not in given and not (_is_text(given.get("target")) or hasattr(given.get("target"), "read")):
        raise ValueError("'target' is missing or no text")
    if "subjects" not in given:
        return [given]
    several = given["subjects"]
    if not isinstance(several, list) or not several or not all(isinstance(x, Mapping) for x in several):
        raise ValueError("'subjects' is no list of objects")
    if other := next((key for key in _SUBJECT_KEYS if key in given), None):
        raise ValueError(f"it has 'subjects' and {other!r}: each of the subjects has its own")
    for subject in several:
        _check_keys(subject, _SUBJECT_KEYS)
    return [{key: value for key, value in subject.items() if value is not None} for subject in several]


def _captions(given: dict[str, Any]) -> tuple[str, ...]:
    captions = given.get("caption")
    captions = captions if isinstance(captions, list) else [captions]
    if not captions or not all(map(_is_text, captions)):
        raise ValueError("'caption' is missing or no text")
    for caption in captions:
        check_text("caption", caption)
    return tuple(dict.fromkeys(captions))


def _check_subject(subject: dict[str, Any], captions: tuple[str, ...], views: list[Any]) -> None:
    word = subject.get("word")
    if not _is_text(word):
        raise ValueError("'word' is missing or no text")
    check_text("word", word)
    references = _references(subject)
    for caption in captions:
        if not word_spans(caption, word):
            raise ValueError(f"the word {word!r} is not in the caption {caption!r}")
    if not (views or references or "mask" in subject or "box" in subject):
        raise ValueError("it has none of 'reference', 'mask' and 'box': there is no picture of the subject")


def _references(subject: dict[str, Any]) -> list[Any]:
    references = subject.get("reference", [])
    references = [references] if _is_picture(references) else references
    if not isinstance(references, list) or not all(map(_is_picture, references)):
        raise ValueError("'reference' is neither a file name nor a list of them")
    return references


def _picture(value: Any, find: _Find) -> Stored:
    return find(value) if isinstance(value, str) else value


def _mask(value: Any, find: _Find) -> Mask | None:
    if value is None or hasattr(value, "pixels"):
        return value
    return MaskPicture(_picture(value, find)) if _is_picture(value) else mask_of_numbers(value)


def _box(given: Any) -> tuple[float, float, float, float] | None:
    if given is None:
        return None
    numbers = isinstance(given, list) and len(given) == 4 and all(map(_is_finite, given))
    if not numbers or not (0 <= given[0] < given[2] and 0 <= given[1] < given[3]):
        raise ValueError(f"the box {str(given)[:80]} is not [left, top, right, bottom] with left < right and "
                         "top < bottom")
    return tuple(given)


def _identity(given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ValueError("'subject' is no text: it is the same in all rows of the same subject")
    check_text("subject", str(given))
    return str(given)


def _score(given: Any) -> float | None:
    if given is None:
        return None
    if not _is_finite(given) or abs(given) > _LARGEST_SCORE:
        raise ValueError(f"the score {str(given)[:80]} is no number, or too large for one")
    return float(given)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False
