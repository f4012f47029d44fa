"""Size conditioning: the six numbers by which SDXL's kind of UNet knows how large a picture was, and what was cut off
(SDXL, arXiv 2307.01952, section 2.2)."""

import numpy as np
from numpy.typing import ArrayLike

SIZE_ORDERS = ("width_first", "height_first")


def time_ids(size: ArrayLike, *, original: ArrayLike | None = None, corner: ArrayLike = (0, 0),
             order: str = "width_first") -> np.ndarray:
    """The UNet's `time_ids` float32 [..., 6]: the original size, the crop's corner and the size, in pixels.

    Args:
        size: (height, width) of the pictures, [..., 2].
        original: (height, width) before they were scaled and cropped; None: they were not.
        corner: (top, left) of the crop.
        order: "width_first" is (w, h, left, top, w, h), as the released code has it; "height_first" is (h, w, top,
            left, h, w), as SDXL was trained.
    """
    pairs = np.broadcast_arrays(size if original is None else original, corner, size)
    if order == "width_first":
        pairs = [pair[..., ::-1] for pair in pairs]
    return np.concatenate(pairs, axis=-1).astype(np.float32)
