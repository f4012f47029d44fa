"""The shapes that targets have: a few sizes of about the same area ("buckets", as SDXL was trained, arXiv 2307.01952,
section 2.3), and how a picture comes to one of them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_STEP, _WIDEST = 64, 2.0
_LARGEST = 2**14  # side; what is larger is a mistake, and its shapes would be too many to be looked at


def buckets(side: int) -> list[tuple[int, int]]:
    """Sizes (width, height) in multiples of 64, none larger than side² nor wider or taller than 2 : 1. Raises
    ValueError: the side is none of a square target."""
    if not _STEP <= side <= _LARGEST or side % _STEP:
        raise ValueError(f"side is {side}; expected a multiple of {_STEP}, at most {_LARGEST}.")
    lengths = range(_STEP, int(side * _WIDEST) + 1, _STEP)
    sizes = [(width, max(h for h in lengths if h * width <= side * side)) for width in lengths if width <= side * 1.5]
    sizes += [(height, width) for width, height in sizes]
    return sorted({(w, h) for w, h in sizes if max(w, h) <= _WIDEST * min(w, h) and w * h > 0.8 * side * side})


def bucket_of(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> int:
    """The number of the size whose shape is nearest to a picture's."""
    return int(buckets_of(np.array([[height, width]]), sizes)[0])


def buckets_of(pictures: np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """`bucket_of` of many pictures [N, 2], (height, width) each: int16 [N]."""
    aspects, best = _aspects(pictures[:, ::-1]), np.full(len(pictures), np.inf)
    found = np.zeros(len(pictures), np.int16)
    for number, aspect in enumerate(_aspects(np.array(sizes))):  # one after the other, for the memory's sake
        distance = np.abs(aspects - aspect)
        nearer = distance < best
        found[nearer], best[nearer] = number, distance[nearer]
    return found


def nearest(sizes: Sequence[tuple[int, int]], kept: np.ndarray) -> np.ndarray:
    """Of every size the number of that one among the `kept` (bool [K], one at least) whose shape is nearest: int16 [K].
    """
    among = np.flatnonzero(kept)
    return among[buckets_of(np.array(sizes)[:, ::-1], [sizes[i] for i in among])].astype(np.int16)


def cover(
    picture: Image.Image, size: tuple[int, int], focus: tuple[float, float]
) -> tuple[Image.Image, tuple[int, int]]:
    """(the picture scaled to cover `size` and cropped to it, the crop's top and left in the scaled picture); `focus`
    (x, y in pixels of the picture) is as near to the middle as the picture allows."""
    if picture.size == size:
        return picture, (0, 0)
    scale = max(size[0] / picture.width, size[1] / picture.height)
    whole = tuple(max(round(length * scale), s) for length, s in zip(picture.size, size, strict=True))
    left, top = (int(np.clip(at * scale - s / 2, 0, w - s)) for at, s, w in zip(focus, size, whole, strict=True))
    # Only the crop is computed: the whole of a picture that is very long would not fit the memory.
    x, y = (length / w for length, w in zip(picture.size, whole, strict=True))
    box = left * x, top * y, (left + size[0]) * x, (top + size[1]) * y
    return picture.resize(size, Image.Resampling.LANCZOS, box), (top, left)


def _aspects(sizes: np.ndarray) -> np.ndarray:
    """Logarithms of width / height of [N, 2]."""
    return np.log(sizes[:, 0] / sizes[:, 1])
