"""Rows of pictures beside what is said of them, on one sheet."""

import dataclasses
import textwrap
from collections.abc import Sequence
from itertools import chain, zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from realcustom_jax.conditioning.images import load_rgb
from realcustom_jax.contact_sheet import in_square
from realcustom_jax.evaluation.reports.summary import Scored
from realcustom_jax.evaluation.reports.tables import number, title
from realcustom_jax.evaluation.rows import PictureRow

_GAP, _LABEL, _TITLE = 6, 176, 20
_SMALLEST, _LARGEST = 128, 192  # cells: the label needs the one, twelve rows on a sheet the other
_BEST, _REFERENCES, _LETTERS, _LINES = 6, 4, 27, 5


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """The lines of its label, and a picture for each column, or None where it has none."""

    label: Sequence[str]
    cells: Sequence[Image.Image | None]


def draw_sheet(titles: Sequence[str], rows: Sequence[SheetRow], cell: int) -> Image.Image:
    """The rows below the titles of their columns, each picture in a square of `cell` pixels."""
    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    top, step = _GAP + _TITLE, cell + _GAP
    sheet = Image.new("RGB", (_LABEL + step * len(titles), top + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(titles):
        draw.text((_LABEL + step * column, _GAP), text, fill="black", font=font)
    for line, row in enumerate(rows):
        y = top + step * line
        draw.multiline_text((_GAP, y), "\n".join(row.label), fill="black", font=small, spacing=2)
        for column, picture in enumerate(row.cells):
            if picture is not None:
                sheet.paste(in_square(picture, cell), (_LABEL + step * column, y))
    return sheet


def numbered(text: str, count: int) -> list[str]:
    """The titles of `count` columns of one kind."""
    return [text] if count == 1 else [f"{text} {i + 1}" for i in range(count)]


def best_and_worst(scored: Scored, goodness: np.ndarray, metrics: Sequence[str]) -> Image.Image:
    """The pictures of the highest `goodness` [N] from the best on, then those of the lowest to the worst, each with up
    to four of the references that it is compared with; all pictures where they are few."""
    order = np.argsort(-goodness, kind="stable").tolist()
    chosen = order if len(order) <= 2 * _BEST else order[:_BEST] + order[-_BEST:]
    places = {index: place for place, index in enumerate(order, 1)}
    references = [_references(scored.rows[i]) for i in chosen]
    columns = max(map(len, references))
    rows = []
    for i, shown in zip(chosen, references, strict=True):
        row = scored.rows[i]
        label = [f"place {places[i]} of {len(order)}", *_lines(row.name, 2), "", *_lines(row.prompt, _LINES), "",
                 *(f"{title(name)} {number(scored.scores[i][name])}" for name in metrics if name in scored.scores[i])]
        cells = [load_rgb(path) for path in shown]
        rows.append(SheetRow(label, [*cells, *[None] * (columns - len(cells)), load_rgb(row.picture)]))
    largest = max(max(row.cells[-1].size) for row in rows)
    return draw_sheet([*numbered("reference", columns), "picture"], rows, min(max(largest, _SMALLEST), _LARGEST))


def _references(row: PictureRow) -> list:
    """The first of each subject, then the second of each …; one that shows several subjects once."""
    in_turn = chain.from_iterable(zip_longest(*(subject.references for subject in row.subjects)))
    return [path for path in dict.fromkeys(in_turn) if path is not None][:_REFERENCES]


def _lines(text: str, most: int) -> list[str]:
    return textwrap.wrap(" ".join(text[: most * _LETTERS * 2].split()), _LETTERS, max_lines=most, placeholder=" …")
