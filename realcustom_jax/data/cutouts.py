"""References made of the target itself, where the data has no other picture of the subject."""

import numpy as np
from PIL import Image

from realcustom_jax.conditioning.references import square_reference

_PADDING = 0.08
_TURN = 25.0  # degrees to either side
_SIZES = (0.45, 0.9)  # of the subject in its new square


def cut_out_subject(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The square round a subject's mask [H, W], with its background; what leaves the picture is grey."""
    left, top, side = _square(mask)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(picture, (-left, -top))
    return square


def recontextualised(picture: Image.Image, mask: np.ndarray, rng: np.random.Generator, side: int) -> Image.Image:
    """The subject alone, of another size, turned, perhaps mirrored, somewhere on a plain background: [side, side]."""
    left, top, length = _square(mask)
    subject = cut_out_subject(picture, mask).convert("RGBA")
    alpha = Image.new("L", (length, length), 0)
    alpha.paste(Image.fromarray(np.uint8(255 * mask)), (-left, -top))
    subject.putalpha(alpha)
    if rng.random() < 0.5:
        subject = subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle, size = rng.uniform(-_TURN, _TURN), side * rng.uniform(*_SIZES)
    turned = np.cos(np.radians(abs(angle))) + np.sin(np.radians(abs(angle)))  # how much wider a turned square is
    resized = square_reference(np.asarray(subject, np.float32), max(1, round(size / turned)))
    subject = Image.fromarray(np.uint8(np.round(resized))).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    background = Image.new("RGB", (side, side), tuple(int(x) for x in rng.integers(90, 256, 3)))
    corner = tuple(int(x) for x in rng.integers(0, max(1, side - max(subject.size) + 1), 2))
    background.paste(subject, corner, subject)
    return background


def _square(mask: np.ndarray) -> tuple[int, int, int]:
    """(left, top, side) of the padded square round a mask."""
    ys, xs = np.nonzero(mask)
    low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()]) + 1
    side = int(np.ceil((high - low).max() * (1 + 2 * _PADDING)))
    left, top = ((low + high - side) / 2).astype(int)
    return int(left), int(top), side
