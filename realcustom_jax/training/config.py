"""A configuration's values as a frozen dataclass, so that what is wrong with them is told before anything is loaded.

At the edge a configuration is a locked `ConfigDict`, which the command line can change. Inside it is a dataclass, whose
fields carry the types, the defaults and the comments.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from realcustom_jax.errors import check_choice, quoted

Settings = TypeVar("Settings")

# What a field of a plain type takes, for a reader and for a program. A bool is a number to Python, and a mistake here.
_TYPES = {
    bool: ("true or false", lambda x: isinstance(x, bool)),
    int: ("a whole number", lambda x: isinstance(x, Integral) and not isinstance(x, bool)),
    float: ("a number", lambda x: isinstance(x, Real) and not isinstance(x, bool)),
    str: ("a text", lambda x: isinstance(x, str)),
}

_TOO_LARGE = 2**31  # of whole numbers, which arrays hold as int32


def read_settings(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """The dataclass `cls` of a mapping, fields that are dataclasses of the mappings within.

    Args:
        values: by the fields' names; a list stands for a tuple.
        where: the mapping's own name, which stands in front of each key in messages, such as config.train.
    Raises:
        ValueError: a key that `cls` has not, with the nearest one that it has; one that it needs; a value of another
            type, or one that `cls` itself does not take.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; expected a mapping of {', '.join(_names(cls))}.")
    for name in values:
        check_choice(f"key in {where}:", name, _names(cls))
    hints, made = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            made[field.name] = _value(hints[field.name], values[field.name], f"{where}.{field.name}")
        elif field.init and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{field.name} is missing.")
    try:
        return cls(**made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.init]


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value as a field of this type hint holds it."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else read_settings(hint, value, where)
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [typing.get_origin(kind) or kind for kind in hints]
    if tuple in kinds and isinstance(value, (list, tuple)):
        items = typing.get_args(hints[kinds.index(tuple)])
        return tuple(_value(items[0], item, f"{where}[{i}]") for i, item in enumerate(value)) \
            if len(items) == 2 and items[1] is Ellipsis else tuple(value)
    if (value is None and type(None) in kinds) or not set(kinds) & {*_TYPES, tuple}:
        return value
    expected = [_TYPES[kind] for kind in kinds if kind in _TYPES]
    if not any(fits(value) for _, fits in expected):
        said = [words for words, _ in expected] + ["a list"] * (tuple in kinds)
        raise ValueError(f"{where} is {quoted(value)}; expected {' or '.join(said)}.")
    if isinstance(value, Integral) and abs(value) >= _TOO_LARGE:
        raise ValueError(f"{where} is {quoted(value)}; expected a number below 2^31.")
    return value
