"""Where the user wants what: masks and boxes, the picture to begin with, and what of it stays."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax import batch
from realcustom_jax.conditioning.initial import InitialPicture
from realcustom_jax.conditioning.regions import listed_regions, on_grid, read_region, region_masks
from realcustom_jax.conditioning.size import PictureSizes
from realcustom_jax.model_files.locate import ASSETS

from mini_bundle import SIDE

DOG, CAR = ASSETS / "references" / "dog.png", ASSETS / "references" / "car.png"
PROMPT = "a dog on the beach"
QUICK = {"steps": 2, "freeze_mask_step": 2}
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[4:14, 3:11] = True


def turned(pixels):
    """A JPEG-like upload whose pixels lie on their side, and whose EXIF says so."""
    image = Image.fromarray(np.rot90(pixels))  # orientation 6 turns it back, clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    image._exif = exif
    return image


# -------------------- regions


def test_boxes_are_pixels_and_parts_of_them():
    region = read_region((1, 2, 4, 3.5), 6, 5, "mask")
    expected = np.zeros((5, 6))
    expected[2, 1:4], expected[3, 1:4] = 1, 0.5
    assert region.dtype == np.float32 and np.array_equal(region, expected)
    assert np.array_equal(read_region(np.array([1, 2, 4, 3.5]), 6, 5, "mask"), expected)


@pytest.mark.parametrize("source", [HOLE, HOLE.astype(np.uint8) * 255, Image.fromarray(HOLE), HOLE.astype(np.float32),
                                    Image.fromarray(HOLE.astype(np.uint8) * 255).resize((4 * SIDE, 4 * SIDE), 0)])
def test_masks_of_any_kind_and_size(source):
    np.testing.assert_allclose(read_region(source, SIDE, SIDE, "mask"), HOLE, atol=1e-6)


def test_a_region_smaller_than_a_place_counts_all_the_same():
    region = read_region((5, 5, 6, 6), 16, 16, "mask")
    coarse = on_grid(region, (4, 4))
    assert coarse[1, 1] == 1 and coarse.sum() == 1
    assert on_grid(0.5 * region, (4, 4)).max() == 0.5
    assert np.array_equal(on_grid(HOLE.astype(np.float32), (SIDE, SIDE)), HOLE)


@pytest.mark.parametrize("source, message", [
    ((0, 0, 17, 8), r"mask is \(0, 0, 17, 8\), which leaves the picture of 16 × 16 pixels"),
    ((-1, 0, 8, 8), "begins outside of the picture"),
    ((4, 4, 4, 8), "a box without inside"), ((8, 4, 4, 8), "a box without inside"),
    ((1, 2, 3), "expected the four numbers of a box"), ((0, 0, float("nan"), 8), "expected the four numbers"),
    ((0.1, 0.1, 0.5, 0.5), r"mask is \(0.1, 0.1, 0.5, 0.5\), no more than one pixel; a box is told in pixels"),
    ((0, 0, 1, 1), "no more than one pixel"), ((3, 3, 8, 3.5), "no more than one pixel"),
    (np.ones((16, 32)), "mask has 32 × 16 pixels and the picture 16 × 16: they have not the same shape"),
    (Image.fromarray(np.ones((16, 16), np.uint8)), "mask looks black everywhere: its lightest pixel is 1"),
    (np.zeros((SIDE, SIDE)), "mask is black everywhere"), (np.zeros((4, 4), bool), "black everywhere"),
])
def test_impossible_regions(source, message):
    with pytest.raises(ValueError, match=message):
        read_region(source, 16, 16, "mask")


def test_one_region_for_each_subject():
    box = (0, 0, 4, 4)
    assert listed_regions(None, 2) == [None, None]
    assert listed_regions(box, 1) == [box] and listed_regions([box, None], 2) == [box, None]
    assert len(listed_regions(np.ones((2, 8, 8)), 2)) == 2 and len(listed_regions(np.ones((8, 8)), 1)) == 1
    assert len(listed_regions(np.ones((3, 8, 8)), 3)) == 3 and len(listed_regions(np.ones((8, 8, 3)), 1)) == 1
    assert len(listed_regions("mask.png", 1)) == 1
    for regions, count in ((box, 2), ([box, box], 1), ([None], 2), (np.ones((3, 8, 8)), 2)):
        with pytest.raises(ValueError, match=r"mask\(s\) and \d target\(s\)"):
            listed_regions(regions, count)


def test_whole_numbers_of_0_and_1_are_false_and_true():
    """As a segmentation gives them; white would be 255."""
    for mask in (np.uint8(HOLE), HOLE.astype(int), jnp.asarray(HOLE, jnp.int32)):
        assert np.array_equal(read_region(mask, SIDE, SIDE, "mask"), HOLE)
    assert np.array_equal(read_region(np.uint8(HOLE) * 255, SIDE, SIDE, "mask"), HOLE)


def test_boxes_in_an_array_are_one_for_each_subject():
    boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8]])
    assert [box.tolist() for box in listed_regions(boxes, 2)] == boxes.tolist()
    assert [box.tolist() for box in listed_regions(boxes[:1], 1)] == boxes[:1].tolist()


def test_masks_for_the_sampler():
    left, right = (0, 0, 8, 16), (8, 0, 16, 16)
    both = region_masks([left, right], (16, 16), 3, (8, 8), (4, 4))
    assert both.shape == (3, 2, 8, 8) and np.array_equal(both[0, 0], 1 - both[2, 1])
    mixed = region_masks([None, right], (16, 16), 3, (8, 8), (4, 4))
    assert mixed[0] is None and mixed[1].shape == (3, 4, 4) and mixed[1][0, :, 2:].all()
    assert region_masks([None, None], (16, 16), 1, (8, 8), (4, 4)) is None


# -------------------- the picture to begin with


@pytest.mark.parametrize("own, made", [
    ((1024, 1024), (1024, 1024)), ((512, 768), (512, 768)), ((4000, 3000), (1184, 896)), ((3000, 4000), (896, 1184)),
    ((500, 500), (1024, 1024)), ((1000, 4000), (512, 2048)), ((1920, 1080), (1376, 768)), ((10, 10), (1024, 1024)),
])
def test_sizes_of_a_pictures_shape(own, made):
    sizes = PictureSizes.of(128, 8)
    assert sizes.like(*own) == made and sizes.check(*made) == made


def test_pictures_that_are_too_long():
    with pytest.raises(ValueError, match="longer than 2048 × 512"):
        PictureSizes.of(128, 8).like(4001, 1000)


def test_what_is_outside_stays_to_the_byte():
    photo = RNG.integers(0, 256, (37, 53, 3), np.uint8)
    mask = np.zeros((37, 53), np.float32)
    mask[10:20, 5:30], mask[20, 5:30] = 1, 0.5
    initial = InitialPicture.read(photo, mask)
    made = initial.put_back(np.zeros((2, 16, 24, 3), np.uint8))
    assert made.shape == (2, 37, 53, 3) and np.array_equal(made[1][mask == 0], photo[mask == 0])
    assert not made[0][mask == 1].any()
    np.testing.assert_allclose(made[0][20, 5:30], photo[20, 5:30] / 2, atol=1)
    assert np.array_equal(InitialPicture.read(photo).put_back(made), made), "without a mask all is as it was made"


def test_a_place_is_painted_anew_if_a_pixel_of_it_is():
    initial = InitialPicture.read(PHOTO, (3, 5, 4, 6))
    on_latents = initial.region_on((8, 8))
    assert on_latents[2, 1] == 1 and on_latents.sum() == 1
    assert initial.region_on((4, 4))[1, 0] == 1


def test_turned_pictures_and_transparency_are_read_as_references_are():
    assert np.array_equal(InitialPicture.read(turned(PHOTO)).pixels, PHOTO)
    assert np.array_equal(InitialPicture.read(PHOTO, turned(np.uint8(255 * HOLE[..., None].repeat(3, 2)))).region, HOLE)
    clear = np.dstack([PHOTO, np.uint8(255 * ~HOLE)])
    assert (InitialPicture.read(clear).pixels[HOLE] == 255).all(), "on white"
    alone = np.dstack([np.zeros_like(PHOTO), np.uint8(255 * ~HOLE)])
    assert np.array_equal(InitialPicture.read(PHOTO, alone).region, HOLE), "what is cut out of a mask is painted anew"


def test_masks_of_another_size_and_shape():
    small = Image.fromarray(np.uint8(255 * HOLE)).resize((SIDE // 2, SIDE // 2))
    assert InitialPicture.read(PHOTO, small).region.shape == (SIDE, SIDE)
    with pytest.raises(ValueError, match="mask_image has 16 × 8 pixels and init_image 16 × 16"):
        InitialPicture.read(PHOTO, HOLE[:8])
    with pytest.raises(ValueError, match="Nothing of mask_image is left"):
        InitialPicture.read(RNG.integers(0, 256, (16, 64, 3), np.uint8), (0, 0, 4, 16)).cropped(16, 16)


# -------------------- the pipeline


@pytest.fixture(scope="module")
def painted(mini_pipeline):
    return mini_pipeline(DOG, PROMPT, "dog", init_image=PHOTO, mask_image=HOLE, **QUICK)


@pytest.mark.slow
def test_the_subject_goes_into_a_photograph(painted):
    made = np.asarray(painted.images[0])
    assert np.array_equal(made[~HOLE], PHOTO[~HOLE]) and (made[HOLE] != PHOTO[HOLE]).mean() > 0.5
    reach = on_grid(np.float32(HOLE), (4, 4)) > 0
    assert (painted.masks[:, 0, 0] > 0).any() and not (painted.masks[:, 0, 0] > 0)[:, ~reach].any()


@pytest.mark.slow
def test_a_photograph_keeps_its_size(mini_pipeline, painted):
    large = Image.fromarray(PHOTO).resize((45, 45), 0)
    result = mini_pipeline(DOG, PROMPT, "dog", init_image=large, mask_image=(9, 12, 30, 39), **QUICK)
    outside = np.ones((45, 45), bool)
    outside[12:39, 9:30] = False
    assert np.array_equal(np.asarray(result.images[0])[outside], np.asarray(large)[outside])
    given = mini_pipeline(
        DOG, PROMPT, "dog", init_image=large, mask_image=(9, 12, 30, 39), width=24, height=16, **QUICK)
    assert given.images[0].size == (24, 16)


@pytest.mark.slow
def test_strength_decides_what_is_left(mini_pipeline):
    def distance(strength):
        made = mini_pipeline(DOG, PROMPT, "dog", init_image=PHOTO, strength=strength, steps=8)
        return np.abs(made.latents - near.latents).mean(), len(made.masks)

    near = mini_pipeline(DOG, PROMPT, "dog", init_image=PHOTO, strength=0.01, steps=8)
    (low, few), (high, many) = distance(0.3), distance(0.9)
    assert (len(near.masks), few, many) == (1, 2, 7) and 0 < low < high
    free = mini_pipeline(DOG, PROMPT, "dog", steps=8)
    np.testing.assert_allclose(distance(1.0)[0], np.abs(free.latents - near.latents).mean(), rtol=1e-4)


@pytest.mark.slow
def test_given_masks_are_where_the_subject_is(mini_pipeline):
    result = mini_pipeline(DOG, PROMPT, "dog", masks=(0, 0, 8, 16), **QUICK)
    assert result.masks.shape == (2, 1, 1, 8, 8) and np.array_equal(result.masks[0, 0, 0], [[1] * 4 + [0] * 4] * 8)
    same = mini_pipeline(DOG, PROMPT, "dog", masks=np.repeat([[1] * 8 + [0] * 8], 16, 0).astype(bool), **QUICK)
    assert np.array_equal(same.latents, result.latents)
    mixed = mini_pipeline([DOG, CAR], "a dog and a car on the beach", ["dog", "car"], masks=[(0, 0, 8, 16), None],
                          **QUICK).masks[:, 0]
    assert (mixed[:, 0, :, :2] == 1).all() and not mixed[:, 0, :, 2:].any()
    assert mixed[:, 1].any() and not mixed[:, 1, :, :2].any()


@pytest.mark.slow
def test_guidance_by_text_and_image_is_the_pipelines(mini_pipeline):
    plain, same, other, pulled = (mini_pipeline(DOG, PROMPT, "dog", guidance_scale=3.0, **QUICK, **options).latents
                                  for options in ({}, {"guidance_mode": "none"},
                                                  {"guidance_mode": "none", "text_guidance": 1.0},
                                                  {"guidance_mode": "naive_global_direct", "rescale": 0.7}))
    np.testing.assert_allclose(same, plain, atol=1e-4 * np.abs(plain).max())  # equal scales are no cascade
    assert np.abs(other - plain).max() > 1e-3 and np.abs(pulled - plain).max() > 1e-3


@pytest.mark.parametrize("change, message", [
    ({"strength": 0.0, "init_image": PHOTO}, "strength is 0.0; .*above 0"),
    ({"strength": 2, "init_image": PHOTO}, "strength is 2; .*up to 1"),
    ({"strength": 0.5}, "strength is given without init_image"),
    ({"mask_image": HOLE}, "mask_image is given without init_image"),
    ({"init_image": PHOTO, "mask_image": HOLE & False}, "mask_image is black everywhere"),
    ({"init_image": PHOTO, "mask_image": (0, 0, 20, 20)}, "leaves the picture of 16 × 16"),
    ({"init_image": "nowhere.png"}, "nowhere.png does not exist"),
    ({"masks": [HOLE, HOLE]}, r"2 mask\(s\) and 1 target"),
    ({"masks": HOLE & False}, "mask of target 1 is black everywhere"),
    ({"masks": (0, 0, 4, 17)}, "mask of target 1 is .*leaves the picture"),
    ({"masks": "nowhere.png"}, "nowhere.png does not exist"),
    ({"vision_scale": {"upper": 1.0}}, "names the block 'upper'"),
    ({"vision_scale": {"up": "much"}}, "vision_scale is {'up': 'much'}"),
    ({"guidance_mode": "cascade"}, "Unknown guidance_mode 'cascade'"),
    ({"guidance_mode": "none", "guidance_scale": 1}, "guidance_scale is 1, which is no guidance"),
    ({"text_guidance": 2.0}, "text_guidance is 2.0; the guidance mode 'none_direct' does not use it"),
    ({"rescale": 0.5}, "rescale is 0.5, but the guidance mode 'none_direct' does not use it"),
    ({"rescale": 1.5, "guidance_mode": "naive"}, "rescale is 1.5; expected a share"),
    ({"guidance_scale": "3"}, "guidance_scale is '3'; expected a finite number"),
    ({"init_image": PHOTO, "strength": [0.5]}, r"strength is \[0.5\]; expected the share"),
    ({"vision_scale": "0.5"}, "vision_scale is '0.5'; expected a finite number"),
    ({"vision_scale": [1, 2]}, r"vision_scale has shape \(2,\); .* the 1 reference"),
    ({"vision_scale": {"upper": 1}}, "names the block 'upper', which no UNet has; expected down, mid, up"),
    ({"latents": [[1]]}, r"latents have shape \(1, 1\); expected \(1, 8, 8, 4\)"),
    ({"latents": np.full((1, 8, 8, 4), np.nan)}, "latents hold what is no finite number"),
    ({"overlap": "maximum"}, "Unknown overlap 'maximum'"),
])
def test_impossible_inputs_are_errors(mini_pipeline, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini_pipeline(**{"image": DOG, "prompt": PROMPT, "target": "dog", **QUICK} | change)


# -------------------- rows of a batch


@pytest.fixture
def rows(tmp_path):
    Image.open(DOG).save(tmp_path / "dog.png")
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    Image.fromarray(HOLE).save(tmp_path / "hole.png")

    def read(*changes):
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": PROMPT, "image": "dog.png", "target": "dog", **change})
                                  for change in changes))
        return batch.read_rows(file)

    return read


def test_rows_bring_pictures_masks_and_choices(rows, tmp_path):
    first, second = rows(
        {"init_image": "photo.png", "mask_image": [1, 2, 9, 9], "strength": 0.5, "steps": 2, "solver": "euler",
         "vision_scale": {"up": 0.5}},
        {"masks": "hole.png", "guidance_scale": 1, "freeze_mask_step": 3})
    assert first.options == {"strength": 0.5, "steps": 2, "solver": "euler", "vision_scale": {"up": 0.5}}
    assert first.pictures == {"init_image": tmp_path / "photo.png", "mask_image": [1, 2, 9, 9]}
    assert second.pictures == {"masks": [tmp_path / "hole.png"]} and second.has_all_masks and not first.has_all_masks


@pytest.mark.parametrize("change, message", [
    ({"init_image": "nowhere.png"}, "nowhere.png does not exist"), ({"masks": ["nowhere.png"]}, "does not exist"),
    ({"masks": [1, 2, 3]}, r"masks is \[1, 2, 3\], expected a text, a box"), ({"masks": []}, r"masks is \[\]"),
    ({"mask_image": "hole.png"}, "mask_image is given without init_image"),
    ({"masks": [[0, 0, 4, 4], None]}, r"2 mask\(s\) and 1 target\(s\)"),
    ({"masks": [8, 8, 4, 4]}, "a box without inside"),
    ({"masks": [0.1, 0.1, 0.5, 0.5]}, "a box is told in pixels"),
    ({"init_image": "photo.png", "mask_image": [-1, 0, 4, 4]}, "begins outside of the picture"),
    ({"vision_scale": [1, 0.5]}, r"vision_scale has shape \(2,\)"),
    ({"vision_scale": {"upper": 0.5}}, "names the block 'upper', which no UNet has"),
    ({"strength": 2, "init_image": "photo.png"}, "strength is 2"), ({"solver": "eulr"}, "did you mean 'euler'"),
    ({"steps": 2.5}, "steps is 2.5, expected a whole number"), ({"vision_scale": "much"}, "vision_scale is 'much'"),
    ({"vision_scale": {"up": {"down": 1}}}, "vision_scale is"), ({"guidance_scale": True}, "guidance_scale is True"),
])
def test_rows_that_cannot_be_are_told(rows, change, message):
    good, bad = rows({}, change)
    assert isinstance(good, batch.Row) and isinstance(bad, batch.BadRow) and re.search(message, bad.problem)


@pytest.mark.slow
def test_a_batch_that_begins_with_pictures(mini_pipeline, rows, tmp_path):
    made = rows({"init_image": "photo.png", "mask_image": "hole.png", "name": "in"}, {"masks": [[0, 0, 8, 16]]})
    out = tmp_path / "out"
    summary = batch.run_batch(mini_pipeline, made, out, options=QUICK, report=pytest.fail)
    assert summary.made == 2
    assert np.array_equal(np.asarray(Image.open(out / "in.png"))[~HOLE], PHOTO[~HOLE])
    record = json.loads((out / "in.json").read_text())
    assert record["pictures"]["init_image"]["file"] == "photo.png" and record["pictures"]["mask_image"]["sha256"]
    assert batch.run_batch(mini_pipeline, made, out, options=QUICK, report=pytest.fail).skipped == 2
    Image.fromarray(255 - PHOTO).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="results of another request .*other pictures"):
        batch.run_batch(mini_pipeline, made, out, options=QUICK, report=pytest.fail)
