"""Pictures in and out: files, bytes and arrays as numbers, and numbers as pictures.

Two ranges are in use: [0, 1] for references (the encoders normalise further), [-1, 1] for the autoencoder. JAX is
imported only where it is used, because worker processes read pictures with this module and nothing else of the model.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Union

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from realcustom_jax.paths import as_path, local_copy

if TYPE_CHECKING:
    import jax

ImageSource = Union[str, os.PathLike, bytes, BinaryIO, Image.Image, np.ndarray, "jax.Array"]  # noqa: UP007
"""A picture: a file (its path, its content, or opened in binary mode), an image of Pillow, or an array."""

_EXPECTED = "a file (its path, its content as bytes, or opened in binary mode), a PIL image or an array [H, W, 3]"
_BYTES = bytes | bytearray | memoryview
_ORIENTATION = 0x0112
_TURNS = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""What EXIF's orientations ask for, by their numbers."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"
"""Those that say how a picture looks."""
_OVERSHOOT = 0.1
"""By how much of white a sharpened picture in floats may leave the range from black to white; it is clipped."""
_FAINTEST = 16
"""The least that the largest float of a picture whose white is 255 must reach. What lies between 1 and this may also be
measured light, whose white nobody knows."""


class _Unusable(ValueError):
    """What is wrong with a picture, as the rest of a sentence that begins with its name."""


def load_image(source: ImageSource) -> np.ndarray:
    """Reads a picture as it is meant to be seen: turned as its EXIF says, transparency on white, the first of several.

    Args:
        source: a file (its path, its content, or opened in binary mode), an image opened with Pillow, or an array (of
            numpy, JAX or torch) [H, W], [H, W, 1], [H, W, 3] or, with opacity last, [H, W, 2] or [H, W, 4]; channels
            come first where nothing else can be meant. White is 1 in floats; 255 in whole numbers, or the largest of
            their kind where they exceed 255. Floats that exceed 1 are read as such whole numbers.
    Returns:
        float32 [H, W, 3] in [0, 1]. A JPEG file that is too large for Pillow comes with a half to an eighth of its
        sides.
    Raises:
        FileNotFoundError, ValueError: there is no such file, it cannot be read, or this is no picture; says which.
        OSError: the bucket that it lies in cannot be reached.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of metadata that it skips, and of sizes below its limit
        found = _load(source)
    if not isinstance(found, Image.Image):
        return found
    parts = np.array(found, np.float32)
    parts /= 255
    return parts


def load_rgb(source: ImageSource) -> Image.Image:
    """`load_image` rounded to 8 bits, as an image of Pillow. Of pictures with 8 bits a channel, as most are, nothing is
    computed in floats. Several threads may call it, which is why Pillow's warnings are left alone: whether they are
    shown is one setting of all threads."""
    found = _load(source)
    return found if isinstance(found, Image.Image) else Image.fromarray(np.uint8(np.round(found * 255)))


def listed(images: ImageSource | Iterable[ImageSource]) -> list[ImageSource]:
    """One picture, several, or an array of them [N, H, W, C], as a list. `load_image` says which of them it reads."""
    if _is_array(images):
        return list(images) if np.ndim(images) == 4 else [images]
    one = isinstance(images, str | os.PathLike | _BYTES | Image.Image | Mapping) or hasattr(images, "read")
    return [images] if one or not isinstance(images, Iterable) else list(images)


def paired(image, target) -> tuple[list[ImageSource], tuple[str, ...]]:
    """References and targets as sequences that fit each other."""
    references = listed(image)
    targets = tuple(target) if isinstance(target, Iterable) and not isinstance(target, str) else (target,)
    if not targets or len(references) not in (1, len(targets)):
        raise ValueError(f"{len(references)} reference(s) and {len(targets)} target(s) were given; expected one target "
                         "for each reference, or one reference for all targets.")
    return references, targets


def from_uint8(images: jax.Array | np.ndarray) -> jax.Array:
    """uint8 pictures of any shape to the autoencoder's range: float32 in [-1, 1]."""
    import jax.numpy as jnp

    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images: jax.Array | np.ndarray) -> np.ndarray:
    """The autoencoder's output, about [-1, 1], clipped and rounded to uint8."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(images: jax.Array | np.ndarray, columns: int) -> Image.Image:
    """One picture of many: [N, H, W, 3] in [-1, 1], rows first; places left over are white."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, channels))


def _load(source: ImageSource) -> Image.Image | np.ndarray:
    """An RGB image of Pillow where there are 8 bits a channel, or else float32 [H, W, 3] in [0, 1]. Raises what
    `load_image` raises."""
    copied = _from_bucket(source)
    try:
        if _is_array(source):
            return _from_array(_on_host(source))
        if isinstance(source, Image.Image):
            return _from_image(source)
        return _from_file(_openable(copied))
    except FileNotFoundError:
        raise
    except _Unusable as error:
        raise ValueError(f"The image {_name(source)} {error}") from None
    except UnidentifiedImageError:
        reason = "Pillow finds no picture in it"
    except Exception as error:  # Pillow raises many kinds for a broken file
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"The image {_name(source)} cannot be read ({error.strerror}).") from None
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"The image {_name(source)} cannot be read ({reason}); give an undamaged PNG or JPEG file of it.")


def _is_array(source: Any) -> bool:
    return hasattr(source, "__array__") and not isinstance(source, Image.Image)


def _name(source: Any) -> str:
    """What a sentence calls a picture. What is no path, as the text of a whole file, may be very long."""
    if isinstance(source, Image.Image):
        return f"given as {type(source).__name__} of {source.width} × {source.height} pixels"
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return path if 0 < len(path) <= 300 and path.isprintable() else f"{path[:50]!r}{'…' * (len(path) > 50)}"
    return f"given as {type(source).__name__}"


def _from_bucket(source: Any) -> Any:
    """This host's copy of a picture that lies in a bucket; others as they are. Raises as `paths.local_copy`."""
    bucket = isinstance(source, str | os.PathLike) and os.fsdecode(source).startswith(("gs:", "s3:"))
    return local_copy(as_path(os.fsdecode(source))) if bucket else source


def _openable(source: Any) -> str | io.BytesIO:
    """What Pillow can open, more than once."""
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        if path.startswith(("http://", "https://")):
            raise FileNotFoundError(f"The image {_name(source)} is an address; download it and give the file.")
        if os.path.isdir(path):
            raise _Unusable("is a folder; give one file of it.")
        if not os.path.exists(path):
            raise FileNotFoundError(f"The image {_name(source)} does not exist.")
        return path
    if hasattr(source, "read"):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
        source = source.read()
        if not isinstance(source, _BYTES):
            raise _Unusable("gives text; open it in binary mode.")
    if not isinstance(source, _BYTES):
        raise _Unusable(f"is no picture; expected {_EXPECTED}.")
    return io.BytesIO(source)


def _from_file(file: str | io.BytesIO) -> Image.Image | np.ndarray:
    try:
        with _opened(file) as image:
            return _from_image(image)
    except _Unusable:
        raise
    except Exception:
        content = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        bare = _without_metadata(content)
        if bare is None:
            raise
        with _opened(io.BytesIO(bare)) as image:
            return _from_image(image)


def _opened(file: str | io.BytesIO) -> Image.Image:
    """Opens a file; one that is larger than Pillow allows, so that it is decoded smaller, where JPEG can."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        most = Image.MAX_IMAGE_PIXELS
    try:
        if isinstance(file, io.BytesIO):
            file.seek(0)
        image = JpegImagePlugin.JpegImageFile(file)
    except SyntaxError:
        raise _Unusable(f"has more than {2 * most:,} pixels, too many to be read whole; make it smaller, some thousand "
                        "pixels a side, or give it as a JPEG file, which can be read in part.") from None
    width, height = image.size
    scale = next((s for s in (2, 4, 8) if width * height <= s * s * most), 8)
    image.draft(None, (width // scale, height // scale))
    return image


def _without_metadata(content: bytes) -> bytes | None:
    """A PNG file without the chunks that do not belong to its picture, any of which can keep Pillow from reading it by
    its size or its checksum. None: it is no PNG file, or has no others."""
    if not content.startswith(_PNG):
        return None
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        chunk = content[start:end]
        if kind == b"eXIf":  # which may be damaged, and tell the orientation all the same
            chunk = chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if kind in _PNG_CHUNKS:
            kept.append(chunk)
        start = end
    bare = b"".join(kept)
    return None if bare == content else bare


def _from_image(image: Image.Image) -> Image.Image | np.ndarray:
    if not all(image.size):
        raise _Unusable(f"has no pixels: its size is {image.width} × {image.height}.")
    image.load()  # a TIFF file turns itself meanwhile
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        numbers = _from_numbers(image)
        return numbers if turn is None else np.ascontiguousarray(turn(numbers))
    colours = _from_colours(image)
    return colours if turn is None else Image.fromarray(np.ascontiguousarray(turn(np.asarray(colours))))


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how a picture lies, 1 where the block does not say, or is too damaged to say."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds for a broken block
        return 1


def _from_colours(image: Image.Image) -> Image.Image:
    """Of a picture with 8 bits a channel."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_numbers(image: Image.Image) -> np.ndarray:
    """Of a grey picture of more bits, which Pillow would cut at 255."""
    numbers, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "I" and tags:  # Pillow's one mode for all that TIFF distinguishes
        kind = "int" if tags.get(SAMPLEFORMAT, (1,))[0] == 2 else "uint"
        numbers = numbers.astype(f"{kind}{tags.get(BITSPERSAMPLE, (32,))[0]}")
    elif image.mode == "I" and image.format == "PPM":  # which Pillow brings to 16 bits
        numbers = numbers.astype(np.uint16)
    grey = _parts_of_white(numbers)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # TIFF's white is zero
        grey = 1 - grey
    if "transparency" in image.info:
        grey = np.where(numbers == image.info["transparency"], np.float32(1), grey)
    return np.repeat(grey[..., None], 3, axis=-1)


def _on_host(array: Any) -> np.ndarray:
    """numpy's array of one of numpy, JAX or torch; torch's may carry gradients, or floats that numpy does not have."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(array)


def _from_array(array: np.ndarray) -> Image.Image | np.ndarray:
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[-1] > 4 and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or not 1 <= array.shape[-1] <= 4 or not array.size:
        raise _Unusable(f"has the shape {list(shape)}; expected [H, W], [H, W, 3] or, with opacity, [H, W, 4].")
    if array.dtype == bool:
        array = np.uint8(255) * array
    if array.dtype == np.uint8:
        return _from_colours(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array))
    parts = _parts_of_white(array)
    opacity = parts[..., -1:] if parts.shape[-1] in (2, 4) else 1
    colours = parts[..., :3] if parts.shape[-1] > 2 else parts[..., :1]
    return np.broadcast_to(colours * opacity + (1 - opacity), (*parts.shape[:2], 3)).copy()


def _parts_of_white(numbers: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of numbers whose kind and size tell what white is, see `load_image`."""
    import jax.numpy as jnp  # which knows the floats that numpy does not have

    whole = jnp.issubdtype(numbers.dtype, jnp.integer)
    if not whole and not jnp.issubdtype(numbers.dtype, jnp.floating):
        raise _Unusable(f"holds numbers of the type {numbers.dtype}; expected whole numbers or floats.")
    if not whole:
        numbers = numbers.astype(np.float32)
    low, high = numbers.min(), numbers.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _Unusable("holds numbers that are not finite; expected 0 (black) to 1 (white).")
    if numbers.dtype == np.uint16:
        whites = (65535,)
    elif whole:
        largest = min(np.iinfo(numbers.dtype).max, 2**32 - 1)
        whites = 255, min(65535, largest), largest
    else:
        whites = (1, 255, 65535) if high <= 1 + _OVERSHOOT or high >= _FAINTEST else ()
    slack = 0 if whole else _OVERSHOOT
    white = next((white for white in whites if high <= white + slack), None)
    if white is None or low < -slack * white:
        raise _Unusable(f"holds numbers from {low:g} to {high:g}; expected 0 (black) to 1 (white) in floats, or to 255 "
                        "or 65535 in whole numbers.")
    parts = numbers.astype(np.float32)
    parts /= white
    return np.clip(parts, 0, 1, out=parts)
