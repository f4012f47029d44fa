"""docs/evidence.md from the study's rows: a table a group with intervals, and plots."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realcustom_jax.evaluation.intervals import mean_with_interval
from realcustom_jax.evaluation.miniature.report import number_cells
from realcustom_jax.evaluation.miniature.scores import METRICS
from realcustom_jax.files import write_file

Row = dict[str, Any]

TITLES = {
    "baseline": "What the others are compared with",
    "scope": "How much of the picture a mask keeps",
    "mask": "How maps become masks",
    "freeze": "When the mask is frozen",
    "guidance": "Guidance",
    "strength": "Strength of the visual term",
    "sharing": "How two masks share a picture",
    "shared": "What each word is given of one reference",
    "training": "Adapters that were trained in other ways",
    "further": "The bundled adapter, trained further in other ways",
    "anew": "New projectors under the bundled adapter's keys and values",
}


_SWEEPS = {
    "soft masks, scope": r"soft ([\d.]+)",
    "binary masks, scope": r"binary ([\d.]+)",
    "masks of the strongest, at least": r"at least ([\d.]+) of the strongest",
    "guidance scale": r"scale ([\d.]+)",
    "strength of the visual term": r"visual term x ([\d.]+)",
}
"""The lines of the plane, by the names of their rows, in which the value is found that is swept."""


def write_report(rows: Sequence[Row], file: Path) -> None:
    """Replaces what stands between the page's two markers by the tables, and writes the plots beside the page.

    Raises ValueError if the page lacks its markers: what stands around them is written by hand.
    """
    start, end = "<!-- tables -->", "<!-- end of tables -->"
    page = file.read_text()
    if start not in page or end not in page:
        raise ValueError(f"{file} lacks the markers {start} and {end}, between which the tables go.")
    tables = "\n\n".join(_section(group, [row for row in rows if row["group"] == group]) for group in TITLES
                         if any(row["group"] == group for row in rows))
    before, after = page[: page.index(start) + len(start)], page[page.index(end) :]
    write_file(file, f"{before}\n\n{tables}\n\n{after}".encode())
    _plot_plane([row for row in rows if row["task"] == "bystander"], file.with_name("evidence_plane.png"))
    _plot_scope([row for row in rows if row["group"] == "scope"], file.with_name("evidence_scope.png"))


def _section(group: str, rows: Sequence[Row]) -> str:
    parts = [f"### {TITLES[group]}"]
    for task in METRICS:
        of_task = [row for row in rows if row["task"] == task]
        if of_task:
            metrics = METRICS[task]
            titles = " | ".join(f"{name.replace('_', ' ')} | ±" for name in metrics)
            lines = [f"| {task} | {titles} |", "|---|" + "--:|" * 2 * len(metrics)]
            lines += [f"| {row['name']} | {' | '.join(number_cells(_mean(row, name)) for name in metrics)} |"
                      for row in of_task]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _mean(row: Row, metric: str) -> dict[str, Any]:
    return mean_with_interval(np.array(row["scores"][metric]), np.array(row["subjects"]))


def differences(rows: Sequence[Row], base: str) -> str:
    """A Markdown table of how far the other rows of each group are from the one of the name `base`, score by score:
    the mean over subjects of what is paired, with its 95 % interval.

    Raises ValueError if no group has that row.
    """
    bases = {(row["group"], row["task"]): row for row in rows if row["name"] == base}
    if not bases:
        raise ValueError(f"No row is called {base!r}; there are {', '.join(sorted({row['name'] for row in rows}))}.")
    lines = [f"| difference from {base} | task | score | | 95 % interval | leaves 0 out |", "|---|---|---|--:|---|---|"]
    for row in rows:
        compared = bases.get((row["group"], row["task"]), row)
        for metric in METRICS[row["task"]] if compared is not row else ():
            entry = mean_with_interval(
                np.array(row["scores"][metric]) - np.array(compared["scores"][metric]), np.array(row["subjects"]))
            low, high = entry["ci95"]
            lines.append(f"| {row['name']} | {row['task']} | {metric.replace('_', ' ')} | {entry['value']:+.3f} | "
                         f"[{low:.3f}, {high:.3f}] | {'yes' if low > 0 or high < 0 else ''} |")
    return "\n".join(lines)


def _plot_plane(rows: Sequence[Row], file: Path) -> None:
    """What the text keeps of the bystander against similarity: a line for each choice that is swept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def point(row):
        return tuple(_mean(row, metric)["value"] for metric in ("bystander_fidelity", "subject_similarity"))

    figure, panel = pyplot.subplots(figsize=(8, 5.4))
    named = {point(row): row for row in rows if row["group"] == "baseline" and row["method"] != "sequential"}
    for color, (title, pattern) in enumerate(_SWEEPS.items()):
        swept = sorted((float(found[1]), point(row)) for row in rows if (found := re.fullmatch(pattern, row["name"])))
        panel.plot(*np.array([place for _, place in swept]).reshape(-1, 2).T, marker="o", markersize=4, linewidth=1,
                   color=f"C{color}", label=title)
        for value, place in swept:
            if place not in named:
                panel.annotate(f"{value:g}", place, (4, 4), textcoords="offset points", fontsize=8, color=f"C{color}")
    for place, row in named.items():
        sides = {axis: reach(_mean(row, metric)) for axis, metric in (
            ("xerr", "bystander_fidelity"), ("yerr", "subject_similarity"))}
        panel.errorbar(*place, **sides, fmt="s", color="black", capsize=2, elinewidth=0.8, alpha=0.5, zorder=0)
        panel.annotate(row["name"], place, (8, 6), textcoords="offset points", fontsize=9)
    panel.set_xlabel("bystander fidelity")
    panel.set_ylabel("subject similarity")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def reach(entry: dict[str, Any]) -> list[list[float]]:
    """An interval as the length of its two sides, as error bars have it."""
    low, high = entry["ci95"]
    return [[entry["value"] - low], [high - entry["value"]]]


def _plot_scope(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.4))
    shown = (("one", "subject_similarity"), ("bystander", "subject_similarity"), ("bystander", "bystander_fidelity"))
    for panel, (task, metric) in zip(panels, shown, strict=True):
        for kind, shift in (("soft", -0.006), ("binary", 0.006)):
            points = sorted((float(row["name"].split()[1]), _mean(row, metric)) for row in rows
                            if row["task"] == task and row["name"].startswith(kind))
            if points:
                xs, entries = zip(*points, strict=True)
                ys = np.array([entry["value"] for entry in entries])
                low, high = np.array([entry["ci95"] for entry in entries]).T
                # A little apart, so that neither's bars hide the other's.
                panel.errorbar(np.array(xs) + shift, ys, yerr=[ys - low, high - ys], marker="o", capsize=2, label=kind)
        panel.set_title(f"{task}: {metric.replace('_', ' ')}")
        panel.set_xlabel("scope γ")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
