"""Where in a picture something is to be: a painted mask or a box, as shares of pixels.

A region is given as a picture of which white counts (grey counts in part; see `images.load_image` for what can be
read, where whole numbers that are all 0 or 1 stand for false and true), or as a box: four numbers, left, top, right and
bottom, in pixels of the picture that it lies on.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import ImageSource, listed, load_image

Region = ImageSource | Sequence[float]
"""A mask or a box."""


def read_region(source: Region, width: int, height: int, what: str, of: str = "the picture") -> np.ndarray:
    """How much of each pixel of a picture of this size lies in the region: float32 [height, width] in [0, 1].

    A mask of another size, but of the same shape, is brought to the picture's. Messages call the region `what`, and the
    picture `of`.

    Raises:
        FileNotFoundError, ValueError: a mask that cannot be read, is black everywhere or of another shape than the
            picture, or a box that is none or leaves the picture.
    """
    if is_box(source):
        return _read_box(source, width, height, what)
    grey = _read_mask(source, what)
    h, w = grey.shape
    # A mask may be smaller than its picture, whose sides were rounded then.
    if abs(h * width - w * height) > max(h, w, height, width):
        raise ValueError(f"{what} has {w} × {h} pixels and {of} {width} × {height}: they have not the same shape; give "
                         "a mask that was painted on that picture.")
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BOX))
    return grey


def check_region(source: Region, what: str) -> None:
    """Raises as `read_region` for what is no region of any picture, whatever its size."""
    if is_box(source):
        _check_box(source, what)
    else:
        _read_mask(source, what)


def listed_regions(regions: Any, count: int) -> list[Region | None]:
    """A region for each of `count` subjects, None where there is none, of a single one or a sequence or array of them.

    Raises:
        ValueError: there are more or fewer than subjects.
    """
    if regions is None:
        return [None] * count
    if is_box(regions):
        found = [regions]
    elif hasattr(regions, "__array__") and (
            np.ndim(regions) == 3 and np.shape(regions)[0] == count > 1 or np.shape(regions) == (count, 4)):
        found = list(regions)  # [R, H, W] or boxes [R, 4], which could else be taken for one picture
    else:
        found = listed(regions)
    if len(found) != count:
        raise ValueError(f"{len(found)} mask(s) and {count} target(s) were given; expected one mask for each target, "
                         "or None where the mask is to be made by attention.")
    return found


def on_grid(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The region [H, W] on a coarser grid of size (h, w): float32 [h, w], the mean of each place, enlarged so that the
    region is as strong as before even where it is smaller than a place."""
    height, width = size
    coarse = np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.BOX))
    return coarse * (region.max() / coarse.max())


def region_masks(regions: Sequence[Region | None], size: tuple[int, int], count: int, latents: tuple[int, int],
                masks: tuple[int, int]) -> np.ndarray | list[np.ndarray | None] | None:
    """What `sample_latents` takes as masks of `count` pictures, by the regions of R subjects.

    Args:
        size: (width, height) of the pictures.
        latents, masks: (h, w) of the latents and of the masks that attention makes.
    Returns:
        None: no region is given. float32 [count, R, h, w] as fine as the latents: all are given. Else [count, h, w] in
        the size of the masks, or None, for each subject.
    """
    if all(region is None for region in regions):
        return None
    complete = all(region is not None for region in regions)
    grid = latents if complete else masks
    found = [None if region is None else np.broadcast_to(
        on_grid(read_region(region, *size, f"mask of target {i}"), grid), (count, *grid))
             for i, region in enumerate(regions, 1)]
    return np.stack(found, axis=1) if complete else found


def is_box(source: Any) -> bool:
    """Whether this is meant as a box: a sequence of numbers."""
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        return np.ndim(source) == 1
    return (isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray | memoryview)
            and len(source) > 0 and all(isinstance(x, Real | np.generic) for x in source))


def _read_mask(source: ImageSource, what: str) -> np.ndarray:
    """float32 [H, W], of the mask's own size."""
    is_array = hasattr(source, "__array__") and not isinstance(source, Image.Image)
    if is_array:
        numbers = np.asarray(source)
        source = numbers.astype(bool) if numbers.dtype.kind in "iu" and np.isin(numbers, (0, 1)).all() else source
    grey = load_image(source).mean(axis=-1)
    if grey.max() == 0:
        raise ValueError(f"The {what} is black everywhere, so that nothing is in it; paint white what belongs to it.")
    if not is_array and grey.max() <= 1.5 / 255:
        raise ValueError(f"The {what} looks black everywhere: its lightest pixel is 1 of 255; save it with 255 for "
                         "what belongs to it.")
    return grey


def _check_box(box: Sequence[float], what: str) -> tuple[float, float, float, float]:
    """The four numbers. Raises ValueError unless they are a box of some picture."""
    numbers = np.asarray(box, np.float64)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError(f"The {what} is {_shown(box)}; expected the four numbers of a box, left, top, right and "
                         "bottom, in pixels.")
    left, top, right, bottom = numbers.tolist()
    if not (left < right and top < bottom):
        raise ValueError(f"The {what} is {_shown(box)}, a box without inside; expected left < right and top < bottom.")
    if min(right - left, bottom - top) < 1 or max(right, bottom) <= 1:
        raise ValueError(f"The {what} is {_shown(box)}, no more than one pixel; a box is told in pixels, not in shares "
                         "of the picture.")
    if left < 0 or top < 0:
        raise ValueError(f"The {what} is {_shown(box)}, which begins outside of the picture; the first pixel is 0.")
    return left, top, right, bottom


def _read_box(box: Sequence[float], width: int, height: int, what: str) -> np.ndarray:
    left, top, right, bottom = _check_box(box, what)
    if right > width or bottom > height:
        raise ValueError(f"The {what} is {_shown(box)}, which leaves the picture of {width} × {height} pixels; "
                         f"expected right to be at most {width} and bottom at most {height}.")
    across, down = (np.clip(np.minimum(np.arange(side) + 1, stop) - np.maximum(np.arange(side), start), 0, 1)
                    for side, start, stop in ((width, left, right), (height, top, bottom)))
    return (down[:, None] * across).astype(np.float32)


def _shown(box: Sequence[float]) -> str:
    return f"({', '.join(f'{x:g}' for x in np.ravel(np.asarray(box, np.float64)))})"
