"""Tables that were not written for this: which of their columns is which key of a row."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from realcustom_jax.data.sources.schema import Naming
from realcustom_jax.data.sources.words import cleaned
from realcustom_jax.errors import check_choice

_USUAL = {
    "target": ("target", "image", "jpg", "jpeg", "png", "webp", "img"),
    "views": ("views", "images", "frames"),
    "caption": ("caption", "captions", "text", "prompt"),
    "reference": ("reference", "references", "ref", "condition"),
    "mask": ("mask",),
    "word": ("word", "class", "label", "subject"),
    "box": ("box", "bbox"),
    "subjects": ("subjects",),
    "subject": ("identity", "subject"),
    "score": ("score",),
}
"""The names of columns that are tried for each key, in small letters, the first one first."""


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """A picture that is in memory."""

    name: str
    content: bytes

    def read(self) -> bytes:
        """See `rows.Stored`."""
        return self.content


@dataclasses.dataclass(frozen=True)
class Table:
    """Which column is which key. Where no column says where the subject is, it is the whole picture: `whole`."""

    keys: tuple[tuple[str, str], ...]
    classes: tuple[str, ...] = ()
    word: str = ""

    @classmethod
    def of(cls, columns: Iterable[str], naming: Naming, classes: Mapping[str, tuple[str, ...]], where: str) -> "Table":
        """The columns that are used of those that there are.

        Args:
            classes: the names of columns that hold numbers of classes.
            where: the table's name, for messages.
        Raises:
            ValueError: no column has pictures, or none has words and `naming` gives none; says which there are.
        """
        columns = list(columns)
        keys = dict(naming.columns)
        for name in keys.values():
            check_choice(f"column in {where}:", name, columns)
        for key, usual in _USUAL.items():
            free = {name.lower(): name for name in reversed(columns) if name not in keys.values()}
            found = next((free[name] for name in usual if name in free), None)
            if found and key not in keys and not (key == "views" and "target" in keys):
                keys[key] = found
        if not keys.keys() & {"target", "views"}:
            raise ValueError(f"{where} has no column of pictures: it has {', '.join(columns)}; expected one of "
                             f"{', '.join(_USUAL['target'])}, or its name as columns.target.")
        if not keys.keys() & {"word", "subjects"} and not naming.word:
            raise ValueError(f"{where} has no column that names the subject: it has {', '.join(columns)}; expected one "
                             f"of {', '.join(_USUAL['word'])}, its name as columns.word, or one word for all rows as "
                             "word.")
        return cls(tuple(keys.items()), classes.get(keys.get("word", ""), ()), naming.word)

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are used."""
        return list(dict.fromkeys(column for _, column in self.keys))

    def described(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """The object of a row, see module `schema`. Raises ValueError."""
        given = {key: cells[column] for key, column in self.keys if cells[column] is not None}
        for key in ("mask", "subjects", "box"):
            given |= {key: _parsed(given[key], key)} if isinstance(given.get(key), str) else {}
        if "word" in given:
            given["word"] = self._word(given["word"])
        elif self.word and "subjects" not in given:
            given["word"] = self.word
        if "caption" not in dict(self.keys) and isinstance(given.get("word"), str):
            given["caption"] = f"a photo of a {given['word']}"
        if not {key for key, _ in self.keys} & {"reference", "mask", "box", "views", "subjects"}:
            given["box"] = WHOLE
        return given

    def _word(self, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if not 0 <= value < len(self.classes):
            if self.word:
                return self.word
            raise ValueError(f"the word is the number {value}, and the table has no name for it; give the names of the "
                             "classes, or one word for all rows as word")
        return cleaned(self.classes[value])


WHOLE = [0, 0, 2**31, 2**31]
"""A box that is cut to the whole picture."""


def _parsed(text: str, key: str) -> Any:
    """What a cell holds as JSON; the name of a file stays what it is."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key!r} is not JSON ({error})") from None
