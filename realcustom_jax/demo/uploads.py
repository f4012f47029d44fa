"""Which reference pictures are taken, and the ones that come with the package."""

import hashlib
import os
import threading
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from realcustom_jax.conditioning.images import load_image
from realcustom_jax.model_files.locate import ASSETS

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 25 * 10**6
"""What a camera of 24 megapixels makes. A reference is read at 768 pixels a side, so that more would be of no use."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""No others: Pillow would start other programs for some, such as Ghostscript for EPS."""
EXAMPLES = ASSETS / "references"

# A picture takes twelve bytes a pixel while it is read. That is done for one person after the other, and Python's
# warnings, which reading a picture silences, are the whole process's.
_READING = threading.Lock()


def check_upload(path: str | os.PathLike | None) -> None:
    """Reads a reference as the pipeline will.

    Raises:
        ValueError: no picture, or one that is too large, broken or of a format that is not in `FORMATS`. The sentence
            names the file without the folder on the server.
    """
    if path is None:
        raise ValueError("A reference picture is missing: drop one here, or choose an example below.")
    file, name = Path(path), Path(path).name
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{name} has {size / 2**20:.1f} MB; at most {MOST_BYTES / 2**20:.0f} MB are taken. Save "
                             "it smaller, or as a JPEG file.")
        with _READING:
            _check_pixels(file, name)
            load_image(file)
    except FileNotFoundError:
        raise ValueError(f"{name} is not on the server any more; give it once more.") from None
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), name)) from None


def bundled_name(path: str | os.PathLike) -> str | None:
    """The name of the bundled reference whose bytes this file has, wherever it lies; None: it is another picture."""
    return _bundled().get(hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _check_pixels(file: Path, name: str) -> None:
    """Looks at the file's header alone."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} has too many pixels; at most {MOST_PIXELS:,} are taken. Save it smaller.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is no picture, or a broken one; {', '.join(FORMATS)} files are taken.") from None
    except FileNotFoundError:
        raise
    except Exception:  # Pillow raises many kinds for a broken file
        raise ValueError(f"{name} is broken: not even its size can be read. Save it anew as PNG or JPEG.") from None
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name} has {width} × {height} pixels; at most {MOST_PIXELS:,} are taken. Save it smaller.")


@cache
def _bundled() -> dict[str, str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file.name for file in sorted(EXAMPLES.glob("*.png"))}
