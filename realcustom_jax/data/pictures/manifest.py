"""What a folder of pictures says about itself: manifest.jsonl, a JSON object on each line.

    {"target": "a.jpg", "caption": "a toy in the jungle", "word": "toy", "reference": "b.jpg"}
    {"target": "c.jpg", "caption": "a dog on a sofa", "word": "dog", "mask": "c-dog.png"}
    {"target": "d.jpg", "caption": "a red car", "word": "car", "box": [40, 60, 300, 220]}

`target` is what the model learns to draw, `word` the words of the caption that stand for the subject. `reference` is a
picture, or a list of pictures, of the same subject (other views, other frames of a video). `mask` (white on black) or
`box` (left, top, right, bottom in pixels) says where the subject is in the target, from which references are cut out.
Files are relative to the manifest's folder.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from realcustom_jax.conditioning.words import word_spans
from realcustom_jax.files import write_file

_SETTLED = 2 * 10**9  # nanoseconds; some file systems count whole seconds
_KEYS = {"target", "caption", "word", "reference", "mask", "box"}


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One line. `where` is its number, for messages; box is (left, top, right, bottom)."""

    where: str
    target: Path
    caption: str
    word: str
    references: tuple[Path, ...] = ()
    mask: Path | None = None
    box: tuple[float, float, float, float] | None = None


def read_manifest(file: Path) -> tuple[list[ManifestRow], list[str]]:
    """(good rows, one sentence for each broken line), in the file's order; pictures are not opened.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; a data folder needs a manifest.jsonl, an object on each line.")
    rows, broken = [], []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(_parse(line, file.parent, f"line {number}"))
            except ValueError as error:
                broken.append(f"line {number}: {error}")
    return rows, broken


def fingerprint(folder: Path, seen: Path) -> str:
    """Of a folder's manifest and of the content of every file that its good rows name, inside the folder or not.

    A file is read again only when its size or one of its times has changed: `seen` is a JSON file that keeps what was
    read. Names in it are relative to the folder, so that a folder that was moved as a whole is not read again.

    Raises:
        FileNotFoundError: there is no manifest.jsonl. OSError: a file cannot be read.
    """
    rows, _ = read_manifest(folder / "manifest.jsonl")
    named = (path for row in rows for path in (row.target, *row.references, *([row.mask] if row.mask else [])))
    try:
        known = dict(json.loads(seen.read_bytes()))
    except (OSError, ValueError, TypeError):  # it is not there, or damaged: everything is read
        known = {}
    found = {}
    for path in tqdm(dict.fromkeys(named), desc="looking at pictures", unit="file", leave=False, mininterval=1):
        name, state = os.path.relpath(path, folder), path.stat()
        when = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        kept = known.get(name)
        if not isinstance(kept, list) or kept[:-1] != when:
            with path.open("rb") as file:
                kept = [*when, hashlib.file_digest(file, "sha256").hexdigest()]
        found[name] = kept
    # A file that was written a moment ago may change once more without another time.
    settled = {name: kept for name, kept in found.items() if time.time_ns() - max(kept[1:3]) > _SETTLED}
    if settled != known:
        write_file(seen, json.dumps(settled).encode())
    digest = hashlib.sha256((folder / "manifest.jsonl").read_bytes())
    digest.update("".join(content for *_, content in found.values()).encode())
    return digest.hexdigest()[:16]


def _parse(line: bytes, folder: Path, where: str) -> ManifestRow:
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # of JSON, of its encoding, of its depth
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError("it is not a JSON object")
    if unknown := sorted(given.keys() - _KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    for key in ("target", "caption", "word"):
        if not isinstance(given.get(key), str) or not given[key].strip():
            raise ValueError(f"{key!r} is missing or no text")
    references = given.get("reference", [])
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list) or not all(isinstance(name, str) for name in references):
        raise ValueError("'reference' is neither a file name nor a list of them")
    if not isinstance(given.get("mask", ""), str):
        raise ValueError("'mask' is no file name")
    word, caption = given["word"], given["caption"]
    if not word_spans(caption, word):
        raise ValueError(f"the word {word!r} is not in the caption {caption!r}")
    if not (references or "mask" in given or given.get("box") is not None):
        raise ValueError("it has none of 'reference', 'mask' and 'box': there is no picture of the subject")
    mask = folder / given["mask"] if "mask" in given else None
    files = [folder / given["target"], *(folder / name for name in references), *([mask] if mask else [])]
    if missing := next((path for path in files if not path.is_file()), None):
        raise ValueError(f"the file {missing} does not exist")
    references = tuple(files[1:1 + len(references)])
    return ManifestRow(where, files[0], caption, word, references, mask, _box(given.get("box")))


def _box(given: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    if given is None:
        return None
    numbers = isinstance(given, list) and len(given) == 4 and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in given)
    if not numbers or not (0 <= given[0] < given[2] and 0 <= given[1] < given[3]):
        raise ValueError(f"the box {given} is not [left, top, right, bottom] with left < right and top < bottom")
    return tuple(given)
