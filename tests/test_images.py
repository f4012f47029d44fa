"""Pictures as people have them: of every depth, turned, transparent, damaged, huge, and not in a file at all."""

import io
import struct
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from realcustom_jax.conditioning.images import from_uint8, grid, listed, load_image, paired, to_uint8
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.models.resize import average_pixels

DOG = ASSETS / "references" / "dog.png"
COLOURS = np.asarray(Image.open(DOG).convert("RGB"))
GREY = np.asarray(Image.open(DOG).convert("L"))
EIGHT_BITS = np.repeat(GREY[..., None] / np.float32(255), 3, axis=-1)


def encoded(picture, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def tiff(numbers: np.ndarray, order: str, sample_format: int, photometric: int = 1) -> bytes:
    """One grey strip, as no writer at hand makes it: any byte order, depth and kind of numbers."""
    height, width = numbers.shape
    bits = 8 * numbers.dtype.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: height,
            279: numbers.nbytes, 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return start + entries + bytes(4) + numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()


def assert_the_dog(picture, atol=1 / 255):
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, EIGHT_BITS, atol=atol)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("numbers, sample_format", [
    (GREY.astype(np.uint16) * 257, 1),
    ((GREY * (32767 / 255)).astype(np.int16), 2),
    (GREY.astype(np.int32) * 257, 2),
    ((GREY * (2.0**31 - 1) / 255).astype(np.int32), 2),
    (GREY.astype(np.int32), 2),
    (np.float32(GREY) / 255, 3),
    (np.float32(GREY), 3),
    (np.float32(GREY) * 257, 3),
])
def test_deep_tiff_files_show_what_eight_bits_show(numbers, sample_format, order):
    assert_the_dog(load_image(tiff(numbers, order, sample_format)))


def test_deep_files_of_other_kinds_show_what_eight_bits_show(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    assert_the_dog(load_image(tiff(GREY.astype(np.uint32) * 16843009, "<", 1)))
    assert_the_dog(load_image(tiff(65535 - deep, "<", 1, photometric=0)))  # white is zero
    assert_the_dog(load_image(encoded(deep)))
    assert_the_dog(load_image(b"P5 128 128 65535\n" + deep.astype(">u2").tobytes()))
    assert_the_dog(load_image(b"Pf\n128 128\n-1.0\n" + (np.float32(GREY[::-1]) / 255).astype("<f4").tobytes()))
    dark = np.full((2, 2), 200, np.uint16)  # of 65535; not of 255
    for content in (encoded(dark), b"P5 2 2 65535\n" + dark.astype(">u2").tobytes(), tiff(dark, "<", 1)):
        assert load_image(content).max() == pytest.approx(200 / 65535)


def test_a_transparent_level_of_a_deep_picture_is_white():
    deep = np.uint16([[0, 500, 65535]])
    content = encoded(deep, transparency=500)
    np.testing.assert_allclose(load_image(content)[0, :, 0], [0, 1, 1])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_sixteen_bit_colours_are_read(dtype):
    """A PNG file of 16 bits a channel, which Pillow can read and not write; and an array of as many."""
    white = np.iinfo(dtype).max if dtype == np.int16 else 65535
    deep = np.round(COLOURS * (white / 255)).astype(dtype)
    rows = b"".join(b"\0" + row.tobytes() for row in np.round(COLOURS * 257.0).astype(">u2"))
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 128, 128, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND")
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in chunks)
    for source in (content, deep):
        np.testing.assert_allclose(load_image(source), COLOURS / 255, atol=1 / 255)


@pytest.mark.parametrize("numbers, words", [
    (np.float32([[0, np.nan]]), "that are not finite"),
    (np.float32([[0, np.inf]]), "that are not finite"),
    (np.float32([[-1, 1]]), "from -1 to 1; expected 0"),
    (np.float32([[0, 5]]), "from 0 to 5; expected 0"),
    (np.float32([[0, 1e6]]), r"from 0 to 1e\+06; expected 0"),
    (np.int32([[-300, 300]]), "from -300 to 300; expected 0"),
])
def test_numbers_whose_white_nobody_knows_are_refused(numbers, words):
    for source in (numbers, Image.fromarray(numbers)):
        with pytest.raises(ValueError, match=f"^The image given as .* holds numbers {words}"):
            load_image(source)


def test_what_sharpening_adds_to_black_and_white_is_cut():
    np.testing.assert_array_equal(load_image(np.float32([[-0.03, 0.5, 1.04]]))[0, :, 0], [0, 0.5, 1])


@pytest.mark.parametrize("array", [
    COLOURS, COLOURS / 255, np.float16(COLOURS / 255), np.float32(COLOURS), COLOURS.astype(int),
    COLOURS.transpose(2, 0, 1), jnp.asarray(COLOURS), jnp.asarray(COLOURS / 255, jnp.bfloat16),
    np.concatenate([COLOURS, np.full_like(COLOURS[..., :1], 255)], -1),
    np.concatenate([COLOURS / 255, np.ones_like(COLOURS[..., :1])], -1)])
def test_an_array_is_one_picture(array):
    np.testing.assert_allclose(load_image(array), COLOURS / np.float32(255), atol=0.004)
    references, _ = paired(array, "dog")
    assert len(references) == 1 and references[0] is array


@pytest.mark.parametrize("array", [GREY, GREY[..., None], GREY / 255, np.stack([GREY, np.full_like(GREY, 255)], -1)])
def test_an_array_without_colours_is_grey(array):
    assert_the_dog(load_image(array), 1e-6)


def test_arrays_are_laid_on_white_as_files_are():
    seen = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    for mode, array in (("RGBA", seen), ("LA", seen[..., :2])):
        expected = load_image(encoded(Image.fromarray(array, mode)))
        np.testing.assert_array_equal(load_image(array), expected)
        np.testing.assert_allclose(load_image(array / 255), expected, atol=1 / 255)
    np.testing.assert_array_equal(load_image(np.array([[True, False]]))[0, :, 0], [1, 0])


def test_tensors_of_torch_are_read():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(COLOURS).permute(2, 0, 1) / 255
    for given in (tensor, tensor.clone().requires_grad_(), tensor.permute(1, 2, 0).bfloat16()):
        np.testing.assert_allclose(load_image(given), COLOURS / 255, atol=0.004)
        assert len(listed(given)) == 1


def test_files_are_read_from_their_paths_contents_and_opened(tmp_path):
    content = DOG.read_bytes()
    with open(DOG, "rb") as opened:
        opened.seek(7)
        sources = (DOG, str(DOG), content, bytearray(content), memoryview(content), io.BytesIO(content), opened,
                   Image.open(DOG))
        for source in sources:
            references, _ = paired(source, "dog")
            assert len(references) == 1
            for _ in range(2):
                np.testing.assert_array_equal(load_image(references[0]), COLOURS / np.float32(255))


def test_several_pictures_are_counted_as_such():
    assert [len(listed(images)) for images in (
        [DOG, COLOURS], (DOG,), np.stack([COLOURS] * 3), jnp.zeros((2, 4, 4, 3)), iter([DOG, DOG]), [])] == [
            2, 1, 3, 2, 2, 0]
    with pytest.raises(ValueError, match="2 reference.* and 1 target"):
        paired([DOG, COLOURS], "dog")


@pytest.mark.parametrize("source, words", [
    (None, "given as NoneType is no picture; expected a file"),
    (7, "given as int is no picture; expected a file"),
    ({"image": DOG}, "given as dict is no picture; expected a file"),
    (object(), "given as object is no picture; expected a file"),
    (io.StringIO("text"), "given as StringIO gives text; open it in binary mode"),
    (b"", "given as bytes cannot be read"),
    ("", "'' does not exist"),
    ("a\0b", "does not exist"),
    ("iVBORw0KGgo" * 1000, "'iVBORw0K[^ ]*'… does not exist"),
    ("https://example.org/dog.png", "https://example.org/dog.png is an address; download it"),
    (str(DOG.parent), "references is a folder; give one file"),
    (np.zeros(3), r"has the shape \[3\]; expected \[H, W\]"),
    (np.zeros((1, 4, 4, 3)), r"has the shape \[1, 4, 4, 3\]"),
    (np.zeros((5, 4, 7)), r"has the shape \[5, 4, 7\]"),
    (np.zeros((0, 4, 3)), r"has the shape \[0, 4, 3\]"),
    (np.array("dog.png"), r"has the shape \[\]"),
    (np.array([[None]]), "numbers of the type object; expected whole numbers or floats"),
    (np.zeros((2, 2), complex), "numbers of the type complex128"),
    (Image.new("RGB", (0, 5)), "has no pixels: its size is 0 × 5"),
])
def test_what_is_no_picture_is_one_sentence(source, words):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^The image .*{words}") as caught:
        load_image(paired(source, "dog")[0][0] if np.ndim(source) != 4 else source)
    assert len(str(caught.value)) < 300


def test_images_are_turned_as_exif_says(tmp_path):
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.shape == (4, 2, 3) and loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, np.broadcast_to(np.float32([1, 0, 0]), (4, 2, 3)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(COLOURS[:40]), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    np.testing.assert_array_equal(load_image(file), np.asarray(expected, np.float32) / 255)


def exif_block(orientation: int, *entries: bytes) -> bytes:
    entries = struct.pack("<HHII", 0x0112, 3, 1, orientation), *entries
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


RESOLUTION_AS_TEXT = struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0\0")
BEYOND_THE_END = struct.pack("<HHII", 0x010F, 2, 500, 60000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif, turned", [
    (exif_block(6, RESOLUTION_AS_TEXT), True),
    (exif_block(6, BEYOND_THE_END), True),
    (exif_block(6)[:-4], True),
    (exif_block(6)[:20], False),
    (exif_block(99), False),
    (exif_block(1, RESOLUTION_AS_TEXT), False),
    (b"Exif\0\0", False),
    (b"\0\x08\0\x02\x01\x12\0\x03", False),
    (b"Exif\0\0" + bytes(range(256)), False),
])
def test_a_damaged_exif_block_leaves_the_pixels_and_the_orientation_that_it_tells(kind, exif, turned, recwarn):
    picture = Image.new("RGB", (24, 8), "red")
    plain = load_image(encoded(picture, kind))
    expected = plain.swapaxes(0, 1) if turned else plain
    np.testing.assert_allclose(load_image(encoded(picture, kind, exif=exif)), expected, atol=0.02)
    assert not recwarn.list


@pytest.mark.parametrize("damage", ["checksum", "a long text"])
def test_chunks_beside_the_pixels_of_a_png_file_do_not_keep_it_from_being_read(damage):
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_text("workflow", "x" * 3_000_000 if damage == "a long text" else "x", zip=True)
    file = bytearray(encoded(Image.new("RGB", (24, 8), "red"), pnginfo=text, exif=exif))
    if damage == "checksum":
        for kind in (b"zTXt", b"eXIf"):
            file[file.index(kind) + 6] ^= 1
        file[file.index(b"eXIf") + 6] ^= 1
        file[file.index(b"eXIf") + 4 + 26] ^= 1  # its checksum
    picture = load_image(bytes(file))
    np.testing.assert_array_equal(picture, np.broadcast_to(np.float32([1, 0, 0]), (24, 8, 3)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_file_that_is_too_large_is_read_smaller(monkeypatch, options, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)  # Pillow refuses the double of it
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.repeat(np.repeat(COLOURS[:96], 4, 0), 4, 1))  # 512 × 384
    picture = load_image(encoded(photo, "JPEG", exif=exif, quality=95, **options))
    assert picture.shape == (64, 48, 3)
    expected = np.rot90(average_pixels(COLOURS[:96].transpose(2, 0, 1) / 255, (48, 64)).transpose(1, 2, 0), 3)
    assert np.abs(picture - expected).mean() < 0.02
    warned = encoded(photo.resize((130, 100)), "JPEG")  # above Pillow's warning, and not twice as much
    assert load_image(warned).shape == (100, 130, 3) and not recwarn.list


def test_other_files_that_are_too_large_are_refused_for_their_size(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "WEBP", "TIFF", "BMP"):
        with pytest.raises(ValueError, match="has more than 200 pixels, too many.*; make it smaller, .*JPEG file"):
            load_image(encoded(COLOURS, kind))


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (1, 1)])
def test_every_aspect_is_read(size):
    assert load_image(encoded(Image.new("RGB", size, "red"))).shape == (*size[::-1], 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_pictures_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load_image(file), np.broadcast_to(np.float32([1, 0, 0]), (8, 8, 3)))


@pytest.mark.parametrize("mode, colour, expected", [
    ("RGBA", (0, 0, 0, 0), [1, 1, 1]),
    ("RGBA", (0, 0, 255, 255), [0, 0, 1]),
    ("LA", (0, 51), [0.8, 0.8, 0.8]),
    ("L", 51, [0.2, 0.2, 0.2]),
    ("1", 1, [1, 1, 1]),
    ("PA", (0, 0), [1, 1, 1]),
    ("CMYK", (0, 255, 255, 0), [1, 0, 0]),
    ("YCbCr", (76, 85, 255), [254 / 255, 0, 0]),
    ("HSV", (0, 255, 255), [1, 0, 0]),
    ("I;16", 0x3333, [0.2, 0.2, 0.2]),
    ("I;16B", 0x3333, [0.2, 0.2, 0.2]),
    ("I", 0x3333, [0.2, 0.2, 0.2]),
    ("F", 0.2, [0.2, 0.2, 0.2]),
])
def test_transparency_is_laid_on_white(mode, colour, expected):
    loaded = load_image(Image.new(mode, (3, 2), colour))
    np.testing.assert_allclose(loaded, np.broadcast_to(expected, (2, 3, 3)), atol=1e-6)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.png does not exist"):
        load_image(tmp_path / "absent.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "note.png").write_text("no image")
    jpeg = encoded(noise, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    for name in ("cut.png", "cut.jpg", "note.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read .*; give an undamaged PNG or JPEG file of it"):
            load_image(tmp_path / name)


def test_bytes_survive_the_autoencoders_range():
    levels = np.arange(256, dtype=np.uint8)
    images = from_uint8(levels)
    assert images.dtype == jnp.float32 and images[0] == -1 and images[-1] == 1
    np.testing.assert_array_equal(to_uint8(images), levels)
    np.testing.assert_array_equal(to_uint8(jnp.array([-1.5, 1.5])), [0, 255])


def test_grid_lays_pictures_out_by_rows():
    levels = np.array([0, 85, 170], np.uint8)
    images = from_uint8(np.broadcast_to(levels[:, None, None, None], (3, 2, 4, 3)))
    sheet = np.asarray(grid(images, columns=2))
    assert sheet.shape == (4, 8, 3)
    np.testing.assert_array_equal(sheet[::2, ::4, 0], [[0, 85], [170, 255]])
