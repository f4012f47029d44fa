"""Masks that are written as numbers, as COCO writes its `segmentation`: run lengths and polygons.

Run lengths count pixels column by column, outside and inside in turn, beginning with outside. COCO keeps them as a
list, or packed into a text: each number in groups of five bits from the lowest on, a sixth bit where more follow, 48
added to make a letter of it; from the fourth number on it is the difference to the last but one.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_LARGEST = 2**16  # side of a mask in pixels; what is larger is a mistake, and must not ask for memory


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """A mask of `size` (height, width): how many pixels outside, inside, outside … follow down the columns."""

    size: tuple[int, int]
    counts: tuple[int, ...]

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """See `rows.Mask`."""
        if self.size != tuple(size):
            raise ValueError(f"the mask is {self.size[1]} x {self.size[0]}, its target {size[1]} x {size[0]}")
        values = np.arange(len(self.counts)) % 2 == 1
        return _not_empty(np.repeat(values, self.counts).reshape(self.size[::-1]).T)


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The pixels whose middles lie in one of the polygons, each given as (x1, y1, x2, y2, …) in pixels of the target.

    Pixel (i, j) reaches from (j, i) to (j + 1, i + 1). What sticks out of the target is cut off.
    """

    polygons: tuple[tuple[float, ...], ...]

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """See `rows.Mask`."""
        mask = np.zeros(size, bool)
        for polygon in self.polygons:
            mask |= _filled(np.reshape(polygon, (-1, 2)), size)
        return _not_empty(mask)


def mask_of_numbers(given: Any) -> RunLengths | Polygons:
    """The mask that an object {"size": [h, w], "counts": …} or a list of polygons describes. Raises ValueError."""
    if isinstance(given, dict) and {"size", "counts"} <= given.keys():
        return _run_lengths(given["size"], given["counts"])
    if isinstance(given, list) and given and all(isinstance(polygon, list) for polygon in given):
        for polygon in given:
            if len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
                raise ValueError("a polygon of 'mask' is not [x1, y1, x2, y2, x3, y3, …] in pixels")
        return Polygons(tuple(tuple(map(float, polygon)) for polygon in given))
    raise ValueError("'mask' is neither a file name, run lengths {\"size\": [h, w], \"counts\": …} nor a list of "
                     "polygons")


def packed(counts: Sequence[int]) -> str:
    """Run lengths as COCO's text."""
    text = []
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group, number = number & 0x1F, number >> 5
            more = number != (-1 if group & 0x10 else 0)
            text.append(chr(48 + group + 0x20 * more))
    return "".join(text)


def _unpacked(text: str) -> list[int]:
    counts, number, shift = [], 0, 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("the counts of 'mask' are no text that COCO's tools write")
        number |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            number -= (group & 0x10) << (shift - 4)  # a sign, in two's complement
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number = shift = 0
    if shift:
        raise ValueError("the counts of 'mask' end within a number")
    return counts


def _run_lengths(size: Any, counts: Any) -> RunLengths:
    whole = isinstance(size, list) and len(size) == 2 and all(map(_is_whole, size))
    if not whole or not all(1 <= side <= _LARGEST for side in size):
        raise ValueError(f"the size {str(size)[:80]} of 'mask' is not [height, width] in pixels")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    counts = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(map(_is_whole, counts)) or min(counts, default=0) < 0:
        raise ValueError("the counts of 'mask' are no whole numbers from 0 on")
    if sum(counts) != math.prod(size):
        raise ValueError(f"the counts of 'mask' are of {sum(counts)} pixels, its size is {size[1]} x {size[0]}")
    return RunLengths(tuple(size), tuple(counts))


def _filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: the pixels whose middles have an odd number of the polygon's edges to their left."""
    height, width = size
    crossings = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in itertools.pairwise(np.concatenate([corners, corners[:1]])):
        low, high = np.clip(np.ceil(np.sort([y0, y1]) - 0.5), 0, height).astype(int)
        if low == high:
            continue
        rows = np.arange(low, high)
        x = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
        np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1


def _not_empty(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        raise ValueError("the mask is empty")
    return mask


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
