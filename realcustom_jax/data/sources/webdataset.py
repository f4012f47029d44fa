"""WebDataset's tars: what belongs to a row has one name before the first dot, and says by the rest what it is.

    dog-7.jpg  dog-7.json  dog-7.mask.png  dog-7.ref.0.webp  dog-7.ref.1.webp

`KEY.jpg` (png, webp …) is the target, `KEY.json` an object with the keys of a row but for pictures, `KEY.txt` its
caption, `KEY.cls` its word; `KEY.ref.jpg`, `KEY.ref1.jpg`, `KEY.reference.0.jpg` are references, `KEY.mask.png` is the
mask, `KEY.view.0.jpg`, `KEY.view.1.jpg` … are a group. Where the object has several `subjects`, references and masks
are numbered by them, from 0 on. Each tar is a part; pictures are read out of it where they lie.
"""

import dataclasses
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from realcustom_jax.data.rows import Row, Stored
from realcustom_jax.data.sources.contents import digest_of_files, fetched
from realcustom_jax.data.sources.parts import BrokenRow
from realcustom_jax.data.sources.schema import KEYS, Naming, row_of

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")
"""Endings of the files that are taken for pictures, in small letters."""
_FILE = re.compile(rf"(?:(?P<role>ref|reference|view|mask)s?\.?(?P<number>\d*)(?:\.(?P<more>\d+))?\.)?"
                   rf"(?:{'|'.join(PICTURES)})", re.IGNORECASE)
_ROLES = {"ref": "reference", "reference": "reference", "view": "views", "mask": "mask", None: "target"}
_TARGETS = "target", "views"
_NAMED = {"text": "caption", "prompt": "caption", "class": "word"}


@dataclasses.dataclass(frozen=True)
class StoredMember:
    """A picture that is a stretch of a tar."""

    tar: "AnyPath"
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """See `rows.Stored`."""
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self.tar} ends within {self.name}: copy the tar again")
        return content


@dataclasses.dataclass(frozen=True)
class Tar:
    """One tar."""

    file: "AnyPath"
    naming: Naming

    @property
    def name(self) -> str:
        return self.file.name

    def rows(self) -> Iterator[Row | BrokenRow]:
        """See `Part.rows`."""
        with fetched(self.file) as tar:
            samples, whole = {}, True
            try:
                for key, ending, member in _members(tar, self.file):
                    samples.setdefault(key, {})[ending] = member
            except _CutOff as cut:
                samples, whole = samples or {cut.key: {}}, False
            except _NoTar as wrong:
                yield BrokenRow(self.name, str(wrong))
            for number, (key, members) in enumerate(samples.items(), 1):
                where = f"{self.name}: {key}"
                try:
                    if number == len(samples) and not whole:
                        raise ValueError(f"{self.name} is cut off or damaged here, and nothing after it can be read; "
                                         "copy the tar again")
                    yield row_of(self.naming.with_word(_described(members, self.naming)), where, _no_name)
                except (ValueError, OSError) as error:
                    yield BrokenRow(where, str(error))


@dataclasses.dataclass(frozen=True)
class Tars:
    """Several tars."""

    files: tuple[...]
    naming: Naming = Naming()

    def check(self) -> None:
        """Raises ValueError, OSError: no tar has a picture with something that says what it shows, of those up to the
        first that has any whole file; says what is wrong with the first one."""
        wrong = None
        for file in self.files:
            endings, found = _looked_through(file)
            if found is None:
                return
            wrong = wrong or found
            if endings:
                break
        raise ValueError(wrong)

    def parts(self) -> Sequence[Tar]:
        """See `Source.parts`."""
        return [Tar(file, self.naming) for file in self.files]

    def identity(self, seen: "AnyPath") -> str:
        """See `Source.identity`."""
        return hashlib.sha256(f"tar {self.naming} {digest_of_files(self.files, seen)}".encode()).hexdigest()[:16]


def _looked_through(file: "AnyPath") -> tuple[set[str], str | None]:
    """(endings of the files in a tar up to its first pair of a picture and what it shows, what is wrong if there is
    none)."""
    met = {}
    try:
        for key, ending, _ in _members(file, file):
            endings = met.setdefault(key, set())
            endings.add(ending)
            if endings & {"json", "txt", "cls"} and any((_role(x) or ("",))[0] in _TARGETS for x in endings):
                return endings, None
        found = sorted(set().union(*met.values()))
        wrong = (f"{file} has no pair of a picture and what it shows: expected KEY.jpg with KEY.json or KEY.txt, found "
                 f"{', '.join(f'KEY.{x}' for x in found[:10]) or 'no files'}.")
    except _NoTar as error:
        wrong = f"{file} {error}."
    except _CutOff:
        return set(), f"{file} is cut off or damaged before its first row ends: copy the tar again."
    return set(found) if met else set(), wrong


class _NoTar(Exception):
    """The file is no plain tar; says why, without the file's name."""


class _CutOff(Exception):
    """The tar ends, or is damaged, in or after the row `key`."""

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key


def _members(tar: "AnyPath", name: "AnyPath") -> Iterator[tuple[str, str, StoredMember]]:
    """(key, ending, file) in the tar's order; only headers are read. `name`: of the tar, for messages.

    Raises:
        _CutOff: what comes after cannot be read. _NoTar: it is none. OSError: the file cannot be read.
    """
    key = ""
    with tar.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            opened = tarfile.open(fileobj=file, mode="r:")
        except tarfile.TarError as error:
            raise _NoTar(f"is no plain tar ({error}): copy it again; a compressed one has to be unpacked, because it "
                         "cannot be read at random") from None
        try:
            while info := opened.next():
                opened.members = []  # which would keep every header
                folder, slash, base = info.name.removeprefix("./").rpartition("/")
                stem, _, ending = base.partition(".")
                if info.isreg() and stem and ending:
                    key = f"{folder}{slash}{stem}"
                    where = f"{name.name}: {info.name}"
                    yield key, ending.lower(), StoredMember(tar, where, info.offset_data, info.size)
                if info.offset_data + info.size > size:
                    raise _CutOff(key)
        except tarfile.TarError:
            raise _CutOff(key) from None
        file.seek(opened.offset)  # zeros follow the last file, or nothing; tarfile takes a damaged header for the end
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise _CutOff(key)


def _role(ending: str) -> tuple[str, int, int] | None:
    """(key of a row, number, second number) of a picture's ending; None: it is no picture."""
    found = _FILE.fullmatch(ending)
    return (_ROLES[found["role"]], int(found["number"] or 0), int(found["more"] or 0)) if found else None


def _described(members: dict[str, StoredMember], naming: Naming) -> dict[str, Any]:
    """The object of a row, with the pictures that lie beside it."""
    given = _object(members, naming)
    if "caption" not in given and "txt" in members:
        given["caption"] = " ".join(_text(members["txt"]).split())
    if "word" not in given and "subjects" not in given and "cls" in members:
        given["word"] = _text(members["cls"]).strip()
        if given["word"].isdecimal():
            raise ValueError(f"its .cls is the number {given['word']}; expected the word of the subject")
    pictures = sorted((*_role(ending), member.name, member) for ending, member in members.items() if _role(ending))
    for role, number, _, _, member in pictures:
        several = given.get("subjects")
        if role in ("reference", "mask") and isinstance(several, list):
            if number >= len(several) or not isinstance(several[number], dict):
                raise ValueError(f"{member.name} is of subject {number}, and it has {len(several)}, from 0 on")
            _put(several[number], role, member)
        else:
            _put(given, role, member)
    if "caption" not in given and given.get("word"):
        given["caption"] = f"a photo of a {given['word']}"
    if "caption" not in given:
        raise ValueError("it has no .json and no .txt that says what it shows")
    return given


def _object(members: dict[str, StoredMember], naming: Naming) -> dict[str, Any]:
    """What the .json says, without what other programs note there."""
    if "json" not in members:
        return {}
    try:
        given = json.loads(members["json"].read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError("its .json is not a JSON object")
    given = naming.renamed(given)
    given = {_NAMED[name]: value for name, value in given.items() if name in _NAMED} | given
    if named := next((key for key in ("target", "views", "reference") if given.get(key) is not None), None):
        raise ValueError(f"its .json has {named!r}; in a tar, pictures lie beside it, as KEY.ref.jpg")
    return {key: value for key, value in given.items() if key in KEYS}


def _put(given: dict[str, Any], role: str, member: Stored) -> None:
    if role in ("reference", "views"):
        given.setdefault(role, []).append(member)
    elif given.get(role) is not None:
        raise ValueError(f"it has more than one {role}: {member.name} and another one")
    else:
        given[role] = member


def _text(member: StoredMember) -> str:
    try:
        return member.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{member.name} is no text in UTF-8") from None


def _no_name(name: str) -> Stored:
    raise ValueError(f"it names the file {name[:80]!r}; in a tar, pictures lie beside it, as KEY.mask.png")
