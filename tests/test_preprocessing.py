"""Pictures as the metric networks see them, against torchvision, transformers and Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.evaluation.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preparation,
    cut_out,
    detections,
    read_mask,
    read_picture,
)
from realcustom_jax.evaluation.protocols import PROTOCOLS

# (width, height): odd and even differences, one pixel wide, tiny, exact, just above and below.
SIZES = [(1, 1), (1, 37), (40, 1), (2, 3), (7, 5), (31, 32), (32, 31), (33, 33), (63, 47), (101, 67), (223, 224),
         (224, 224), (225, 224), (256, 256), (255, 257), (256, 259), (300, 451), (451, 300), (640, 427), (333, 500)]
SOME = [(1, 37), (7, 5), (225, 224), (256, 259), (333, 500)]


def noise(width, height, mode="RGB", seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(values, mode)


def some(sizes, quick):
    return [size if size in quick else pytest.param(size, marks=pytest.mark.slow) for size in sizes]


@pytest.mark.parametrize("size", some(SIZES, SOME))
@pytest.mark.parametrize("mode", ["RGB", "L", pytest.param("RGBA", marks=pytest.mark.slow)])
def test_torchvisions_transforms(size, mode):
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(*size, mode)
    for ours, resize, mean, std in [(Preparation.clip(224, "torchvision"), 224, CLIP_MEAN, CLIP_STD),
                                    (Preparation.dino(224, "torchvision"), 256, IMAGENET_MEAN, IMAGENET_STD)]:
        theirs = transforms.Compose([
            transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
            lambda picture: picture.convert("RGB"), transforms.ToTensor(), transforms.Normalize(mean, std)])
        np.testing.assert_allclose(ours(image), theirs(image).permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def processors():
    """transformers' CLIPImageProcessor and BitImageProcessor that compute with Pillow."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    bit = pytest.importorskip("transformers.models.bit.image_processing_pil_bit")
    return clip.CLIPImageProcessorPil, bit.BitImageProcessorPil


def theirs(processor, image):
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


@pytest.mark.parametrize("size", some(SIZES, SOME))
def test_transformers_processors(processors, size):
    clip, bit = processors
    image = noise(*size)
    for side in (224, 336):
        given = clip(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        np.testing.assert_allclose(Preparation.clip(side, "transformers")(image), theirs(given, image), atol=1e-5)
    given = bit(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224},
                image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))
    np.testing.assert_allclose(Preparation.dino(224, "transformers")(image), theirs(given, image), atol=1e-5)


@pytest.mark.parametrize("given", [
    {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}},
    {"size": 30, "crop_size": 24},  # as the oldest files say it
    {"size": {"height": 30, "width": 41}, "crop_size": {"height": 25, "width": 31}},
    {"size": {"shortest_edge": 30}, "crop_size": {"height": 37, "width": 45}},  # wider than the picture: black around
    {"size": {"shortest_edge": 30}, "do_center_crop": False},
    {"do_resize": False, "crop_size": {"height": 24, "width": 24}},
    {"size": {"shortest_edge": 30}, "resample": 2, "do_normalize": False},
    {"size": {"shortest_edge": 30}, "do_rescale": False, "image_mean": [1.0, 2.0, 3.0], "image_std": [50.0] * 3},
    {"size": {"shortest_edge": 30}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
])
@pytest.mark.parametrize("size", [(20, 33), (61, 40), (35, 35)])
def test_a_processors_own_configuration(processors, given, size):
    clip, _ = processors
    image = noise(*size)
    ours = Preparation.from_config(given, Preparation.clip(224, "transformers"))
    np.testing.assert_allclose(ours(image), theirs(clip(**given), image), atol=2e-5)


@pytest.mark.parametrize("given", [
    {"size": "big"}, {"size": {"longest_edge": 3}}, {"size": 0}, {"image_mean": [1.0]}, {"crop_size": [1, 2, 3]},
    {"resample": 77}, {"image_std": "ab"}])
def test_a_configuration_that_cannot_be_used_is_one_sentence(given):
    with pytest.raises(ValueError, match="the preprocessor's configuration cannot be used"):
        Preparation.from_config(given, Preparation.clip(224, "transformers"))


def test_the_crops_place_is_rounded_as_each_does():
    """Of a difference of 1 pixel: torchvision rounds 0.5 to 0 and 1.5 to 2; transformers rounds down."""
    torchvision, transformers = Preparation.clip(224, "torchvision"), Preparation.clip(224, "transformers")
    assert torchvision.place((227, 225))[:2] == (2, 0)
    assert transformers.place((227, 225))[:2] == (1, 0)


def test_a_thin_line_is_refused():
    with pytest.raises(ValueError, match="1 × 2000 pixels, too long and thin"):
        Preparation.clip(224, "torchvision")(noise(1, 2000))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_each_script_reads_a_picture_in_its_own_way(tmp_path):
    """DreamBench++ turns by EXIF and lays on white; the others do neither; MIP converts after resizing alone."""
    plus, mip, kosmos = PROTOCOLS["dreambench_plus"], PROTOCOLS["mip_adapter"], PROTOCOLS["kosmos_g"]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(noise(20, 30), tmp_path / "turned.png", exif=exif)
    assert read_picture(turned, plus).size == (30, 20)
    assert read_picture(turned, kosmos).size == read_picture(turned, mip).size == (20, 30)

    clear = Image.new("RGBA", (8, 8), (200, 10, 20, 0))
    file = saved(clear, tmp_path / "clear.png")
    assert read_picture(file, plus).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(file, kosmos).getpixel((0, 0)) == (200, 10, 20)
    assert read_picture(file, mip).mode == "RGBA"

    palette = noise(50, 40).quantize(16)
    file = saved(palette, tmp_path / "palette.png")
    assert read_picture(file, kosmos).mode == read_picture(file, plus).mode == "RGB"
    # Pillow resizes a palette's numbers by the nearest pixel: the same colours, none between.
    ours = Preparation.clip(32, "torchvision")(read_picture(file, mip))
    expected = palette.resize((40, 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32)).convert("RGB")
    expected = (np.asarray(expected, np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert len(np.unique(ours.reshape(-1, 3), axis=0)) <= 16


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "CMYK"])
def test_all_usual_modes_are_read(tmp_path, mode):
    file = saved(noise(20, 30, mode), tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    for protocol in PROTOCOLS.values():
        assert Preparation.clip(16, "torchvision")(read_picture(file, protocol)).shape == (16, 16, 3)


@pytest.mark.parametrize(("content", "message"), [
    (None, "the picture .*x.png does not exist"), (b"no picture", "cannot be read .Pillow finds no picture in it"),
    (b"", "cannot be read"), ("cut", "cannot be read"), ("folder", "cannot be read")])
def test_what_is_no_picture_is_one_sentence(tmp_path, content, message):
    file = tmp_path / "x.png"
    if content == "folder":
        file.mkdir()
    elif content == "cut":
        buffer = io.BytesIO()
        noise(90, 90).save(buffer, "PNG")
        file.write_bytes(buffer.getvalue()[:2000])
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_picture(file, PROTOCOLS["uno"])


def test_masks(tmp_path):
    mask = np.zeros((30, 20), np.uint8)
    mask[5:10, 3:9] = 255
    file = saved(Image.fromarray(mask), tmp_path / "mask.png")
    read = read_mask(file, (20, 30))
    np.testing.assert_array_equal(read, mask > 0)
    image = noise(20, 30)
    cut = np.asarray(cut_out(image, read, (255, 255, 255)))
    np.testing.assert_array_equal(cut[5:10, 3:9], np.asarray(image)[5:10, 3:9])
    cut = cut.copy()
    cut[5:10, 3:9] = 255
    assert (cut == 255).all()
    with pytest.raises(ValueError, match="has 20 × 30 pixels and its picture 30 × 20"):
        read_mask(file, (30, 20))
    with pytest.raises(ValueError, match="is empty: nothing in it is white"):
        read_mask(saved(Image.new("L", (4, 4)), tmp_path / "empty.png"), (4, 4))


def test_detections_as_xverse_takes_them():
    """In a picture 200 wide a detection has at least 10 × 10 pixels in all and 2 on a side; the first three are taken.
    """
    protocol, image = PROTOCOLS["xverse"], noise(200, 100)
    boxes = [(0, 0, 9, 9), (0, 0, 1, 100), (0, 0, 2, 50), (10.4, 20.6, 50.5, 81.5), (-5, -5, 30, 30), (5, 5, 100, 90)]
    found = detections(image, boxes, protocol)
    assert [one.size for one in found] == [(50, 50), (61, 61), (30, 30)]
    # 40 × 61 pixels, from column 10 on, in the middle of a white square.
    square = np.asarray(found[1])
    np.testing.assert_array_equal(square[:, 10:50], np.asarray(image)[21:82, 10:50])
    assert (square[:, :10] == 255).all() and (square[:, 50:] == 255).all()
    assert detections(image, [], protocol) == []
