"""docs/evidence.md from the study's rows: a table a group with intervals, and plots."""

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


_IN_THE_PLANE = ("baseline", "scope", "guidance", "strength")


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
    _plot_plane([row for row in rows if row["group"] in _IN_THE_PLANE], file.with_name("evidence_plane.png"))
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = {task: metrics for task, metrics in METRICS.items()
             if sum(row["task"] == task for row in rows) > 1}  # one point is no plane
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(5 * len(tasks) + 3.4, 5.2), sharey=True, squeeze=False)
    panels = panels[0]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    names = list(dict.fromkeys((row["group"], row["name"]) for row in rows))
    entries = {}
    for panel, (task, metrics) in zip(panels, tasks.items(), strict=True):
        across = "bystander_fidelity" if "bystander_fidelity" in metrics else "text_controllability"
        for row in (row for row in rows if row["task"] == task):
            x, y = _mean(row, across), _mean(row, "subject_similarity")
            bars = {axis: [[entry["value"] - entry["ci95"][0]], [entry["ci95"][1] - entry["value"]]]
                    for axis, entry in (("xerr", x), ("yerr", y))}
            # A colour for each group, a number for each of its rows.
            number = names.index((row["group"], row["name"])) + 1
            panel.errorbar(x["value"], y["value"], **bars, fmt="none", elinewidth=0.6, alpha=0.35,
                           ecolor=f"C{groups.index(row['group'])}")
            entries[number, f"{number}  {row['name']}"] = panel.scatter(
                x["value"], y["value"], s=110, color=f"C{groups.index(row['group'])}", zorder=2)
            panel.annotate(str(number), (x["value"], y["value"]), color="white", fontsize=7, ha="center", va="center")
        panel.set_title(task)
        panel.set_xlabel(across.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("subject similarity")
    order = sorted(entries)
    panels[-1].legend([entries[entry] for entry in order], [label for _, label in order], fontsize=8, markerscale=0.5,
                      loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _plot_scope(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.4))
    shown = (("one", "subject_similarity"), ("bystander", "subject_similarity"), ("bystander", "bystander_fidelity"))
    for panel, (task, metric) in zip(panels, shown, strict=True):
        for kind in ("soft", "binary"):
            points = sorted((float(row["name"].split()[1]), _mean(row, metric)) for row in rows
                            if row["task"] == task and row["name"].startswith(kind))
            if points:
                xs, entries = zip(*points, strict=True)
                ys = np.array([entry["value"] for entry in entries])
                low, high = np.array([entry["ci95"] for entry in entries]).T
                panel.errorbar(xs, ys, yerr=[ys - low, high - ys], marker="o", capsize=2, label=kind)
        panel.set_title(f"{task}: {metric.replace('_', ' ')}")
        panel.set_xlabel("scope γ")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
