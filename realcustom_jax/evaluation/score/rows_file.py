"""The file that says which pictures are scored against what: a JSON object on each line.

    {"picture": "001.png", "prompt": "a dog on the beach", "references": ["dog/00.jpg", "dog/01.jpg"]}
    {"picture": "002.png", "prompt": "a dog and a car", "references": [["dog/00.jpg"], ["car/00.jpg"]],
     "subject": "dog and car", "boxes": [[[10, 20, 200, 220]], []]}

    picture           the generated picture
    prompt            what it is compared with
    references        real pictures of its subject; a list of lists where there are several subjects
    name              for the report (the number of the line, as 0001)
    subject           rows with the same one share their luck: intervals are over subjects (the set of references)
    part              of the benchmark; each has means of its own, beside those of all rows
    reference_masks   where the subject is in each reference, white; nested as the references are
    masks             where each subject is in the picture, white: a list with one for each subject, or null
    boxes             each subject's detections in the picture, x0, y0, x1, y1 in pixels, the second corner outside: a
                      list for each subject, empty where it was looked for and not found; null where nobody has looked

Paths are relative to the folder of the pictures.
"""

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from realcustom_jax.conditioning.images import load_rgb
from realcustom_jax.errors import check_text, quoted
from realcustom_jax.evaluation.rows import ComparedSubject, PictureRow
from realcustom_jax.json_lines import is_number, is_text, numbered_lines, parse_object, told
from realcustom_jax.paths import beside, local_copy

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


def _list_of(fits: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(fits, value))


def _texts(value: Any) -> bool:
    return _list_of(is_text, value)


def _nested(value: Any) -> bool:
    return _texts(value) or _list_of(_texts, value)


def _box(value: Any) -> bool:
    return (isinstance(value, list) and len(value) == 4 and all(is_number(x) and math.isfinite(x) for x in value)
            and value[0] < value[2] and value[1] < value[3])


_KINDS = {
    "picture": (is_text, "the path of a picture"), "prompt": (is_text, "a text"),
    "references": (_nested, "a list of paths, or such a list for each subject"),
    "name": (is_text, "a text"), "subject": (is_text, "a text"), "part": (is_text, "a text"),
    "reference_masks": (_nested, "a list of paths, or such a list for each subject"),
    "masks": (lambda value: _list_of(lambda x: x is None or is_text(x), value),
              "a list with a path or null for each subject"),
    "boxes": (lambda value: _list_of(
        lambda x: x is None or isinstance(x, list) and all(map(_box, x)), value),
        "for each subject a list of boxes [x0, y0, x1, y1] with x0 < x1 and y0 < y1, or null"),
}


def read_rows(file: "AnyPath", pictures: "AnyPath") -> tuple[PictureRow, ...]:
    """The rows that a file says, of pictures in a folder.

    Every line must be usable and every file be a picture: a mean that leaves rows out would not be the protocol's.

    Raises:
        OSError, ValueError: the file cannot be read, it holds no row, or lines of it cannot be used; the first ten of
            them are named.
    """
    rows, problems, lines, seen = [], [], {}, {}
    for number, line in numbered_lines(file):
        try:
            row = _parse(line, number, f"{file}, line {number}", pictures)
            first = lines.setdefault(row.name, number)
            if first != number:
                raise ValueError(f"the name {quoted(row.name)} is taken by line {first}")
            for path in _files(row):
                if path not in seen:
                    seen[path] = _problem(path)
                if seen[path]:
                    raise ValueError(seen[path])
            rows.append(row)
        except (ValueError, OSError) as error:
            problems.append((number, " ".join(str(error).split())))
    if len(problems) == 1:
        raise ValueError(f"{file}, {told(problems)}; nothing is scored before every line can be used.")
    if problems:
        raise ValueError(f"{file} has {len(problems)} bad lines of {len(problems) + len(rows)}, and nothing is scored "
                         f"before every line can be used: {told(problems)}.")
    if not rows:
        raise ValueError(f"{file} holds no rows; expected on each line a JSON object with picture, prompt and "
                         "references.")
    return tuple(rows)


def _parse(line: bytes, number: int, where: str, folder: "AnyPath") -> PictureRow:
    """The row in one line; raises ValueError that says what is wrong with it."""
    values = parse_object(line, _KINDS)
    if lacking := [key for key in ("picture", "prompt", "references") if key not in values]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    check_text("prompt", values["prompt"])
    references = _by_subject(values["references"])
    count = len(references)
    if "reference_masks" in values:
        reference_masks = _by_subject(values["reference_masks"])
        if list(map(len, reference_masks)) != list(map(len, references)):
            raise ValueError(f"reference_masks has {_counts(reference_masks)} files, expected one for each of the "
                             f"{_counts(references)} references")
    else:
        reference_masks = [[] for _ in references]
    regions = {key: values.get(key) or [None] * count for key in ("masks", "boxes")}
    for key, given in regions.items():
        if len(given) != count:
            raise ValueError(f"{key} has {len(given)} entries, expected one for each of {count} subject(s)")
    subjects = tuple(
        ComparedSubject(
            references=tuple(beside(folder, path) for path in paths),
            reference_masks=tuple(beside(folder, path) for path in masks),
            mask=None if mask is None else beside(folder, mask),
            boxes=None if boxes is None else tuple(tuple(map(float, box)) for box in boxes))
        for paths, masks, mask, boxes in zip(references, reference_masks, *regions.values(), strict=True))
    group = values.get("subject") or " + ".join(sorted({path for paths in references for path in paths}))
    return PictureRow(where, values.get("name", f"{number:04d}"), beside(folder, values["picture"]), values["prompt"],
                      subjects, group, values.get("part", ""))


def _by_subject(paths: list) -> list[list[str]]:
    return [paths] if isinstance(paths[0], str) else paths


def _counts(lists: list[list[str]]) -> str:
    return " + ".join(str(len(one)) for one in lists)


def _files(row: PictureRow) -> "list[AnyPath]":
    masks = [subject.mask for subject in row.subjects if subject.mask is not None]
    return [row.picture, *(path for subject in row.subjects for path in (
        *subject.references, *subject.reference_masks)), *masks]


def _problem(path: "AnyPath") -> str:
    """What is wrong with a picture's file, as far as its beginning tells; "" where nothing is."""
    try:
        if not os.path.isfile(local := local_copy(path)):
            raise FileNotFoundError
        try:
            with Image.open(local):
                return ""
        except Exception:  # of many kinds; what only Pillow's own reader refuses may still be read
            load_rgb(local)
            return ""
    except FileNotFoundError:
        return f"the picture {quoted(str(path))} does not exist"
    except (OSError, ValueError) as error:
        return str(error)
