"""A folder of pictures as a dataset: sizes, references, and rows that are broken in every way."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.conditioning.images import load_image
from realcustom_jax.conditioning.references import square_reference
from realcustom_jax.data.cutouts import cut_out_subject, recontextualised
from realcustom_jax.data.loader import Split
from realcustom_jax.data.pictures import manifest
from realcustom_jax.data.pictures.folder import (
    AUGMENTED,
    OTHER_VIEW,
    RECONSTRUCTION,
    bucket_of,
    buckets,
    cover,
    example,
    make_dataset,
)
from realcustom_jax.data.pictures.manifest import read_manifest


def save(folder, name, size, colour):
    Image.new("RGB", size, colour).save(folder / name)


def save_mask(folder, name, size, box):
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    mask.save(folder / name)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    save(folder, "wide.png", (200, 100), "red")
    save(folder, "tall.jpg", (90, 180), "blue")
    save(folder, "other.png", (50, 60), "green")
    save_mask(folder, "mask.png", (90, 180), (10, 20, 60, 70))
    save_mask(folder, "small_mask.png", (9, 18), (1, 2, 6, 7))
    save_mask(folder, "empty_mask.png", (90, 180), (0, 0, 0, 0))
    (folder / "broken.png").write_bytes(b"\x89PNG but not really")
    return folder


def write_manifest(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines))


GOOD = [
    {"target": "wide.png", "caption": "a toy in the jungle", "word": "toy", "reference": "other.png"},
    {"target": "tall.jpg", "caption": "a Dog on a sofa", "word": "dog", "mask": "mask.png"},
    {"target": "wide.png", "caption": "a red car", "word": "red car", "box": [20, 10, 80, 60],
     "reference": ["other.png"]},
]


def test_rows_become_targets_and_references(pictures, tmp_path):
    write_manifest(pictures, *GOOD)
    dataset = Split(make_dataset(pictures, tmp_path / "data", side=256, reference_side=64), "train")
    rows, sizes = [dataset[i] for i in range(len(dataset))], buckets(256)
    assert [str(row["caption"]) for row in rows] == [row["caption"] for row in GOOD]
    for row in rows:
        width, height = sizes[row["bucket"]]
        assert row["target"].shape == (height, width, 3) and row["references"].shape[1:] == (64, 64, 3)
    assert [row["difficulty"].tolist() for row in rows] == [
        [OTHER_VIEW], [RECONSTRUCTION, AUGMENTED], [OTHER_VIEW, RECONSTRUCTION]]
    assert rows[0]["original_size"].tolist() == [100, 200] and rows[1]["original_size"].tolist() == [180, 90]
    assert rows[0]["target"].shape[1] > rows[0]["target"].shape[0]
    np.testing.assert_array_equal(rows[0]["references"][0, 0, 0], [0, 128, 0])


@pytest.mark.parametrize("row, words", [
    ("{not json", "it is not JSON"),
    ("[1]", "not a JSON object"),
    ({"caption": "a toy", "word": "toy", "reference": "other.png"}, "'target' is missing"),
    (GOOD[0] | {"colour": "red"}, "unknown key 'colour'"),
    (GOOD[0] | {"word": "to"}, "the word 'to' is not in the caption 'a toy in the jungle'"),
    (GOOD[0] | {"reference": "gone.png"}, "gone.png does not exist"),
    (GOOD[0] | {"reference": 3}, "neither a file name nor a list"),
    ({k: v for k, v in GOOD[0].items() if k != "reference"}, "none of 'reference', 'mask' and 'box'"),
    (GOOD[0] | {"target": "broken.png"}, "broken.png cannot be read"),
    (GOOD[1] | {"mask": "small_mask.png"}, "is 9 x 18, its target 90 x 180"),
    (GOOD[1] | {"mask": "empty_mask.png"}, "is empty"),
    (GOOD[2] | {"box": [5, 5, 5, 9]}, "left < right"),
    (GOOD[1] | {"mask": "mask.png", "box": [0, 0, float("inf"), 5]}, "left < right"),
    ({**GOOD[2], "box": None, "reference": []}, "none of 'reference', 'mask' and 'box'"),
    (GOOD[2] | {"box": [500, 500, 600, 600]}, "lies outside its target of 200 x 100"),
])
def test_broken_rows_are_named_by_their_lines_and_skipped_up_to_a_limit(pictures, tmp_path, row, words, capsys):
    write_manifest(pictures, GOOD[0], "", row)
    with pytest.raises(ValueError, match=f"1 broken row.*max_broken is 0: line 3: .*{words}.* Mend them"):
        make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    assert not list((tmp_path / "data").rglob("*array_record*"))
    dataset = Split(make_dataset(pictures, tmp_path / "data", side=128, reference_side=64, max_broken=1), "train")
    assert len(dataset) == 1
    assert "skipped, line 3" in capsys.readouterr().out


def test_a_made_dataset_is_found_and_a_changed_manifest_makes_another(pictures, tmp_path):
    write_manifest(pictures, GOOD[0])
    first = make_dataset(pictures, tmp_path, side=128, reference_side=64)
    before = (first / "dataset_info.json").stat().st_mtime_ns
    assert make_dataset(pictures, tmp_path, side=128, reference_side=64) == first
    assert (first / "dataset_info.json").stat().st_mtime_ns == before
    write_manifest(pictures, *GOOD)
    assert make_dataset(pictures, tmp_path, side=128, reference_side=64) != first
    second = make_dataset(pictures, tmp_path, side=128, reference_side=64)
    save(pictures, "other.png", (50, 60), "yellow")
    assert make_dataset(pictures, tmp_path, side=128, reference_side=64) not in (first, second)
    with pytest.raises(ValueError, match="into its own pictures"):
        make_dataset(pictures, pictures / "data")
    with pytest.raises(FileNotFoundError, match="no manifest.jsonl"):
        make_dataset(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="needs a manifest.jsonl"):
        read_manifest(tmp_path / "manifest.jsonl")


@pytest.mark.parametrize("damage", ["no info", "no shard", "cut shard", "temporary folder only"])
def test_a_half_written_dataset_is_rebuilt(pictures, tmp_path, damage):
    write_manifest(pictures, *GOOD)
    folder = make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    before = Split(folder, "train")[1]
    shard = next(folder.glob("*array_record*"))
    if damage == "no info":
        (folder / "dataset_info.json").unlink()
    elif damage == "no shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        folder.rename(folder.with_name("incomplete.XYZ_1.0.0"))
    assert make_dataset(pictures, tmp_path / "data", side=128, reference_side=64) == folder
    again = Split(folder, "train")
    assert len(again) == len(GOOD) and all(np.array_equal(again[1][field], value) for field, value in before.items())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_is_not_in_a_dataset_is_named(pictures, tmp_path):
    write_manifest(pictures, GOOD[0])
    folder = make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    some = Split(folder, "train", fields=["word", "caption"])[0]
    assert {name: str(value) for name, value in some.items()} == {"word": "toy", "caption": "a toy in the jungle"}
    with pytest.raises(FileNotFoundError, match="no finished dataset"):
        Split(tmp_path, "train")
    with pytest.raises(ValueError, match="validation.*train"):
        Split(folder, "validation")
    with pytest.raises(ValueError, match="words'.*word"):
        Split(folder, "train", fields=["words"])


@pytest.mark.slow
def test_writing_and_reading_need_no_tensorflow(pictures, tmp_path):
    write_manifest(pictures, *GOOD)
    code = f"""
import sys
from realcustom_jax.data import loader
from realcustom_jax.data.pictures import folder
made = folder.make_dataset({str(pictures)!r}, {str(tmp_path / "data")!r}, side=128, reference_side=64)
loader.Split(made, "train")[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_changed_picture_is_noticed_wherever_it_lies(pictures, tmp_path):
    """Also one outside of the folder, of the same size, and not one that no row names."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    Image.new("RGB", (40, 40), "red").save(outside / "view.bmp")
    write_manifest(pictures, GOOD[1], GOOD[0] | {"reference": "../elsewhere/view.bmp"})
    first = make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    save(pictures, "nobody.png", (9, 9), "red")
    assert make_dataset(pictures, tmp_path / "data", side=128, reference_side=64) == first
    Image.new("RGB", (40, 40), "blue").save(outside / "view.bmp")
    second = make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    assert second != first
    np.testing.assert_array_equal(Split(second, "train")[1]["references"][0, 0, 0], [0, 0, 255])
    save_mask(pictures, "mask.png", (90, 180), (10, 20, 60, 71))
    assert make_dataset(pictures, tmp_path / "data", side=128, reference_side=64) not in (first, second)


def test_a_folder_that_was_only_moved_is_the_same_and_is_not_read_again(pictures, tmp_path, monkeypatch):
    write_manifest(pictures, *GOOD)
    long_ago = 10**18
    for path in pictures.iterdir():
        os.utime(path, ns=(long_ago, long_ago))
    monkeypatch.setattr(manifest, "_SETTLED", -10**12)
    first = make_dataset(pictures, tmp_path / "data", side=128, reference_side=64)
    moved = pictures.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(manifest.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert make_dataset(moved, tmp_path / "data", side=128, reference_side=64) == first
    (tmp_path / "data" / "seen.json").write_text("{")
    assert make_dataset(moved, tmp_path / "data", side=128, reference_side=64) == first


def test_a_file_that_was_written_a_moment_ago_is_not_trusted(pictures, tmp_path):
    """Its time may not tell the next change from this one."""
    write_manifest(pictures, GOOD[0])
    manifest.fingerprint(pictures, tmp_path / "seen.json")
    assert not (tmp_path / "seen.json").exists()


def references_of(folder, row, side=64):
    """{difficulty: picture} that a manifest of one row gives."""
    write_manifest(folder, row)
    (row,), broken = read_manifest(folder / "manifest.jsonl")
    assert not broken
    made = example(row, buckets(128), side, np.random.default_rng(0))
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for png in made["references"]]
    return dict(zip(made["difficulty"], pictures, strict=True))


def test_training_sees_references_as_sampling_does(pictures):
    """Shrunk without antialiasing, as the released code shrinks them: noise keeps most of its contrast."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 750, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "noise.png")
    mask = np.zeros((500, 750), np.uint8)
    mask[50:450, 100:500] = 255
    Image.fromarray(mask).save(pictures / "noise_mask.png")
    seen = references_of(pictures, {"target": "noise.png", "caption": "a toy", "word": "toy", "mask": "noise_mask.png",
                                    "reference": "noise.png"}, side=192)
    sampled = square_reference(load_image(pictures / "noise.png"), 192)
    np.testing.assert_allclose(seen[OTHER_VIEW] / 255, sampled, atol=0.51 / 255)
    cut_out = load_image(cut_out_subject(Image.fromarray(noise), mask > 0))
    np.testing.assert_allclose(seen[RECONSTRUCTION] / 255, square_reference(cut_out, 192), atol=0.51 / 255)
    subject = seen[AUGMENTED].astype(float).reshape(-1, 3)
    subject = subject[(subject != subject[0]).any(-1)]  # turned, which smooths it a little, on a plain background
    for contrast in (sampled.std(), seen[OTHER_VIEW].std() / 255, cut_out.std(), subject.std() / 255):
        assert contrast > 0.13


@pytest.mark.parametrize("kind, numbers", [
    ("png", np.uint16([26000, 40000])), ("tif", np.uint16([26000, 40000])), ("tif", np.int32([26000, 40000])),
    ("tif", np.float32([0.4, 0.6])), ("tif", np.float32([100, 150])), ("png", np.uint8([100, 150])),
    ("png", np.bool([False, True]))])
def test_half_is_the_threshold_of_masks_of_every_depth(pictures, kind, numbers):
    mask = np.zeros((180, 90), int)
    mask[30:90, 20:80] = 1
    Image.new("RGB", (90, 180), "blue").save(pictures / "tall.png")
    Image.fromarray(numbers[mask]).save(pictures / f"deep.{kind}")
    row = {"target": "tall.png", "caption": "a toy", "word": "toy", "mask": f"deep.{kind}"}
    Image.fromarray(np.uint8(255 * mask)).save(pictures / "plain.png")
    np.testing.assert_array_equal(references_of(pictures, row)[AUGMENTED],
                                  references_of(pictures, row | {"mask": "plain.png"})[AUGMENTED])


def test_a_very_long_picture_is_cropped_before_it_is_enlarged(pictures):
    cropped, (top, left) = cover(Image.new("RGB", (60000, 2), "red"), (128, 128), focus=(30000, 1))
    assert cropped.size == (128, 128) and top == 0 and left == 64 * 30000 - 64


def test_buckets_have_about_the_area_and_the_nearest_shape_is_taken():
    sizes = buckets(1024)
    assert (1024, 1024) in sizes and (1152, 896) in sizes and (896, 1152) in sizes
    assert all(w % 64 == h % 64 == 0 and 0.8 * 1024**2 < w * h <= 1024**2 for w, h in sizes)
    assert sizes[bucket_of(500, 500, sizes)] == (1024, 1024)
    width, height = sizes[bucket_of(1000, 10, sizes)]
    assert width / height == max(w / h for w, h in sizes)
    with pytest.raises(ValueError, match="multiple of 64"):
        buckets(1000)


def test_crops_keep_the_focus():
    picture = Image.new("RGB", (400, 100), "black")
    picture.paste("white", (360, 40, 380, 60))
    cropped, (top, left) = cover(picture, (128, 128), focus=(370, 50))
    assert cropped.size == (128, 128) and top == 0 and left == 512 - 128
    assert np.asarray(cropped).max() == 255
    cropped, corner = cover(picture, (128, 128), focus=(200, 50))
    assert corner == (0, 192) and np.asarray(cropped).max() == 0


def test_cutouts_show_the_subject_and_only_the_changed_ones_lose_the_background():
    picture = Image.new("RGB", (100, 80), "blue")
    picture.paste("red", (5, 20, 45, 60))
    mask = np.zeros((80, 100), bool)
    mask[20:60, 5:45] = True
    plain = np.asarray(cut_out_subject(picture, mask))
    assert plain.shape[0] == plain.shape[1] and (plain == [255, 0, 0]).all(-1).mean() > 0.6
    assert (plain == [0, 0, 255]).all(-1).any()
    changed = [np.asarray(recontextualised(picture, mask, np.random.default_rng(i), 64)) for i in range(4)]
    for view in changed:
        assert view.shape == (64, 64, 3) and (view == [255, 0, 0]).all(-1).sum() > 100
        assert not (view == [0, 0, 255]).all(-1).any()
    assert len({view.tobytes() for view in changed}) == 4


@pytest.mark.parametrize("rows", [[], ["{not json"]])
def test_a_folder_without_a_good_row_is_one_sentence(pictures, tmp_path, rows):
    write_manifest(pictures, *rows)
    with pytest.raises(ValueError, match="manifest.jsonl has no row that can be used"):
        make_dataset(pictures, tmp_path / "data", side=128, reference_side=64, max_broken=5)
    assert not list((tmp_path / "data").rglob("*array_record*"))
