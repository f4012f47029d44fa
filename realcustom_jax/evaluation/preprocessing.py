"""From a picture's file to what a metric network sees, bit for bit as the published scripts do it.

Pillow itself resizes, as under torchvision's transforms of Pillow's pictures and under transformers' processors; what
differs between these two is where a centre crop lies, and both are here. A script reads a picture in its own way, which
is not how the model's references are read (`conditioning.images`): a score is exact as its script is.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from realcustom_jax.evaluation.protocols import Protocol
from realcustom_jax.evaluation.rows import Box
from realcustom_jax.paths import as_path, local_copy

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LONGEST = 300_000
"""Pixels of a resized picture's longer side; more would be a thin line, and gigabytes."""
_DARKEST_OF_MASK = 128
"""The least of a mask's 0 … 255 that is the subject."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a picture is resized, cropped and normalised.

    Attributes:
        resize: of the shorter side, or (height, width) of a picture that is squeezed; None: as it is. In pixels.
        crop: (height, width) from the centre; None: all of it.
        centre: how the crop's place is rounded: "torchvision" (half to even) or "transformers" (down).
        resample: of Pillow. factor: of 0 … 255, before mean and std, per channel, are subtracted and divided by.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    centre: str = "torchvision"
    resample: Image.Resampling = Image.Resampling.BICUBIC
    factor: float = 1 / 255

    @classmethod
    def clip(cls, side: int, centre: str) -> "Preparation":
        """Of the published CLIPs, whose pictures have `side` pixels."""
        return cls(side, (side, side), CLIP_MEAN, CLIP_STD, centre)

    @classmethod
    def dino(cls, side: int, centre: str) -> "Preparation":
        """Of the scripts' DINO and DINOv2: resized to 256 and cropped to 224, or in this proportion to another side."""
        return cls(round(side * 256 / 224), (side, side), IMAGENET_MEAN, IMAGENET_STD, centre)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], default: "Preparation") -> "Preparation":
        """Of the preprocessor_config.json of a `CLIPImageProcessor` or `BitImageProcessor`; what it does not say is as
        in `default`. Raises ValueError for a value that cannot be used."""
        said = {key: value for key, value in config.items() if value is not None}
        try:
            resize = _size(said["size"], edge=True) if "size" in said else default.resize
            crop = _size(said["crop_size"]) if "crop_size" in said else default.crop
            normalise = said.get("do_normalize", True)
            return cls(
                resize=resize if said.get("do_resize", True) else None,
                crop=((crop, crop) if isinstance(crop, int) else crop) if said.get("do_center_crop", True) else None,
                mean=_channels(said.get("image_mean", default.mean)) if normalise else (0.0,) * 3,
                std=_channels(said.get("image_std", default.std)) if normalise else (1.0,) * 3,
                centre="transformers", resample=Image.Resampling(said.get("resample", default.resample)),
                factor=float(said.get("rescale_factor", default.factor)) if said.get("do_rescale", True) else 1.0)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"the preprocessor's configuration cannot be used ({error}); expected that of a "
                             "CLIPImageProcessor or BitImageProcessor.") from None

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized picture. The longer side is rounded down, as torchvision and transformers
        do. Raises ValueError for a picture that would become too long."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(width, height) / min(width, height))
        if longer > _LONGEST:
            raise ValueError(f"it has {width} × {height} pixels, too long and thin to be compared")
        return (longer, self.resize) if width > height else (self.resize, longer)

    def place(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the crop in a picture of this (width, height). What lies outside of the picture
        is black."""
        if self.crop is None:
            return 0, 0, *size
        height, width = self.crop
        left, top = (spare // 2 if self.centre == "transformers" else round(spare / 2)
                     for spare in (size[0] - width, size[1] - height))
        return left, top, left + width, top + height

    def frame(self, image: Image.Image) -> Image.Image:
        """The picture resized and cropped, in its own mode."""
        size = self.size_of(*image.size)
        if size != image.size:
            image = image.resize(size, self.resample)
        return image.crop(self.place(image.size))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """float32 [H, W, 3], what the network takes. The picture is converted to RGB after the crop, if it is not."""
        values = np.asarray(self.frame(image).convert("RGB"), np.float32) * np.float32(self.factor)
        return (values - np.float32(self.mean)) / np.float32(self.std)


def _size(value: Any, edge: bool = False) -> int | tuple[int, int]:
    """A size in transformers' ways: a number, a pair, {"height": …, "width": …}, with `edge` {"shortest_edge": …}."""
    if isinstance(value, Mapping):
        if edge and "shortest_edge" in value:
            value = value["shortest_edge"]
        else:
            value = value["height"], value["width"]
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not 1 <= len(pair) <= 2 or any(type(x) is not int or not 0 < x <= 8192 for x in pair):
        raise ValueError(f"a size is {value!r}")
    return pair[0] if len(pair) == 1 else pair


def _channels(values: Any) -> tuple[float, ...]:
    values = tuple(float(x) for x in values)
    if len(values) != 3:
        raise ValueError(f"{len(values)} channels where 3 were expected")
    return values


def read_picture(file: "AnyPath | str", protocol: Protocol) -> Image.Image:
    """A picture as the protocol's script reads it.

    Args:
        file: a picture, on a disk or in a bucket.
    Returns:
        In RGB, unless the protocol converts last. Of several pictures in a file it is the first.
    Raises:
        FileNotFoundError, ValueError, OSError: there is no such file, or it is no picture; one sentence that names it.
    """
    with _readable(file) as image:
        if protocol.turned:
            image = ImageOps.exif_transpose(image)
        if protocol.opacity == "white" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.copy() if protocol.converted == "last" else image.convert("RGB")


def read_mask(file: "AnyPath | str", size: tuple[int, int]) -> np.ndarray:
    """A mask's file as bool [H, W], true on the subject (white).

    Args:
        size: (width, height) of its picture.
    Raises:
        FileNotFoundError, ValueError, OSError: as `read_picture`; or the mask has another size.
    """
    with _readable(file, "mask") as image:
        mask = np.asarray(image.convert("L")) >= _DARKEST_OF_MASK
    if mask.shape[::-1] != size:
        raise ValueError(f"the mask {file} has {mask.shape[1]} × {mask.shape[0]} pixels and its picture {size[0]} × "
                         f"{size[1]}; give a mask of the picture's size.")
    if not mask.any():
        raise ValueError(f"the mask {file} is empty: nothing in it is white, as the subject should be.")
    return mask


@contextlib.contextmanager
def _readable(file: "AnyPath | str", what: str = "picture") -> Iterator[Image.Image]:
    """The file opened and read, as Pillow has it; what goes wrong with it is told in one sentence."""
    try:
        with Image.open(local_copy(as_path(file))) as image:
            image.load()
            yield image
        return
    except FileNotFoundError:
        raise FileNotFoundError(f"the {what} {file} does not exist.") from None
    except UnidentifiedImageError:
        reason = "Pillow finds no picture in it"
    except OSError as error:
        if error.strerror and not isinstance(error, IsADirectoryError | PermissionError):
            raise  # a disk or a bucket that cannot be reached
        reason = error.strerror or " ".join(str(error).split())
    except Exception as error:  # Pillow raises many kinds for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"the {what} {file} cannot be read ({reason}); give an undamaged PNG or JPEG file of it.")


def cut_out(image: Image.Image, mask: np.ndarray, paper: tuple[int, int, int]) -> Image.Image:
    """The RGB picture with what is outside of the mask, bool [H, W], in the colour of the paper."""
    return Image.fromarray(np.where(mask[:, :, None], np.asarray(image), np.uint8(paper)))


def detections(image: Image.Image, boxes: Sequence[Box], protocol: Protocol) -> list[Image.Image]:
    """The boxes of an RGB picture as XVerse compares them: each padded to a square on the protocol's paper.

    Corners are rounded to whole pixels. As in its script, what is much smaller than the picture is no detection, and of
    the others the first `protocol.detections` are taken.
    """
    side = image.width // 20
    found = []
    for box in boxes:
        left, top, right, bottom = (round(x) for x in box)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        width, height = right - left, bottom - top
        if min(width, height) > 0 and width * height >= side * side and min(width, height) >= side // 4:
            found.append(_squared(image.crop((left, top, right, bottom)), protocol.paper))
    return found[:protocol.detections]


def _squared(image: Image.Image, paper: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), paper)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
