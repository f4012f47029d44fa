"""Scores of single pictures and what to say of many: pure numpy, nothing here knows of networks or files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def roc_area(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of one picture: the probability that a positive place has the higher value.

    Equal values count half (the Mann-Whitney statistic). Where nothing or everything is positive there is nothing to
    find, and the area is chance, 0.5.

    Args:
        values: numbers of any shape.
        positive: bool, of the same shape.
    """
    values, positive = np.ravel(values), np.ravel(positive).astype(bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return 0.5
    _, place, repeats = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[place]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of regions, bool [N,H,W] twice → float [N]; 1 where both are empty."""
    shared, either = (f(a, b).sum((1, 2)) for f in (np.logical_and, np.logical_or))
    return np.where(either == 0, 1.0, shared / np.maximum(either, 1))


def bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [N], resampling whole clusters.

    Cases of one subject share its luck, so that it is subjects (`clusters` [N], any labels) that are drawn anew.
    """
    return _interval_of_ratio(values, np.ones(len(values)), clusters, resamples, level, seed)


def _interval_of_ratio(above: np.ndarray, below: np.ndarray, clusters: np.ndarray, resamples: int = 1000,
                       level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of Σ above / Σ below, both [N], resampling whole clusters of both at once."""
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = [np.bincount(cluster, np.asarray(values, float)) for values in (above, below)]
    draws = np.random.default_rng(seed).integers(len(sums[0]), size=(resamples, len(sums[0])))
    ratios = sums[0][draws].sum(1) / sums[1][draws].sum(1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_with_interval(values: np.ndarray, subjects: np.ndarray) -> dict[str, Any]:
    """value, the mean of values [N], and ci95 [low, high], its interval over subjects [N]."""
    return {"value": _rounded(np.mean(values)), "ci95": [_rounded(x) for x in bootstrap_interval(values, subjects)]}


def ratio_with_interval(values: np.ndarray, others: np.ndarray, subjects: np.ndarray) -> dict[str, Any]:
    """What share the mean of values [N] is of that of others [N], on the same cases, and its ci95 [low, high] over
    subjects [N]; the others are not all 0."""
    interval = _interval_of_ratio(values, others, subjects)
    return {"value": _rounded(np.mean(values) / np.mean(others)), "ci95": [_rounded(x) for x in interval]}


def summarize(values: np.ndarray, subjects: np.ndarray, held_out_noun: np.ndarray) -> dict[str, Any]:
    """One entry of the report, from the values [N] of all cases.

    Args:
        subjects: [N], which subject a case shows.
        held_out_noun: bool [N], whether its noun was kept from the adapter's training; of the others, only the
            identity was.
    Returns:
        value, ci95 [low, high], and the means over the two groups (None for an empty group).
    """
    values = np.asarray(values, float)
    groups = {"held_out_identities": values[~held_out_noun], "held_out_nouns": values[held_out_noun]}
    return {
        **mean_with_interval(values, subjects),
        **{name: _rounded(group.mean()) if group.size else None for name, group in groups.items()},
    }


def quality(scores: Mapping[str, np.ndarray], metrics: Sequence[str]) -> np.ndarray:
    """How good pictures are on the whole, to sort them: the mean [N] of what is reported of their contents, where
    `swapped` counts against them; masks do not count."""
    return np.mean([1 - scores[name] if name == "swapped" else scores[name]
                    for name in metrics if name != "mask_auc"], axis=0)


def _rounded(x: float) -> float:
    return round(float(x), 4)
