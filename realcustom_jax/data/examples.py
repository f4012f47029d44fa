"""A record as an example of training: its target in one of the shapes, a square reference, a caption.

Only the pictures that are used are decoded: the target, and the reference where that is another picture.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import load_rgb
from realcustom_jax.conditioning.references import square_pixels
from realcustom_jax.data.cutouts import cut_out_subject, recontextualised
from realcustom_jax.data.records import CUT_OUT, PLACED_ANEW, Record
from realcustom_jax.data.rows import called
from realcustom_jax.data.shapes import cover

RECONSTRUCTION, AUGMENTED, OTHER_VIEW = 0.0, 0.5, 1.0
"""Difficulties of the references: cut out of the target, the same changed, and another picture of the subject."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What of a row is shown: the numbers of a picture, of a subject and of a caption, and as the subject's reference
    the number of another picture, or `records.CUT_OUT`, `records.PLACED_ANEW`."""

    target: int
    subject: int
    reference: int
    caption: int


@dataclasses.dataclass(frozen=True)
class Example:
    """target uint8 [H, W, 3]; reference uint8 [S, S, 3]; original_size and crop_top_left int32 [2], vertical first;
    word: that of the caption which stands for the subject."""

    target: np.ndarray
    reference: np.ndarray
    original_size: np.ndarray
    crop_top_left: np.ndarray
    caption: str
    word: str


def difficulties(references: np.ndarray) -> np.ndarray:
    """Of references as `Drawn` numbers them: float [...]."""
    return np.select([references == CUT_OUT, references == PLACED_ANEW], [RECONSTRUCTION, AUGMENTED], OTHER_VIEW)


def read_example(record: Record, drawn: Drawn, size: tuple[int, int], reference_side: int,
                 seed: Sequence[int]) -> Example:
    """The example that is drawn from a record.

    Args:
        size: (width, height) of its target.
        reference_side: S.
        seed: of how a reference is placed anew.
    Raises ValueError: a picture cannot be read; names the row.
    """
    picture = _decoded(record, drawn.target)
    mask = _mask(record, drawn.subject, picture.size)
    focus = (picture.width / 2, picture.height / 2)
    if mask is not None:  # the subject is kept in the crop
        ys, xs = np.nonzero(mask)
        focus = ((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2)
    target, corner = cover(picture, size, focus)
    if drawn.reference == CUT_OUT:
        reference = cut_out_subject(picture, mask)
    elif drawn.reference == PLACED_ANEW:
        reference = recontextualised(picture, mask, np.random.default_rng(seed), reference_side)
    else:
        reference = _decoded(record, drawn.reference)
    return Example(
        target=np.asarray(target), reference=square_pixels(np.asarray(reference), reference_side),
        original_size=np.array([picture.height, picture.width], np.int32), crop_top_left=np.array(corner, np.int32),
        caption=record.captions[drawn.caption], word=record.words[drawn.subject])


def _decoded(record: Record, number: int) -> Image.Image:
    with called(f"{number} of the row {record.where!r} in the dataset"):
        return load_rgb(record.pictures[number])


def _mask(record: Record, subject: int, size: tuple[int, int]) -> np.ndarray | None:
    """Where a subject is in the target of `size` (width, height), bool [H, W]; None where the row does not say."""
    if subject in record.masks:
        return np.asarray(Image.open(io.BytesIO(record.masks[subject]))) > 0
    if subject not in record.boxes:
        return None
    left, top, right, bottom = record.boxes[subject]
    mask = np.zeros((size[1], size[0]), bool)
    mask[max(0, int(top)):int(np.ceil(bottom)), max(0, int(left)):int(np.ceil(right))] = True
    return mask
