"""Many prompts with one loaded model: a JSON-lines file in, a folder of pictures out, resumable at any moment.

    {"prompt": "a dog on the beach", "image": "dog.png", "target": "dog"}
    {"name": "pair", "prompt": "a dog and a car in space", "image": ["dog.png", "car.png"], "target": ["dog", "car"]}
    {"prompt": "a dog in space", "image": "dog.png", "target": "dog", "init_image": "room.png", "strength": 0.6}

`NAME.json` is written after the pictures of its row and says what they were made of, so it marks the row as complete:
whatever kills a run, the next one makes the rows that lack it, and no others. A row that cannot be read or made is
told, and the others are made. Rows run in the order of the file; each shape (size, number of pictures, number of
references) compiles once, wherever its rows stand. A folder belongs to one run at a time, or to several processes of
one, each with a share of its rows.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from realcustom_jax.conditioning.regions import check_region, is_box, listed_regions
from realcustom_jax.errors import check_text, printable, sentence, visible
from realcustom_jax.files import clear_leftovers, file_digest, png, user_of_share, write_file, write_json
from realcustom_jax.json_lines import is_number, is_text, numbered_lines, parse_object, told
from realcustom_jax.memory import enough_memory
from realcustom_jax.models.context import check_strengths
from realcustom_jax.paths import as_path, beside, is_bucket, local_copy, make_folder, reaching
from realcustom_jax.sampling.options import check_options

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath
    from realcustom_jax.pipeline import Pipeline

_SOURCE = "source"  # the key of a record that is not compared


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of the pipeline."""

    where: str  # file and line, for messages
    name: str  # of the files that it makes, without their endings
    prompt: str
    targets: tuple[str, ...]
    references: "tuple[AnyPath, ...]"
    options: Mapping[str, Any]  # what else it says, of `_KEYS`
    pictures: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `_PICTURES`: paths and boxes

    @property
    def has_all_masks(self) -> bool:
        """Whether it gives a mask for each subject."""
        masks = self.pictures.get("masks")
        return masks is not None and None not in masks


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A line that says no call."""

    where: str
    problem: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """How many rows were made, were there already, and could not be made."""

    made: int
    skipped: int
    failed: int


def read_rows(file: str | Path) -> tuple[Row | BadRow, ...]:
    """Reads a JSON object from each line that is not blank; a line that cannot be used becomes a `BadRow`.

    Its keys: prompt; image and target, a text or a list of them; optional are name (by default the number of the
    line, as 0001) and options of `Pipeline.__call__`: seed, num_images, width, height, negative_prompt, steps, solver,
    branches, guidance_scale, guidance_mode, text_guidance, rescale, scope, freeze_mask_step, shared_reference,
    vision_scale, masks, init_image, strength and mask_image. Images and masks are relative to the file's folder; a box
    is a list of numbers.

    Raises:
        OSError, ValueError: the file cannot be read, or none of its lines can be used; the first ten are named.
    """
    rows, taken = [], {}
    for number, line in numbered_lines(file):
        where = f"{file}, line {number}"
        try:
            row = _parse(line, f"{number:04d}", as_path(file).parent, where)
            first = taken.setdefault(row.name.casefold(), number)  # Dog and dog are one file on some systems
            if first != number:
                raise ValueError(f"the name {row.name!r} is taken by line {first}")
            rows.append(row)
        except ValueError as error:
            rows.append(BadRow(where, sentence(error).rstrip(".")))
    if not rows:
        raise ValueError(f"{file} holds no prompts; expected a JSON object on each line.")
    if all(isinstance(row, BadRow) for row in rows):
        problems = [(int(row.where.rpartition(" ")[2]), row.problem) for row in rows]
        raise ValueError(f"{file} has {len(rows)} bad line(s) and no good one: {told(problems)}.")
    return tuple(rows)


def _report(line: str) -> None:
    tqdm.write(printable(line, sys.stdout))


def run_batch(
    pipeline: Callable, rows: Sequence[Row | BadRow], out: "AnyPath", *, options: Mapping[str, Any],
    loaded: Mapping[str, Any] = MappingProxyType({"model": "mini"}), source: Mapping[str, Any] = MappingProxyType({}),
    report: Callable[[str], None] = _report, share: tuple[int, int] = (0, 1),
) -> Summary:
    """Makes the pictures of all rows that are not complete in the folder `out`.

    A row makes `NAME.png`, or `NAME-0.png`, `NAME-1.png` … if it asks for several, then `NAME.json`; each file is
    written whole or not at all. A row that cannot be read, or that the pipeline cannot make, is reported, and the
    others go on.

    Args:
        pipeline: a `Pipeline`, or what is called like one.
        options: of the pipeline, JSON values, for all rows; what a row says itself goes first.
        loaded: what the pipeline is and how it is used, JSON values such as `Pipeline.fingerprints`; recorded and
            compared, so that pictures of two models, or of one before and after it was trained anew, do not mix.
        source: where it was loaded from, JSON values; recorded for the reader only, as a model may be moved.
        report: told one line about each row that failed.
        share: (I, N): this is process I of N that work in `out`, whose rows are I, I + N, I + 2N …; numbers in the
            summary are of these.
    Raises:
        OSError, ValueError: before anything is made if two rows make the same file, another run is at work in `out`, or
            it holds results of another request (words, options, content of the model, the adapter or the
            references); later if a file cannot be written.
    """
    number, of = share
    requests, unreadable = [], []
    for row in rows[number::of]:
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.problem)
            requests.append((row, _request(row, options, {**loaded, _SOURCE: source})))
        except (ValueError, OSError) as error:
            unreadable.append(_failure(row, error))
    _check_names(requests)
    make_folder(out)
    with user_of_share(out, number, of):
        todo = _todo(requests, out)
        clear_leftovers(out, None if of == 1 else {
            file for row, request in requests for file in (f"{row.name}.json", *request["files"])})
        for line in unreadable:
            report(line)
        summary = _run(pipeline, todo, len(requests), out, report)
    return dataclasses.replace(summary, failed=summary.failed + len(unreadable))


def identity(pipeline: "Pipeline") -> dict[str, Any]:
    """What a pipeline is, as `loaded` of `run_batch`: a model may have been trained anew at its path, so its content is
    compared, and how its preset uses it."""
    return {"content": pipeline.fingerprints(), "preset": dataclasses.asdict(pipeline.preset)}


def unfinished(rows: Sequence[Row], out: "AnyPath", *, options: Mapping[str, Any], loaded: Mapping[str, Any]
               ) -> list[Row]:
    """Those of the rows that are not complete in the folder `out`; arguments and errors as of `run_batch`."""
    return [row for row, _ in _todo([(row, _request(row, options, loaded)) for row in rows], out)]


def pictures_of(row: Row, options: Mapping[str, Any]) -> list[str]:
    """The names of the files that a row makes with these options."""
    count = {**options, **row.options}.get("num_images", 1)
    return [f"{row.name}.png"] if count == 1 else [f"{row.name}-{i}.png" for i in range(count)]


def _failure(row: Row | BadRow, error: Exception) -> str:
    title = f"{row.where} ({row.name})" if isinstance(row, Row) else row.where
    return visible(f"{title} failed: {sentence(error)}")


def _todo(requests: Sequence[tuple[Row, Mapping[str, Any]]], out: "AnyPath") -> list[tuple[Row, Mapping[str, Any]]]:
    """The rows that are not complete in a folder that is there."""
    return [(row, request) for row, request in requests if not _is_complete(out, row, request)]


def _run(pipeline, todo: Sequence[tuple[Row, Mapping[str, Any]]], count: int, out: "AnyPath", report) -> Summary:
    """Makes the rows of `todo`, of `count` altogether, in a folder that nobody else uses."""
    failed, skipped = 0, count - len(todo)
    for row, request in tqdm(todo, total=count, initial=skipped, desc="Prompts (a new shape compiles)"):
        try:
            with enough_memory():
                images = pipeline(list(row.references), row.prompt, row.targets, **request["options"],
                                  **row.pictures).images
        except (ValueError, OSError) as error:
            report(_failure(row, error))
            failed += 1
            continue
        for file, image in zip(request["files"], images, strict=True):
            write_file(out / file, png(image))
        write_json(out / f"{row.name}.json", request)
    return Summary(len(todo) - failed, skipped, failed)


_MOST_PICTURES = 10_000  # of a row: all are in memory at once, and each has a file
_COUNT = ((lambda value: type(value) is int and value > 0), "a whole number above 0")
_TEXT = (is_text, "a text")
_TEXTS = (lambda value: is_text(value) or isinstance(value, list) and value and all(map(is_text, value)),
          "a text or a list of texts")
_NUMBER = (is_number, "a number")


def _is_region(value: Any) -> bool:
    return is_text(value) or isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _are_strengths(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(not isinstance(x, dict) and _are_strengths(x) for x in value.values())
    return is_number(value) or isinstance(value, list) and bool(value) and all(map(is_number, value))


_WORDS = "prompt", "target", "negative_prompt"  # which the tokenizer reads
_KEYS = {  # what a value must be, for a program and for a reader
    "prompt": _TEXT, "image": _TEXTS, "target": _TEXTS,
    # 200 bytes leave room for the endings in the 255 that file systems allow.
    "name": (lambda value: is_text(value) and re.fullmatch(r"\w[\w .+-]*", value) and len(value.encode()) <= 200,
             "up to 200 letters, digits, spaces, _ - + . after the first"),
    "seed": (lambda value: type(value) is int and 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"),
    "num_images": (lambda value: type(value) is int and 0 < value <= _MOST_PICTURES,
                   f"a whole number from 1 to {_MOST_PICTURES}"),
    "width": _COUNT, "height": _COUNT,
    "negative_prompt": (lambda value: isinstance(value, str), "a text"),
    "steps": _COUNT, "solver": _TEXT, "branches": _TEXT, "guidance_mode": _TEXT,
    "guidance_scale": (lambda value: value is None or is_number(value), "a number, or null for no guidance"),
    "shared_reference": _TEXT, "text_guidance": _NUMBER, "rescale": _NUMBER, "scope": _NUMBER,
    "freeze_mask_step": _COUNT, "strength": _NUMBER,
    "vision_scale": (_are_strengths, "a number, a list of them, or an object of either by block"),
    "init_image": _TEXT, "mask_image": (_is_region, "a text or a box of four numbers"),
    "masks": (lambda value: _is_region(value) or isinstance(value, list) and value and all(
        x is None or _is_region(x) for x in value), "a text, a box of four numbers, or a list of them and null"),
}
_PICTURES = "init_image", "mask_image", "masks"


def _parse(line: bytes, default_name: str, folder: "AnyPath", where: str) -> Row:
    """The row in one line; raises ValueError that says what is wrong with it."""
    values = parse_object(line, _KEYS)
    for key, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if key in _WORDS:
                check_text(key, text)
    if lacking := [key for key in ("prompt", "image", "target") if key not in values]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    images, targets = ([x] if isinstance(x, str) else x for x in (values.pop("image"), values.pop("target")))
    references = tuple(beside(folder, image) for image in images)
    if _is_region(values.get("masks")):
        values["masks"] = [values["masks"]]
    pictures = {name: _with_paths(values.pop(name), folder) for name in _PICTURES if name in values}
    files = [x for value in pictures.values() for x in (value if isinstance(value, list) else [value])]
    for path in (*references, *(x for x in files if isinstance(x, PurePath))):
        if not (_is_object(path) if is_bucket(path) else os.path.isfile(path)):
            raise ValueError(f"the image {_shortened(str(path))} does not exist")
    prompt, name = values.pop("prompt"), values.pop("name", default_name)
    check_strengths(values.get("vision_scale", 1.0), len(targets))
    for i, mask in enumerate(listed_regions(pictures.get("masks"), len(targets)), 1):
        if is_box(mask):  # a picture is read when its row is made
            check_region(mask, f"mask of target {i}")
    if is_box(pictures.get("mask_image")):
        check_region(pictures["mask_image"], "mask_image")
    check_options(**{key: x for key, x in values.items() if key not in ("width", "height", "negative_prompt")},
                  **pictures)
    return Row(where, name, prompt, tuple(targets), references, values, pictures)


def _is_object(path: "AnyPath") -> bool:
    with reaching(path):
        return path.is_file()


def _with_paths(value: Any, folder: "AnyPath") -> Any:
    """The value with texts as paths of files in the folder."""
    if isinstance(value, list):
        return [_with_paths(x, folder) for x in value]
    return beside(folder, value) if isinstance(value, str) else value


def _shortened(path: str) -> str:
    return path if len(path) <= 400 else f"{path[:400]}…"


def _request(row: Row, options: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """What `NAME.json` holds, in plain JSON values: all that decides how the row's pictures look, and their names."""
    options = {"seed": 0, **options, **row.options}
    loaded = {name: dict(value) if isinstance(value, Mapping) else value for name, value in loaded.items()}
    pictures = {"pictures": recorded(dict(row.pictures))} if row.pictures else {}
    return json.loads(json.dumps({"prompt": row.prompt, "targets": row.targets, "references": recorded(row.references),
                                  "options": options, **pictures, **loaded, "files": pictures_of(row, options)}))


def recorded(value: Any) -> Any:
    """The value with the paths in it as the names and contents of their files."""
    if isinstance(value, PurePath):
        return {"file": value.name, "sha256": file_digest(local_copy(value))}
    if isinstance(value, dict):
        return {name: recorded(x) for name, x in value.items()}
    return [recorded(x) for x in value] if isinstance(value, list | tuple) else value


def _check_names(requests: Sequence[tuple[Row, Mapping[str, Any]]]) -> None:
    """Raises ValueError if two rows make the same picture, as a row a-0 and two pictures of a row a would."""
    owners = {}
    for row, request in requests:
        for file in request["files"]:
            if (owner := owners.setdefault(file.casefold(), row)) is not row:
                raise ValueError(f"{owner.where} and {row.where} would both write {file}; give one another name.")


def _is_complete(out: "AnyPath", row: Row, request: Mapping[str, Any]) -> bool:
    """Whether the row's files are all there; raises ValueError if they are another request's."""
    marker = out / f"{row.name}.json"
    if not marker.is_file():
        return False
    try:
        found = dict(json.loads(marker.read_bytes()))
    except (ValueError, TypeError):  # not written here
        found = {}
    if other := [key for key in {**request, **found} if key != _SOURCE and found.get(key) != request.get(key)]:
        raise ValueError(f"{marker} holds results of another request than {row.where} (other {', '.join(other)}); "
                         "choose another folder, or delete that file to make the row anew.")
    return all((out / file).is_file() for file in request["files"])
