"""The scores as a table and the pictures behind them as contact sheets."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from realcustom_jax.evaluation.cases import Case
from realcustom_jax.evaluation.scores import METRICS, Generated
from realcustom_jax.models.resize import resize_bilinear

METHOD_TITLES = {"text_only": "text only", "described": "described", "no_mask": "no mask",
                 "sequential": "sequential", "fused": "fused"}
_CELL, _GAP, _LABEL = 128, 6, 150


def markdown_table(report: Mapping[str, Any]) -> str:
    """Value, interval and the two groups of each metric and method, as a Markdown table."""
    lines = [
        f"| method | {' | '.join(name.replace('_', ' ') for name in METRICS)} |",
        "|---|" + "---|" * len(METRICS),
    ]
    rows = {METHOD_TITLES[method]: entry for method, entry in report["methods"].items()}
    rows |= {f"painted, {name.replace('_', ' ')}": entry for name, entry in report["bounds"].items()}
    for title, entry in rows.items():
        lines.append(f"| {title} | {' | '.join(_cell(entry.get(name)) for name in METRICS)} |")
    lines += ["", "value [95 % interval over subjects], unseen identities / unseen nouns"]
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    low, high = score["ci95"]
    groups = (score["held_out_identities"], score["held_out_nouns"])
    shown = " / ".join("–" if x is None else f"{x:.2f}" for x in groups)
    return f"{score['value']:.3f} [{low:.2f}, {high:.2f}], {shown}"


def contact_sheet(cases: Sequence[Case], outputs: Mapping[str, Generated], rows: Sequence[int],
                  similarity: np.ndarray) -> Image.Image:
    """One row for each case in `rows`: prompt, reference, each method's output, and where the last method's mask lay.

    similarity: [N], of the last method, is written below the prompt.
    """
    titles = ["reference", *(METHOD_TITLES[method] for method in outputs), "mask"]
    font = ImageFont.load_default(size=13)
    width = _LABEL + (_CELL + _GAP) * len(titles)
    sheet = Image.new("RGB", (width, _GAP + 20 + (_CELL + _GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_LABEL + (_CELL + _GAP) * column, _GAP), title, fill="black", font=font)
    last = list(outputs.values())[-1]
    for line, index in enumerate(rows):
        case, top = cases[index], _GAP + 20 + (_CELL + _GAP) * line
        _, *attributes = dataclasses.astuple(case.identity)
        label = [*textwrap.wrap(case.prompt, 20), "", *textwrap.wrap(", ".join(attributes), 22), "",
                 f"similarity {similarity[index]:.1f}"]
        draw.multiline_text((_GAP, top), "\n".join(label), fill="black", font=font)
        pictures = [case.reference, *(made.images[index] for made in outputs.values()),
                    mask_overlay(last.images[index], last.masks[index])]
        for column, picture in enumerate(pictures):
            cell = Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.BICUBIC)
            sheet.paste(cell, (_LABEL + (_CELL + _GAP) * column, top))
    return sheet


def mask_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture uint8 [H,W,3], darkened where the mask [h,w] in [0, 1] is low."""
    strength = np.asarray(resize_bilinear(np.asarray(mask, np.float32)[None, ..., None], image.shape[:2]))[0]
    return np.round(image * (0.25 + 0.75 * np.clip(strength, 0, 1))).astype(np.uint8)
