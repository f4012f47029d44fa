"""The picture that a call begins with, and what of it is painted anew."""

import dataclasses

import numpy as np
from PIL import Image, ImageOps

from realcustom_jax.conditioning.images import ImageSource, load_image
from realcustom_jax.conditioning.regions import Region, read_region


@dataclasses.dataclass(frozen=True)
class InitialPicture:
    """A picture uint8 [H, W, 3] and the share in which each pixel of it is painted anew, float32 [H, W]; None: all."""

    pixels: np.ndarray
    region: np.ndarray | None = None

    @classmethod
    def read(cls, image: ImageSource, mask: Region | None = None) -> "InitialPicture":
        """Of a picture and its mask, white where it is to be painted anew, or a box in its pixels.

        Raises:
            FileNotFoundError, ValueError: one of them cannot be read, the mask is black everywhere, or of another
                shape than the picture.
        """
        pixels = np.round(load_image(image) * 255).astype(np.uint8)
        height, width = pixels.shape[:2]
        if mask is None:
            return cls(pixels)
        return cls(pixels, read_region(mask, width, height, "mask_image", "init_image"))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def cropped(self, width: int, height: int) -> "InitialPicture":
        """The middle of the picture that has this shape, in this size."""
        if self.size == (width, height):
            return self

        def fit(x, way):
            return np.asarray(ImageOps.fit(Image.fromarray(x), (width, height), way))

        region = None if self.region is None else fit(self.region, Image.Resampling.BOX)
        if region is not None and region.max() == 0:
            raise ValueError(f"Nothing of mask_image is left in the {width} × {height} pixels that are made of the "
                             "middle of init_image; leave width and height out, or crop both pictures yourself.")
        return InitialPicture(fit(self.pixels, Image.Resampling.LANCZOS), region)

    def resized(self, width: int, height: int) -> np.ndarray:
        """The whole picture in this size, uint8 [height, width, 3]."""
        return self.pixels if self.size == (width, height) else np.asarray(
            Image.fromarray(self.pixels).resize((width, height), Image.Resampling.LANCZOS))

    def region_on(self, size: tuple[int, int]) -> np.ndarray:
        """The region on a grid of size (h, w), float32 [h, w]: a place counts as much as its whitest pixel, because
        what the mask leaves is put back by pixels."""
        h, w = size
        rows, columns = (np.arange(n) * side // n for n, side in ((h, self.region.shape[0]), (w, self.region.shape[1])))
        return np.maximum.reduceat(np.maximum.reduceat(self.region, rows, axis=0), columns, axis=1)

    def put_back(self, made: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, h, w, 3] that were made of this one, in its size where there is a region: the bytes
        outside of it are this picture's."""
        if self.region is None:
            return made
        share = self.region[..., None]
        whole = np.stack([np.asarray(Image.fromarray(x).resize(self.size, Image.Resampling.LANCZOS))
                          if x.shape != self.pixels.shape else x for x in made])
        mixed = np.uint8(np.round(share * whole + (1 - share) * self.pixels))
        return np.where(share == 0, self.pixels, mixed)
