"""From the scores of single pictures to what is reported: of each picture, of each subject, and the means of all."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np
from tqdm import tqdm

from realcustom_jax import __version__
from realcustom_jax.errors import quoted
from realcustom_jax.evaluation.intervals import mean_with_interval, rounded
from realcustom_jax.evaluation.rows import PictureRow

if TYPE_CHECKING:
    from realcustom_jax.evaluation.protocols import Protocol
    from realcustom_jax.paths import AnyPath

_PLACES = 8
"""Of reported numbers: float32 has no more, and a check at 1e-4 sees no rounding."""
LOWER_IS_BETTER = frozenset({"swapped"})


class Scorer(Interface):
    """What scores pictures: a published protocol's networks, or a miniature's judge.

    Attributes:
        metrics: that are scored, in the order of reports. skipped: why others are not, a sentence each.
        networks: what scores, JSON values without the paths of this machine.
    """

    metrics: tuple[str, ...]
    skipped: Mapping[str, str]
    networks: Mapping[str, Any]

    def scores(self, row: PictureRow) -> Mapping[str, float]:
        """The picture's scores by metric, without those that a row of its kind has not. Raises ValueError or OSError
        that names the row for a picture that cannot be used."""
        ...


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rows and the scores of each, in their order."""

    rows: Sequence[PictureRow]
    scores: Sequence[Mapping[str, float]]


def score_rows(scorer: Scorer, rows: Sequence[PictureRow]) -> Scored:
    """The scores of all rows, with a progress bar.

    Raises:
        ValueError, OSError: a picture cannot be used, or its score is no number; names the row.
    """
    scores = []
    for row in tqdm(rows, desc="Scoring (the first picture compiles)", unit="picture", smoothing=0.1):
        found = {name: float(value) for name, value in scorer.scores(row).items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise ValueError(f"{row.where}: {name} of {quoted(str(row.picture))} is {value}; the weights of its "
                                 "network are damaged, or are not those of its architecture.")
        scores.append(found)
    return Scored(rows, scores)


def summarize(scorer: Scorer, protocol: "Protocol", scored: Scored, shown: Callable[[PictureRow], str]
              ) -> dict[str, Any]:
    """The report: metrics with their mean over pictures and 95 % interval over subjects, then subjects and rows.

    Args:
        protocol: by which it was scored.
        shown: what the report calls a row's picture; no path of this machine, so that two runs say the same.
    """
    return {
        "protocol": protocol.name, "source": protocol.source, "notes": list(protocol.notes),
        "metrics": _means(scorer, scored), "parts": _parts(scorer, scored),
        "skipped": dict(scorer.skipped), "networks": dict(scorer.networks),
        "subjects": _subjects(scorer, scored),
        "rows": [{"name": row.name, "picture": shown(row), "subject": row.group,
                  **{name: rounded(scores[name], _PLACES) for name in scorer.metrics if name in scores}}
                 for row, scores in zip(scored.rows, scored.scores, strict=True)],
        "version": __version__}


def goodness(scorer: Scorer, scored: Scored) -> np.ndarray:
    """How good each picture is beside the others, to sort them: float [N], the mean of its metrics' standard scores,
    where those of `LOWER_IS_BETTER` count against it."""
    total, count = np.zeros(len(scored.rows)), np.zeros(len(scored.rows))
    for name in scorer.metrics:
        has, values = _values(scored, name)
        if not len(values):
            continue
        standard = (values - values.mean()) / (values.std() or 1.0)
        total[has] += -standard if name in LOWER_IS_BETTER else standard
        count[has] += 1
    return total / np.maximum(count, 1)


def _present(scorer: Scorer, scored: Scored) -> list[str]:
    return [name for name in scorer.metrics if any(name in scores for scores in scored.scores)]


def _values(scored: Scored, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a metric, int [n], and their values, float [n]."""
    has = [i for i, scores in enumerate(scored.scores) if name in scores]
    return np.array(has, int), np.array([scored.scores[i][name] for i in has], float)


def _means(scorer: Scorer, scored: Scored) -> dict[str, Any]:
    """Of each metric its mean and interval, and of how many rows and subjects they are."""
    means = {}
    for name in _present(scorer, scored):
        has, values = _values(scored, name)
        groups = np.array([scored.rows[i].group for i in has])
        means[name] = {**mean_with_interval(values, groups, digits=_PLACES), "rows": len(values),
                       "subjects": len(set(groups.tolist()))}
    return means


def _parts(scorer: Scorer, scored: Scored) -> dict[str, Any]:
    """The means of each part; none where the benchmark has no parts."""
    return {name: _means(scorer, part) for name, part in _divided(scored, lambda row: row.part) if name}


def _subjects(scorer: Scorer, scored: Scored) -> dict[str, Any]:
    """Of each group its number of rows and the mean of each metric."""
    return {name: {"rows": len(part.rows), **{metric: rounded(_values(part, metric)[1].mean(), _PLACES)
                                              for metric in _present(scorer, part)}}
            for name, part in _divided(scored, lambda row: row.group)}


def _divided(scored: Scored, key: Callable[[PictureRow], str]) -> list[tuple[str, Scored]]:
    """The rows that share a key, in the order in which the keys first come."""
    members = {}
    for row, scores in zip(scored.rows, scored.scores, strict=True):
        members.setdefault(key(row), []).append((row, scores))
    return [(name, Scored(*map(list, zip(*pairs, strict=True)))) for name, pairs in members.items()]


def shown_path(path: "AnyPath", folder: "AnyPath") -> str:
    """A path as a report says it: from `folder` on where it lies in it, so that folders may be moved."""
    text, start = os.fspath(path), f"{os.fspath(folder).rstrip('/')}/"
    return text.removeprefix(start).replace(os.sep, "/")
