"""The sizes that a model makes; and size conditioning, the six numbers by which SDXL's kind of UNet knows how large a
picture was, and what was cut off (SDXL, arXiv 2307.01952, section 2.2)."""

import dataclasses
from numbers import Integral

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


@dataclasses.dataclass(frozen=True)
class PictureSizes:
    """The sides of the pictures that a model makes, in pixels: native is what it was made for; from low to high in
    steps of step."""

    native: int
    low: int
    high: int
    step: int

    @classmethod
    def of(cls, latent_side: int, factor: int) -> "PictureSizes":
        """Of a model made for latents of this side, each pixel of which is `factor` pixels of a picture's side."""
        native = latent_side * factor
        # Stable Diffusion's sizes; a model made for smaller pictures takes from half to twice its own.
        return cls(native, *((512, 2048, 32) if native >= 512 else (native // 2, 2 * native, 4 * factor)))

    def check(self, width: int | None, height: int | None) -> tuple[int, int]:
        """(width, height); None is native. Raises ValueError that names the nearest sizes."""
        sides = {"width": self.native if width is None else width, "height": self.native if height is None else height}
        for name, side in sides.items():
            if not isinstance(side, Integral):
                raise ValueError(f"{name} is {side!r}; expected a whole number of pixels.")
            if not self.low <= side <= self.high or side % self.step:
                around = {min(max(value, self.low), self.high)
                          for value in (side // self.step * self.step, -(-side // self.step) * self.step)}
                nearest = " or ".join(map(str, sorted(around)))
                raise ValueError(f"{name} is {side}; this model makes pictures of {self.low} to {self.high} pixels in "
                                 f"steps of {self.step}; the nearest {'are' if len(around) > 1 else 'is'} {nearest}.")
        return sides["width"], sides["height"]

    def like(self, width: int, height: int) -> tuple[int, int]:
        """The size of a picture's shape with about as many pixels as native ones have; the picture's own, where the
        model makes that and it is not larger.

        Raises:
            ValueError: a shape that is too long for every size.
        """
        if max(width, height) <= self.native and all(
                side >= self.low and side % self.step == 0 for side in (width, height)):
            return width, height
        if max(width, height) * self.low > min(width, height) * self.high:
            raise ValueError(f"init_image has {width} × {height} pixels, longer than {self.high} × {self.low}, the "
                             "longest that this model makes; crop it, or give width and height.")
        scale = self.native / (width * height) ** 0.5
        return tuple(min(max(round(side * scale / self.step) * self.step, self.low), self.high)
                     for side in (width, height))
