"""A tree of folders, each with views of one object: a *group*, of which target and reference are drawn.

    ROOT/red_toy/front.jpg, ROOT/red_toy/back.jpg                    an object's folder: "a photo of a red toy"
    ROOT/teapot/0a1b2c/images/001.jpg, …/002.jpg                     MVImgNet: class, object: "a photo of a teapot"
    ROOT/dog/clip_07/frame_0001.jpg, …                               frames of videos

The class's folder names the subject, the object's own where there is none above it. ROOT/words.json says it better,
{"FOLDER": "word"}, and ROOT/captions.json gives captions, {"FOLDER": "a dog on a sofa"}, a list of variants, or
{"caption": …, "word": …}; FOLDER is a path below ROOT, or one name of it. Masks beside the views are not used: in a
group they would be of one view only.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from realcustom_jax.data.rows import Row, StoredFile
from realcustom_jax.data.sources.contents import digest, stored_size
from realcustom_jax.data.sources.parts import BrokenRow, part_count
from realcustom_jax.data.sources.schema import Naming, row_of
from realcustom_jax.data.sources.webdataset import PICTURES
from realcustom_jax.data.sources.words import cleaned
from realcustom_jax.errors import quoted
from realcustom_jax.paths import file_system, is_bucket, reaching

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_INNER = {"images", "image", "imgs", "rgb", "frames", "views", "view", "color", "colour", "data", "train", "val",
          "validation", "test"}
"""Names of folders that are of no object and of no class."""
_MASKS = re.compile(r"(^|[_\-.])(mask|masks|segmentation|alpha|depth)([_\-.]|$)", re.IGNORECASE)
_SAMPLED = 64  # groups by whose pictures the size of all is guessed


@dataclasses.dataclass(frozen=True)
class Group:
    """The folder of one object's views, relative to the root, and the names of its pictures."""

    folder: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Some groups of a tree, each with what is said of it: its caption and word, as far as they are given."""

    root: "AnyPath"
    word: str
    groups: tuple[tuple[Group, dict[str, Any]], ...]

    @property
    def name(self) -> str:
        return f"{self.groups[0][0].folder} to {self.groups[-1][0].folder}"

    @property
    def count(self) -> int:
        return len(self.groups)

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        for group, said in self.groups:
            try:
                yield row_of(self._described(group, said), group.folder, lambda name: StoredFile(self.root / name))
            except (ValueError, OSError) as error:
                yield BrokenRow(group.folder, str(error))

    def _described(self, group: Group, said: dict[str, Any]) -> dict[str, Any]:
        given = {"views": [f"{group.folder}/{name}" for name in group.files], "subject": group.folder} | said
        given.setdefault("word", self.word or _word(group.folder))
        if not given["word"]:
            raise ValueError("no folder's name says what the object is: say it in words.json, {\"FOLDER\": \"word\"}")
        given.setdefault("caption", f"a photo of a {given['word']}")
        return given


@dataclasses.dataclass(frozen=True)
class Tree:
    """All groups below a folder."""

    root: "AnyPath"
    naming: Naming = Naming()

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Sorted; empty where there are none."""
        found = {}
        for folder, name in pictures_below(self.root):
            found.setdefault(folder, []).append(name)
        return tuple(Group(folder, tuple(sorted(found[folder], key=_in_order)))
                     for folder in sorted(found, key=_in_order) if _object(folder))

    def parts(self) -> Sequence[Groups]:
        """See `Source.parts`."""
        said = _read_said(self.root)
        sampled = [self.groups[i] for i in np.unique(np.linspace(0, len(self.groups) - 1, _SAMPLED).astype(int))]
        sizes = [len(group.files) * stored_size(self.root, f"{group.folder}/{group.files[0]}") for group in sampled]
        count = part_count(len(self.groups) * sum(sizes) / len(sizes), len(self.groups))
        cuts = np.linspace(0, len(self.groups), count + 1).round().astype(int).tolist()
        return [Groups(self.root, self.naming.word, tuple((group, _said_of(group.folder, said))
                                                          for group in self.groups[low:high]))
                for low, high in itertools.pairwise(cuts)]

    def identity(self, seen: "AnyPath") -> str:
        """See `Source.identity`."""
        names = [f"{group.folder}/{name}" for group in self.groups for name in group.files]
        total = hashlib.sha256(f"tree {self.naming} {sorted(_read_said(self.root).items())}".encode())
        for name in names:
            total.update(name.encode("utf-8", "surrogatepass") + b"\0")
        total.update(digest(self.root, names, seen).encode())
        return total.hexdigest()[:16]


def _read_said(root: "AnyPath") -> dict[str, dict[str, Any]]:
    """What words.json and captions.json say of folders. Raises ValueError: one of them is no object of folders."""
    folders = {}
    for file, key in (("words.json", "word"), ("captions.json", "caption")):
        path = root / file
        if not path.exists():
            continue
        try:
            given = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}).") from None
        if not isinstance(given, dict):
            raise ValueError(f"{path} is {quoted(given)}; expected an object, {{\"FOLDER\": \"a {key}\"}}.")
        for folder, value in given.items():
            said = value if isinstance(value, dict) else {key: value}
            if unknown := sorted(said.keys() - {"caption", "word"}):
                raise ValueError(f"{path} says {unknown[0]!r} of {folder!r}; known are caption and word.")
            folders.setdefault(folder.strip("/"), {}).update(said)
    return folders


def _said_of(folder: str, said: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"caption", "word"} as far as they are given for a folder, or else for one of its names, the innermost first."""
    found = [said.get(name, {}) for name in (folder, *reversed(folder.split("/")))]
    return {key: value for one in reversed(found) for key, value in one.items()}


def pictures_below(root: "AnyPath") -> Iterator[tuple[str, str]]:
    """(folder relative to the root, file name) of every picture that lies below one of the root's folders."""
    if is_bucket(root):
        with reaching(root):
            found = file_system(root).find(os.fspath(root))
        start = os.fspath(root).partition("://")[2].rstrip("/") + "/"
        files = (name.removeprefix(start).rpartition("/")[::2] for name in found)
    else:
        files = _walked(root)
    for folder, name in files:
        if folder not in ("", ".") and name.lower().rpartition(".")[2] in PICTURES and not name.startswith("."):
            if not any(_MASKS.search(part) for part in (*folder.split("/"), name.rpartition(".")[0])):
                yield folder, name


def _walked(root: "AnyPath") -> Iterator[tuple[str, str]]:
    """(folder relative to the root, file name) of every file on a disk, through links, each folder once."""
    met = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in met:  # a link that leads back
            inner.clear()
            continue
        met.add((state.st_dev, state.st_ino))
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from ((relative, name) for name in names)


def _object(folder: str) -> list[str]:
    """The names of the folders above the pictures that name objects or classes."""
    return [name for name in folder.split("/") if name.lower() not in _INNER]


def _word(folder: str) -> str:
    """What the folder above the object's own says, or else the object's own, or else those further above."""
    *above, own = map(cleaned, _object(folder))
    return next((word for word in (*above[::-1][:1], own, *above[::-1][1:]) if word), "")


def _in_order(name: str) -> tuple:
    """By the numbers in a name as numbers: frame 9 before frame 10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)), name
