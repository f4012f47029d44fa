"""What a run trains on: known by its content before anything is built, wherever it lies."""

import json
import shutil
import subprocess

import pytest
from PIL import Image

from realcustom_jax.data.build import build
from realcustom_jax.data.sources import open_source
from realcustom_jax.training.published.config import PicturesConfig
from realcustom_jax.training.published.pictures import find_pictures

import fresh_process


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40 + number, 30), colour).save(folder / f"{number}.png")
    write(folder, 3)
    return folder


def write(folder, count):
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(
        {"target": f"{i}.png", "caption": "a dog", "word": "dog", "reference": f"{(i + 1) % 3}.png"})
        for i in range(count)))


def find(folder, parent, **settings):
    return find_pictures(PicturesConfig(folder=str(folder), **settings), parent, 512)


def state(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*array_record*")}


def test_finding_builds_nothing_and_the_dataset_is_built_once(pictures, tmp_path):
    found = find(pictures, tmp_path / "data")
    assert not state(tmp_path)
    dataset = found.rows()
    assert len(dataset) == 3 and dataset.identity == found.identity and dataset.side == 512
    assert dataset.folder.parent == tmp_path / "data"
    before = state(tmp_path)
    assert len(find(pictures, tmp_path / "data").rows()) == 3 and state(tmp_path) == before


def test_the_same_pictures_elsewhere_are_the_same_and_others_are_not(pictures, tmp_path):
    found = find(pictures, tmp_path / "data")
    found.rows()
    before = state(tmp_path)
    moved = shutil.copytree(pictures, tmp_path / "elsewhere" / "moved")
    again = find(moved, tmp_path / "data")
    assert again.identity == found.identity and len(again.rows()) == 3 and state(tmp_path) == before
    write(moved, 2)
    assert find(moved, tmp_path / "data").identity != found.identity, "a row less"
    write(moved, 3)
    Image.new("RGB", (42, 30), "black").save(moved / "2.png")
    other = find(moved, tmp_path / "data")
    assert other.identity != found.identity and len(other.rows()) == 3
    assert len(list((tmp_path / "data").glob("*/index.npz"))) == 2, "each has a folder of its own"
    shutil.rmtree(pictures)
    with pytest.raises(FileNotFoundError):
        find(pictures, tmp_path / "data")


def test_a_dataset_that_was_built_before_is_taken_as_it_is(pictures, tmp_path):
    made = build(open_source(str(pictures)), tmp_path / "made", workers=1)
    shutil.rmtree(pictures)
    found = find(tmp_path / "made", tmp_path / "data")
    assert found.identity == made.identity and len(found.rows()) == 3
    assert not (tmp_path / "data").exists()
    (tmp_path / "made" / "index.npz").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        find(tmp_path / "made", tmp_path / "data")


def test_a_dataset_is_not_written_into_the_pictures(pictures):
    with pytest.raises(ValueError, match="into its own pictures"):
        find(pictures, pictures / "run" / "data")
    assert not (pictures / "run").exists()


def test_broken_rows_are_allowed_later(pictures, tmp_path):
    (pictures / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="max_broken is 0: line 2: .*; line 3: "):
        find(pictures, tmp_path / "data").rows()
    before = state(tmp_path)
    assert len(find(pictures, tmp_path / "data", max_broken=2).rows()) == 1 and state(tmp_path) == before


def test_several_sources_follow_each_other_with_their_weights(pictures, tmp_path):
    other = shutil.copytree(pictures, tmp_path / "other")
    write(other, 2)
    build(open_source(str(other)), tmp_path / "made", workers=1)
    config = PicturesConfig(sources=({"path": str(pictures), "weight": 2}, {"path": str(tmp_path / "made")}))
    found = find_pictures(config, tmp_path / "data", 512)
    rows = found.rows()
    assert [rows.record(i).where for i in range(len(rows))] == ["line 1", "line 2", "line 3", "line 1", "line 2"]
    assert rows.record(3).pictures == rows.record(0).pictures and len(rows.index) == 5
    assert found.weights(rows).tolist() == [2, 2, 2, 1, 1]
    for row in (-1, 5):
        with pytest.raises(IndexError):
            rows.record(row)
    swapped = find_pictures(PicturesConfig(sources=config.sources[::-1]), tmp_path / "data", 512)
    assert swapped.identity != found.identity
    lighter = PicturesConfig(sources=({"path": str(pictures)}, config.sources[1]))
    lighter = find_pictures(lighter, tmp_path / "data", 512)
    assert lighter.identity == found.identity and lighter.about != found.about


def test_filters_build_nothing_and_say_when_none_is_left(pictures, tmp_path):
    rows = find(pictures, tmp_path / "data").rows()
    before = state(tmp_path)
    found = find(pictures, tmp_path / "data", max_aspect=1.35)
    assert found.weights(found.rows()).tolist() == [1, 0, 0] and state(tmp_path) == before  # 40, 41, 42 × 30
    assert find(pictures, tmp_path / "data").weights(rows, "train").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="No row is left"):
        find(pictures, tmp_path / "data", min_side=100).weights(rows)


TOGETHER = """
import sys
import jax
jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]))
from pathlib import Path
from realcustom_jax.data import build
from realcustom_jax.data.sources import parts
from realcustom_jax.training.published.config import PicturesConfig
from realcustom_jax.training.published.pictures import find_pictures
parts._PART = 1  # each row is a part
whole, begun = build._build_parts, []
def noted(parts, places, markers, missing, workers):
    begun.extend(missing)
    whole(parts, places, markers, missing, workers)
build._build_parts = noted
config = PicturesConfig(folder=sys.argv[1], max_broken=int(sys.argv[5]))
try:
    rows = find_pictures(config, Path(sys.argv[2]), 512).rows()
    print(len(rows), begun, rows.identity)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes_build_one_dataset_together(pictures, tmp_path):
    """Each its own parts; where rows are broken, both end, and nothing that is finished is built again."""
    (pictures / "2.png").write_bytes(b"no picture")

    def both(max_broken):
        address = f"127.0.0.1:{fresh_process.free_port()}"
        given = TOGETHER, pictures, tmp_path / "data", address
        two = [fresh_process.start(*given, i, max_broken, stdout=subprocess.PIPE) for i in range(2)]
        return [process.communicate(timeout=300)[0].splitlines()[-1] for process in two]

    said = both(0)
    assert "max_broken is 0" in said[0] and "line 3" in "".join(said)
    before = state(tmp_path)
    assert len(before) == 3
    first, second = both(2)
    assert first == second and first.startswith("1 [] ") and state(tmp_path) == before
    shutil.rmtree(tmp_path / "data")
    assert [line.split("] ")[0] for line in both(2)] == ["1 [0, 2", "1 [1"]
