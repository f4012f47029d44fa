"""Manifests as sources: every key of a row, rows that are broken in every way, parts and identity."""

import json
import os
import re
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sources import mask, opened, picture, rows_of

from realcustom_jax.data.examples import Drawn, read_example
from realcustom_jax.data.records import CUT_OUT
from realcustom_jax.data.sources import contents, manifest, open_source, parts
from realcustom_jax.data.sources.mixture import read_mixture
from realcustom_jax.data.sources.parts import BrokenRow
from realcustom_jax.data.sources.schema import KEYS, row_of


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for name, colour in (("a.jpg", "red"), ("b.webp", "green"), ("c.png", "blue"), ("d.jpg", "yellow")):
        kind = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[name[2:]]
        (place / name).write_bytes(picture(colour=colour, kind=kind))
    (place / "mask.png").write_bytes(mask())
    (place / "small.png").write_bytes(mask((6, 4), (1, 1, 3, 3)))
    (place / "empty.png").write_bytes(mask(box=(0, 0, 0, 0)))
    (place / "broken.png").write_bytes(b"\x89PNG but not really")
    return place


def write(folder, *rows, name="manifest.jsonl"):
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


GOOD = {"target": "a.jpg", "caption": "a toy in the jungle", "word": "toy", "reference": "b.webp"}
MASKED = {"target": "a.jpg", "caption": "a Dog on a sofa", "word": "dog", "mask": "mask.png"}
RLE = {"size": [16, 24], "counts": [2 * 16 + 3, *[10, 6] * 9, 10, 195]}
GROUP = {"views": ["a.jpg", "b.webp", "c.png"], "caption": "a toy", "word": "toy"}
TWO = {"target": "a.jpg", "caption": "a dog beside a red car", "subjects": [
    {"word": "dog", "reference": ["b.webp", "c.png"]}, {"word": "red car", "box": [2, 3, 12, 13]}]}


def test_every_key_of_a_row(folder):
    write(folder, GOOD | {"caption": ["a toy in the jungle", "one toy", "one toy"], "subject": "Rex", "score": 0.5},
          MASKED | {"reference": ["b.webp", "c.png"], "box": [0, 0, 9.5, 9]}, MASKED | {"mask": RLE},
          MASKED | {"mask": [[2, 3, 12, 3, 12, 13, 2, 13]]}, GROUP | {"reference": "d.jpg", "subject": 7}, TWO,
          GOOD | {"mask": None, "box": None, "score": None, "views": None})
    (variants, several, lengths, polygon, group, two, nulls), broken = opened(folder)
    assert not broken and [row.where for row in (variants, nulls)] == ["line 1", "line 7"]
    assert variants.captions == ["a toy in the jungle", "one toy"] and variants.words == ["toy"]
    assert variants.identity == "Rex" and variants.score == 0.5 and np.isnan(nulls.score)
    assert variants.pictures == [(folder / "a.jpg").read_bytes(), (folder / "b.webp").read_bytes()]
    assert several.views.tolist() == [[0, 1], [0, 2]] and several.boxes[0].tolist() == [0, 0, 10, 9]
    assert lengths.masks == polygon.masks and len(lengths.masks) == 1
    assert several.masks == lengths.masks  # the same white rectangle, by all three ways
    assert group.targets == 3 and group.views.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]] and group.identity == "7"
    assert two.words == ["dog", "red car"] and two.views.tolist() == [[0, 1], [0, 2]] and list(two.boxes) == [1]


@pytest.mark.parametrize("row, words", [
    ("{not json", "it is not JSON"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "it is not JSON"),
    ({"caption": "a toy", "word": "toy", "reference": "b.webp"}, "'target' is missing"),
    (GOOD | {"colour": "red"}, "unknown key 'colour'; known are box, caption"),
    (GOOD | {"captoin": "red"}, "unknown key 'captoin'.*; did you mean 'caption'?"),
    (GOOD | {"caption": []}, "'caption' is missing or no text"),
    (GOOD | {"caption": ["a toy", 3]}, "'caption' is missing or no text"),
    (GOOD | {"caption": ["a toy", "a dog"]}, "the word 'toy' is not in the caption 'a dog'"),
    (GOOD | {"caption": "a toy \ud83d"}, "half of a character"),
    (GOOD | {"word": "to"}, "the word 'to' is not in the caption 'a toy in the jungle'"),
    (GOOD | {"word": " "}, "'word' is missing or no text"),
    (GOOD | {"reference": "gone.png"}, "gone.png does not exist"),
    (GOOD | {"reference": "\0.png"}, "does not exist"),
    (GOOD | {"reference": "x" * 5000}, "does not exist"),
    (GOOD | {"reference": "."}, "does not exist"),
    (GOOD | {"reference": 3}, "neither a file name nor a list"),
    ({k: v for k, v in GOOD.items() if k != "reference"}, "none of 'reference', 'mask' and 'box'"),
    (GOOD | {"reference": []}, "none of 'reference', 'mask' and 'box'"),
    (GOOD | {"target": "broken.png"}, "broken.png cannot be read"),
    (GOOD | {"target": ["a.jpg"]}, "'target' is missing or no text"),
    (MASKED | {"mask": "small.png"}, "is 6 x 4, its target 24 x 16"),
    (MASKED | {"mask": "empty.png"}, "is empty"),
    (MASKED | {"mask": 3}, "neither a file name, run lengths"),
    (MASKED | {"mask": RLE | {"size": [24, 16]}}, "the mask is 16 x 24, its target 24 x 16"),
    (MASKED | {"mask": RLE | {"size": [10**9, 10**9]}}, "is not .height, width."),
    (MASKED | {"mask": RLE | {"counts": [3, 4]}}, "the counts of 'mask' are of 7 pixels, its size is 24 x 16"),
    (MASKED | {"mask": RLE | {"counts": [400, -16]}}, "no whole numbers from 0 on"),
    (MASKED | {"mask": RLE | {"counts": "é"}}, "no text that COCO's tools write"),
    (MASKED | {"mask": RLE | {"counts": [384]}}, "the mask is empty"),
    (MASKED | {"mask": []}, "neither a file name, run lengths"),
    (MASKED | {"mask": [[1, 2, 3, 4]]}, "a polygon of 'mask' is not"),
    (MASKED | {"mask": [[1, 2, 3, 4, float("nan"), 6]]}, "a polygon of 'mask' is not"),
    (MASKED | {"mask": [[100, 100, 200, 100, 200, 200]]}, "the mask is empty"),
    (MASKED | {"box": [5, 5, 5, 9]}, "left < right"),
    (MASKED | {"box": [0, 0, float("inf"), 5]}, "left < right"),
    (MASKED | {"box": [0, 0, 10**400, 5]}, "left < right"),
    (MASKED | {"mask": None, "box": [500, 500, 600, 600]}, "lies outside its target of 24 x 16"),
    (MASKED | {"mask": None, "box": None}, "none of 'reference', 'mask' and 'box'"),
    (GOOD | {"score": "high"}, "the score high is no number"),
    (GOOD | {"score": float("nan")}, "the score nan is no number"),
    (GOOD | {"score": 1e300}, r"the score 1e\+300 is no number, or too large for one"),
    (MASKED | {"mask": "broken.png"}, "The image .*broken.png cannot be read"),
    (GOOD | {"subject": ["Rex"]}, "'subject' is no text"),
    (GROUP | {"views": "a.jpg"}, "'views' is no list of file names"),
    (GROUP | {"views": ["a.jpg"]}, "fewer than two"),
    (GROUP | {"views": [], "reference": ["a.jpg", "b.webp"]}, "there is no target"),
    (GROUP | {"target": "a.jpg"}, "it has 'views' and 'target'"),
    (GROUP | {"mask": "mask.png"}, "it has 'views' and 'mask'"),
    (TWO | {"subjects": []}, "'subjects' is no list of objects"),
    (TWO | {"word": "dog"}, "it has 'subjects' and 'word'"),
    (TWO | {"subjects": [{"word": "dog", "refrence": "b.webp"}]}, "'refrence'.*did you mean 'reference'"),
    (TWO | {"subjects": [{"word": "dog"}]}, "none of 'reference', 'mask' and 'box'"),
    (TWO | {"subjects": [{"word": "cat", "box": [0, 0, 9, 9]}]}, "the word 'cat' is not in the caption"),
])
def test_a_broken_row_is_named_by_its_line_and_costs_itself_alone(folder, row, words):
    write(folder, GOOD, "", row, MASKED)
    records, broken = opened(folder)
    assert [record.where for record in records] == ["line 1", "line 4"]
    assert len(broken) == 1 and broken[0].startswith("line 3: ") and len(broken[0]) < 6000
    with pytest.raises(ValueError, match=words):
        raise ValueError(broken[0])


@pytest.mark.parametrize("box, pixels", [
    ([3.9999999999, 0, 4.0, 10], (3, 0, 4, 10)), ([0, 0, 1e-46, 1e-9], (0, 0, 1, 1)),
    ([23.9999999999, 2.5, 30, 2.75], (23, 2, 24, 3)), ([1, 1, 9.5, 9], (1, 1, 10, 9))])
def test_a_narrow_box_is_the_pixels_that_it_touches(folder, box, pixels):
    """Stored as float32, the first three would be empty, and an empty box ends the training that reads it."""
    write(folder, MASKED | {"mask": None, "box": box})
    (record,), broken = opened(folder)
    assert not broken and tuple(record.boxes[0].tolist()) == pixels
    example = read_example(record, Drawn(0, 0, CUT_OUT, 0), (64, 64), 64, (0,))
    assert example.target.shape == (64, 64, 3)


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(
    ["a.jpg", "mask.png", "toy", "a toy"]), lambda x: st.lists(x, max_size=3) | st.dictionaries(
        st.sampled_from([*KEYS, "size", "counts"]), x, max_size=4), max_leaves=12)


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6), st.sampled_from([GOOD, MASKED, GROUP, TWO, {}]))
def test_a_mangled_row_is_a_row_or_a_sentence(change, whole):
    def find(name):
        raise ValueError(f"the file {name} does not exist")

    try:
        row_of(whole | change, "line 1", find)
    except ValueError as error:
        assert str(error).strip() and "\n" not in str(error)


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(text=st.text(string.printable, max_size=40), place=st.integers(0, 60))
def test_a_mangled_line_never_ends_its_part(tmp_path_factory, text, place):
    folder = tmp_path_factory.mktemp("mangled")
    line = json.dumps(GOOD)
    write(folder, line[:place] + text + line[place:])
    found = [row for part in open_source(str(folder)).parts() for row in part.rows()]
    assert all(isinstance(row, BrokenRow) for row in found)


@pytest.mark.parametrize("mode, kind, options", [
    ("RGB", "JPEG", {}), ("L", "JPEG", {}), ("CMYK", "JPEG", {}), ("RGB", "WEBP", {}), ("RGBA", "WEBP", {}),
    ("RGBA", "PNG", {}), ("LA", "PNG", {}), ("P", "PNG", {}), ("1", "PNG", {}), ("I;16", "PNG", {}),
    ("RGB", "JPEG", {"exif": 6}), ("RGB", "PNG", {"exif": 6})])
def test_pictures_of_every_kind_are_kept_as_they_are(folder, mode, kind, options):
    if "exif" in options:
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 6
    size = (16, 24) if options else (24, 16)  # as the EXIF turns it
    content = picture(size, "gray", kind, mode, **options)
    (folder / "kind").write_bytes(content)
    write(folder, MASKED | {"target": "kind", "reference": "kind"})
    (row,), broken = opened(folder)
    assert not broken and row.pictures == [content, content]


def test_a_manifest_may_be_cut_into_several(folder):
    write(folder, GOOD, name="manifest-00000.jsonl")
    write(folder, "{", MASKED, name="manifest-00001.jsonl")
    records, broken = opened(folder)
    assert [row.where for row in records] == ["manifest-00000.jsonl line 1", "manifest-00001.jsonl line 2"]
    assert broken[0].startswith("manifest-00001.jsonl line 1: it is not JSON")
    assert len(opened(folder / "manifest-00001.jsonl")[0]) == len(opened(f"{folder}/manifest-*1.jsonl")[0]) == 1


def test_other_names_and_one_word_for_all_rows(folder):
    write(folder, {"image": "a.jpg", "text": "a toy", "reference": "b.webp"})
    (row,), broken = opened(folder, columns={"target": "image", "caption": "text"}, word="toy")
    assert not broken and row.words == ["toy"] and row.captions == ["a toy"]
    with pytest.raises(ValueError, match="unknown key 'captain'.*did you mean 'caption'"):
        open_source(str(folder), columns={"captain": "text"})


def test_the_examples_of_the_documentation_are_rows_and_a_mixture(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "training" / "data.md").read_text()
    lines, mixture = re.findall(r"^```json\n(.*?)^```", page, re.M | re.S)
    rows = [row_of(json.loads(line), "", lambda name: name) for line in lines.splitlines()]
    assert [len(row.pictures) for row in rows] == [3, 1, 2, 3] and rows[3].targets == 3
    (tmp_path / "mixture.json").write_text(mixture)
    assert [entry.weight for entry in read_mixture(tmp_path / "mixture.json")] == [2, 0.5, 1]
    keys = re.findall(r"^\| `(\w+)` \|", page.partition("(keys)=")[2].partition("## Manifest")[0], re.M)
    assert sorted(keys) == sorted(KEYS)


def test_parts_are_of_about_one_size_and_hold_every_row_once(folder, monkeypatch):
    monkeypatch.setattr(parts, "_PART", 5000)
    write(folder, *[GOOD | {"subject": f"{i}"} for i in range(101)])
    source = open_source(str(folder))
    found = source.parts()
    assert 5 < len(found) < 30 and max(part.count for part in found) - min(part.count for part in found) <= 1
    assert [row.identity for row in rows_of(source)[0]] == [f"{i}" for i in range(101)]
    assert list(source.parts()) == list(open_source(str(folder)).parts()) == list(found)
    monkeypatch.setattr(parts, "_MOST", 3)
    assert len(source.parts()) == 3


def test_the_identity_is_that_of_the_content(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED", -10**15)
    seen = tmp_path / "seen"
    write(folder, GOOD, MASKED, "{", GROUP | {"views": ["a.jpg", "gone.jpg"]})
    first = open_source(str(folder)).identity(seen)
    (folder / "nobody.png").write_bytes(b"no row names it")
    with monkeypatch.context() as patch:
        patch.setattr(contents.hashlib, "file_digest", _only_the_manifest)
        assert open_source(str(folder)).identity(seen) == first
        folder = folder.rename(tmp_path / "moved")
        assert open_source(str(folder)).identity(seen) == first
    seen.write_bytes(b"damaged")
    assert open_source(str(folder)).identity(seen) == first
    assert open_source(str(folder)).identity(tmp_path / "other") == first
    met = {first}
    for change in (lambda: (folder / "mask.png").write_bytes(mask(box=(2, 3, 12, 14))),
                   lambda: (folder / "gone.jpg").write_bytes(picture()), lambda: write(folder, GOOD, MASKED)):
        change()
        identity = open_source(str(folder)).identity(seen)
        assert identity not in met
        met.add(identity)
    assert open_source(str(folder), word="toy").identity(seen) not in met


def _only_the_manifest(file, kind):
    assert file.name.endswith("manifest.jsonl"), "a picture is read again"
    return _DIGEST(file, kind)


_DIGEST = contents.hashlib.file_digest


def test_a_file_that_was_written_a_moment_ago_is_not_trusted(folder, tmp_path):
    """Its time may not tell the next change from this one."""
    write(folder, GOOD)
    open_source(str(folder)).identity(tmp_path / "seen")
    assert not len(contents._read(tmp_path / "seen"))
    for file in folder.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    assert not len(contents._read(tmp_path / "seen"))  # its other time is of now


def test_large_files_are_read_in_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_WHOLE", 1000)
    monkeypatch.setattr(contents, "_SAMPLE", 16)
    content = bytearray(100_000)
    digests = []
    for place in (None, 0, 99_999, 50_000):
        if place is not None:
            content[place] ^= 1
        (tmp_path / "large").write_bytes(content)
        digests.append(contents.digest(tmp_path, ["large"], tmp_path / "seen"))
    assert len(set(digests[:3])) == 3
    assert manifest.stored_size(tmp_path, "large") == 100_000


@pytest.mark.slow
def test_a_million_rows_are_planned_in_seconds(folder, tmp_path):
    import time

    line = json.dumps(GOOD)
    (folder / "manifest.jsonl").write_text("\n".join([line] * 1_000_000))
    start = time.monotonic()
    found = open_source(str(folder)).parts()
    assert sum(part.count for part in found) == 1_000_000 and time.monotonic() - start < 5
    start = time.monotonic()
    open_source(str(folder)).identity(tmp_path / "seen")
    assert time.monotonic() - start < 60
