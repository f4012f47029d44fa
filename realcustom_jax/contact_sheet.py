"""Pictures of a result: where the masks lie, and one sheet that tells the whole story.

    reference  |  guidance mask over the steps  |  result

One row for each reference of each picture; a reference and its mask share a colour. Masks lie on the finished picture,
from where they are weakest (grey) to where they are strongest; their labels say how weak and how strong.
"""

import os
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from realcustom_jax.files import png, write_file
from realcustom_jax.paths import check_reachable, is_bucket
from realcustom_jax.pipeline import Result

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

CELL = 256
_GAP, _LABEL, _TITLE, _FRAME = 14, 26, 34, 4
_PAPER, _INK = (255, 255, 255), (30, 30, 36)
COLOURS = ((230, 50, 50), (40, 110, 240), (220, 150, 0), (0, 160, 100), (160, 70, 220))
_OPACITY = 0.75
_TITLE_LINES, _LABEL_LETTERS = 6, 24


def in_square(image: Image.Image, cell: int = CELL) -> Image.Image:
    """The picture in a square of `cell`: enlarged by a whole factor with hard pixels, or reduced smoothly."""
    longest = max(image.size)
    if longest > cell:
        image = image.resize([max(1, side * cell // longest) for side in image.size], Image.Resampling.LANCZOS)
    else:
        image = image.resize([side * (cell // longest) for side in image.size], Image.Resampling.NEAREST)
    square = Image.new("RGB", (cell, cell), _PAPER)
    square.paste(image, ((cell - image.width) // 2, (cell - image.height) // 2))
    return square


def mask_overlay(image: Image.Image, masks: np.ndarray, *, first: int = 0) -> Image.Image:
    """The picture in grey, tinted by each mask of [R, h, w] in the colour of its reference, the first being `first`:
    fully where the mask is strongest, not at all where it is weakest."""
    image = image.convert("L").convert("RGB")
    for i, mask in enumerate(masks, first):
        low, high = (0, mask.max()) if mask.min() == mask.max() else (mask.min(), mask.max())
        alpha = _OPACITY * (mask - low) / max(high - low, 1e-6)
        alpha = Image.fromarray(np.uint8(255 * alpha)).resize(image.size, Image.Resampling.NEAREST)
        image.paste(COLOURS[i % len(COLOURS)], mask=alpha)
    return image


def contact_sheet(result: Result, columns: int = 5) -> Image.Image:
    """One picture of a result, with the masks of up to `columns` steps from the first one to the last new one."""
    steps = _telling_steps(result.masks, columns)
    count = len(result.targets)
    references = result.references * (count // len(result.references))
    rows = []
    for b, image in enumerate(result.images):
        for r, (reference, target) in enumerate(zip(references, result.targets, strict=True)):
            label = " ".join(target.split())
            label = label if len(label) <= _LABEL_LETTERS else f"{label[:_LABEL_LETTERS]}…"
            cells = [(f"reference: {label}", _framed(reference, r))]
            for step in steps:
                mask = result.masks[step, b, r : r + 1]
                cells.append((f"mask, step {step + 1}: {mask.min():.1f} to {mask.max():.1f}",
                              in_square(mask_overlay(image, mask, first=r))))
            if r == 0:
                cells.append((f"result image_{b}", in_square(image)))
            rows.append(cells)
    return _sheet(result.prompt, f"{len(result.masks)} steps, seed {result.seed}", rows)


def check_folder(folder: "AnyPath") -> None:
    """Raises ValueError, or OSError for a bucket, if pictures could not be written there; creates nothing."""
    if is_bucket(folder):
        check_reachable(folder)
        return
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ValueError(f"Pictures cannot be written to {folder}: {existing} is not a folder that you may write to.")


def save_pictures(result: Result, folder: "AnyPath") -> "list[AnyPath]":
    """Writes `image_N.png`, `mask_N.png` (the last step's masks) and `contact_sheet.png`, each whole or not at all.

    Returns the files, the contact sheet last.
    """
    pictures = {f"image_{b}.png": image for b, image in enumerate(result.images)}
    for b, image in enumerate(result.images):
        pictures[f"mask_{b}.png"] = in_square(mask_overlay(image, result.masks[-1, b]))
    pictures["contact_sheet.png"] = contact_sheet(result)
    # All pictures exist before the first one is written.
    contents = {folder / name: png(picture) for name, picture in pictures.items()}
    for file, content in contents.items():
        write_file(file, content)
    return list(contents)


def _telling_steps(masks: np.ndarray, count: int) -> list[int]:
    """Steps spread evenly from the first to the last one that changed the mask."""
    changes = np.flatnonzero((masks[1:] != masks[:-1]).any(axis=tuple(range(1, masks.ndim))))
    last = changes[-1] + 1 if len(changes) else 0
    return sorted(set(np.linspace(0, last, count).round().astype(int).tolist()))


def _framed(image: Image.Image, reference: int) -> Image.Image:
    cell, colour = in_square(image), COLOURS[reference % len(COLOURS)]
    ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=colour, width=_FRAME)
    return cell


def _sheet(title: str, subtitle: str, rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Rows of labelled cells below a title."""
    width = _GAP + max(len(row) for row in rows) * (CELL + _GAP)
    title_font, label_font = ImageFont.load_default(size=24), ImageFont.load_default(size=16)
    # textwrap takes its time over a long text, of which only the beginning is shown.
    columns = max(1, (width - 2 * _GAP) // 13)
    shown = title[: columns * (_TITLE_LINES + 1)]
    lines = textwrap.wrap(shown, columns, max_lines=_TITLE_LINES, placeholder=" …") or [""]
    top = _GAP + _TITLE * len(lines) + _LABEL
    sheet = Image.new("RGB", (width, top + len(rows) * (_LABEL + CELL + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((_GAP, _GAP + i * _TITLE), line, _INK, title_font)
    draw.text((_GAP, top - _LABEL), subtitle, _INK, label_font)
    for i, row in enumerate(rows):
        y = top + i * (_LABEL + CELL + _GAP)
        for j, (label, cell) in enumerate(row):
            x = _GAP + j * (CELL + _GAP)
            draw.text((x, y), label, _INK, label_font)
            sheet.paste(cell, (x, y + _LABEL))
    return sheet
