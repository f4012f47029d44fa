"""Small real files for the tests of sources, and what all sources must do."""

import io
import pickle

import numpy as np
from PIL import Image

from realcustom_jax.data.records import read_record, write_record
from realcustom_jax.data.sources import BrokenRow, open_source


def picture(size=(24, 16), colour="red", kind="JPEG", mode="RGB", **options) -> bytes:
    """A picture's file of `size` (width, height)."""
    buffer = io.BytesIO()
    image = Image.new("RGB", size, colour)
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else (
        image.convert(mode))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mask(size=(24, 16), box=(2, 3, 12, 13)) -> bytes:
    """A mask's file: white in the box (left, top, right, bottom)."""
    image = Image.new("L", size, 0)
    image.paste(255, box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(source) -> tuple[list, list[str]]:
    """(records of the rows that can be written, sentences of the others). Parts go to another process."""
    records, broken = [], []
    for part in pickle.loads(pickle.dumps(list(source.parts()))):
        assert part.name
        for row in part.rows():
            if isinstance(row, BrokenRow):
                broken.append(str(row))
                continue
            try:
                records.append(read_record(write_record(row)[0]))
            except (ValueError, OSError) as error:
                broken.append(str(BrokenRow(row.where, str(error))))
    return records, broken


def opened(path, **options):
    """The same of the source at a path."""
    return rows_of(open_source(str(path), **options))
