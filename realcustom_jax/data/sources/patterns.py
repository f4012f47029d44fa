"""Paths that stand for several files: train-{000..012}.tar, {a,b}.parquet, part-*.jsonl."""

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from realcustom_jax.paths import as_path, listing

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files; more is a mistake, as of {0..1000000000}


def is_pattern(path: str) -> bool:
    """Whether a path stands for several files."""
    return any(letter in path for letter in "{*?[") and not os.path.lexists(path)


def matching(path: str) -> "list[AnyPath]":
    """The files that a pattern stands for, in the order of its braces, sorted where stars leave it open.

    Raises:
        FileNotFoundError: one that braces name is not there, or stars match nothing. ValueError: braces are of too many
            files, or stars stand in a folder's name.
    """
    unfolded = list(itertools.islice(_unfolded(path), _MOST + 1))
    if len(unfolded) > _MOST:
        raise ValueError(f"{path} stands for more than {_MOST:,} files; give several patterns as sources.")
    found, there = [], {}
    for one in unfolded:
        folder, _, name = one.rpartition("/")
        if any(letter in folder for letter in "*?["):
            raise ValueError(f"{path} has a star in a folder's name; only the file's own name may have one.")
        if folder not in there:  # one look at a folder, because a bucket answers late
            place = as_path(folder or ("/" if one.startswith("/") else "."))
            there[folder] = {file.name: file for file in listing(place)}
        names = [name] if name in there[folder] else fnmatch.filter(there[folder], name)
        if not names:
            raise FileNotFoundError(f"There is no file {one}, for which {path} stands.")
        found += [there[folder][name] for name in sorted(names)]
    return found


def _unfolded(path: str) -> Iterator[str]:
    """The paths of a path with braces, as a shell unfolds it."""
    braces = _BRACES.search(path)
    if not braces:
        yield path
        return
    span = _RANGE.fullmatch(braces[1])
    if span:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        inner = (f"{number:0{width}}" for number in numbers)
    else:
        inner = iter(braces[1].split(","))
    for text in inner:
        yield from _unfolded(path[:braces.start()] + text + path[braces.end():])
