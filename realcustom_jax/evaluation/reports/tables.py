"""A report as a table for people and as one for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from realcustom_jax.evaluation.reports.published import Published

_NETWORKS = "clip", "dino", "dinov2"
_DASH = "–"
_TOLD = "solver", "steps", "guidance_scale"
"""What a report says of how a model was used, where a call says nothing else."""


def title(metric: str) -> str:
    """What a table calls a metric: CLIP-T for clip_t."""
    if metric.partition("_")[0] in _NETWORKS:
        return metric.upper().replace("DINOV2", "DINOv2").replace("_", "-")
    return metric.replace("image_reward", "ImageReward").replace("_", " ")


def number(value: float) -> str:
    """A score to three places, or to two where scores run to 100."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def scores_csv(report: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The report's rows, a line each under a line of names; a cell is empty where a row has not that metric."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "picture", "subject", *metrics], restval="",
                            extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["rows"])
    return text.getvalue()


def markdown_table(report: Mapping[str, Any], published: Sequence[Published] = ()) -> str:
    """Each metric of the report, the farther side of its 95 % interval beside it, above the published figures."""
    metrics = list(report["metrics"])
    metrics += sorted({name for one in published for name in one.figures} - set(metrics))
    lines = [f"| | {' | '.join(f'{title(name)} | ±' for name in metrics)} |", "|---|" + "--:|" * 2 * len(metrics)]
    for name, means in {"**this run**": report["metrics"], **report["parts"]}.items():
        lines.append(f"| {name} | {' | '.join(_cells(means.get(metric)) for metric in metrics)} |")
    for one in published:
        cells = [number(one.figures[name]) if name in one.figures else _DASH for name in metrics]
        lines.append(f"| {one.system} | {' | | '.join(cells)} | |")
    return "\n".join(lines)


def _cells(entry: Mapping[str, Any] | None) -> str:
    """Two cells; of one subject alone there is no interval over subjects."""
    if entry is None:
        return f"{_DASH} | "
    reach = max(abs(end - entry["value"]) for end in entry["ci95"])
    return f"{number(entry['value'])} | {number(reach) if entry['subjects'] > 1 else _DASH}"


def report_page(report: Mapping[str, Any], published: Sequence[Published] = ()) -> str:
    """The page of a benchmark's report, in Markdown: what was made, the table, whose figures stand in it, and what was
    not scored."""
    # A preset without a solver takes the one that the model's own files say.
    used = {name: value for name in _TOLD if (value := report["model"]["preset"][name]) is not None}
    used |= report["options"]
    used |= {"dtype": report["dtype"]} if report["dtype"] else {}
    lines = [f"# {report['benchmark']}, scored by {report['protocol']}", "",
             f"- Model: {report['name']}; {', '.join(f'{name} {value}' for name, value in used.items())}.",
             f"- Pictures: {len(report['rows'])} of {len(report['subjects'])} subjects or groups of them, "
             f"{', '.join(report['sizes'])} pixels, {_seeds(report['rows'])}.",
             f"- Protocol: {report['source']}.", *(f"- {note}" for note in report["notes"]), "",
             markdown_table(report, published), "",
             "± is the farther side of the 95 % interval of the mean, by resampling subjects."]
    if published:
        systems = {}
        for one in published:
            systems.setdefault(one.source, []).append(one.system)
        lines += ["", "Published figures of this benchmark by this protocol:", "",
                  *(f"- {', '.join(names)}: {source}." for source, names in systems.items())]
    else:
        lines += ["", "No published figures of this benchmark by this protocol are known here; those of another "
                      "protocol cannot be compared."]
    if others := [name for name, about in report["networks"].items() if about.get("as_published") is False]:
        lines += ["", f"Published figures cannot be compared, because these are not the protocol's own networks: "
                      f"{', '.join(others)}."]
    if report["skipped"]:
        lines += ["", "Not scored:", "", *(f"- {why}" for why in report["skipped"].values())]
    return "\n".join(lines) + "\n"


def _seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    if len(seeds) > 10:
        return f"{len(seeds)} different seeds"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
