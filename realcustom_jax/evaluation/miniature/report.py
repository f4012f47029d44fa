"""The scores as tables and the pictures behind them as contact sheets."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from realcustom_jax.contact_sheet import mask_overlay
from realcustom_jax.evaluation.miniature.cases import Case
from realcustom_jax.evaluation.miniature.measures import quality
from realcustom_jax.evaluation.miniature.scores import METRICS, Generated
from realcustom_jax.evaluation.reports.sheet import SheetRow, draw_sheet, numbered

METHOD_TITLES = {"text_only": "text only", "described": "described", "no_mask": "no mask",
                 "sequential": "sequential", "fused": "fused"}
SHOWN = "fused"
"""The method whose masks the sheets show and whose worst cases are looked for."""
_CELL = 128
_SHEET_ROWS, _FAILURES = 12, 8


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The N cases of a task, what each method made of them, and each method's scores [N]."""

    cases: Sequence[Case]
    outputs: Mapping[str, Generated]
    scores: Mapping[str, Mapping[str, np.ndarray]]


def markdown_table(task: str, entry: Mapping[str, Any]) -> str:
    """Each metric of each method of a task and of its paired differences, a number a cell: the value and, in a column
    of its own, how far its 95 % interval reaches to the farther side."""
    metrics = METRICS[task]
    titles = [name.replace("_", " ") for name in metrics]
    lines = [f"| {task} | {' | '.join(f'{name} | ±' for name in titles)} |",
             "|---|" + "--:|" * 2 * len(metrics)]
    rows = {METHOD_TITLES[method]: scores for method, scores in entry["methods"].items()}
    rows |= {f"painted, {name.replace('_', ' ')}": scores for name, scores in entry["bounds"].items()}
    rows |= {name.replace("_", " "): scores for name, scores in entry["differences"].items()}
    for title, scores in rows.items():
        sign = "+" if title.startswith("fused minus") else ""
        lines.append(f"| {title} | {' | '.join(number_cells(scores.get(name), sign) for name in metrics)} |")
    return "\n".join(lines)


def number_cells(score: Mapping[str, Any] | None, sign: str = "") -> str:
    """Two cells of a table: a score's value and the farther side of its interval. `sign` "+" shows a value's sign."""
    if score is None:
        return "– | –"
    reach = max(abs(end - score["value"]) for end in score["ci95"])
    return f"{score['value']:{sign}.3f} | {reach:.2f}"


def task_sheet(result: TaskResult) -> Image.Image:
    """One row for the first case of each of the first subjects."""
    cases = result.cases
    first = [i for i, case in enumerate(cases) if i == 0 or case.subject != cases[i - 1].subject]
    return _sheet([_Row.of(result, i) for i in first[:_SHEET_ROWS]])


def worst_cases(results: Sequence[TaskResult]) -> Image.Image:
    """The cases of all tasks with which `SHOWN` does worst, the worst first (see `metrics.quality`)."""
    scored = [(value, number, i) for number, result in enumerate(results)
              for i, value in enumerate(quality(result.scores[SHOWN], METRICS[result.cases[0].task]))]
    return _sheet([_Row.of(results[number], i) for _, number, i in sorted(scored)[:_FAILURES]])


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a sheet says and shows of one case: the references, a picture of each method, an overlay of each mask."""

    label: Sequence[str]
    references: Sequence[Image.Image]
    pictures: Mapping[str, Image.Image]
    masks: Sequence[Image.Image]

    @classmethod
    def of(cls, result: TaskResult, index: int) -> "_Row":
        case, scores = result.cases[index], result.scores[SHOWN]
        label = [case.task, *textwrap.wrap(str(case.prompt), 24), ""]
        label += [f"{name.replace('_', ' ')} {scores[name][index]:.2f}" for name in METRICS[case.task]]
        pictures = {method: Image.fromarray(made.images[index]) for method, made in result.outputs.items()}
        masks = result.outputs[SHOWN].masks[index]
        overlays = [mask_overlay(pictures[SHOWN], mask[None], first=i) for i, mask in enumerate(masks)]
        return cls(label, [Image.fromarray(reference) for reference in case.references], pictures, overlays)


def _sheet(rows: Sequence[_Row]) -> Image.Image:
    """The rows below the titles of their columns; where a row has fewer references or masks, its cell stays empty."""
    references, masks = (max(len(getattr(row, name)) for row in rows) for name in ("references", "masks"))
    titles = [*numbered("reference", references), *(METHOD_TITLES[method] for method in rows[0].pictures),
              *numbered("mask", masks)]
    return draw_sheet(titles, [
        SheetRow(row.label, [*_padded(row.references, references), *row.pictures.values(), *_padded(row.masks, masks)])
        for row in rows], _CELL)


def _padded(pictures: Sequence[Image.Image], count: int) -> list[Image.Image | None]:
    return [*pictures, *[None] * (count - len(pictures))]
