"""Whatever bytes are given as a picture: a picture, or one sentence, never another exception."""

import functools
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from realcustom_jax.conditioning.images import load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000")
BOUNDED = settings(derandomize=True, max_examples=50, deadline=None, database=None,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def picture(kind: str, mode: str) -> bytes:
    """A file of few bytes, with EXIF where the format has it."""
    numbers = np.random.default_rng(0).integers(0, 256, (9, 11, 4), np.uint8)
    image = Image.fromarray(numbers, "RGBA").convert(mode) if mode != "I;16" else Image.fromarray(
        numbers[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    return file.getvalue()


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    """A damaged header may ask for gigabytes; Pillow's limit is lowered, so that the tests stay quick."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250_000)


def check(content: bytes) -> None:
    try:
        pixels = load_image(content)
    except (ValueError, OSError) as error:
        sentence = str(error)
        assert sentence.startswith("The image given as bytes ") and sentence.endswith(".") and "\n" not in sentence
        assert len(sentence) < 400
    else:
        assert pixels.dtype == np.float32 and pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.size
        assert 0 <= pixels.min() and pixels.max() <= 1


@BOUNDED
@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes(content):
    check(content)


@BOUNDED
@given(kind=st.sampled_from(FORMATS), tail=st.binary(max_size=200))
def test_a_true_beginning_and_any_end(kind, tail):
    check(picture(kind, "RGB")[:24] + tail)


MODES = [(kind, "RGB") for kind in FORMATS] + [("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("TIFF", "I;16"),
                                               ("TIFF", "F"), ("GIF", "P"), ("JPEG", "CMYK"), ("TIFF", "CMYK")]


@pytest.mark.parametrize("kind, mode", MODES)
@BOUNDED
@given(data=st.data())
def test_damaged_files(kind, mode, data):
    content = bytearray(picture(kind, mode))
    places = st.integers(0, len(content) - 1) | st.integers(0, min(60, len(content) - 1))  # headers more often
    for place in data.draw(st.lists(places, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    check(bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]))
