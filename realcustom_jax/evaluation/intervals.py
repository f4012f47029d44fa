"""Means of many cases with their 95 % intervals over subjects, in pure numpy."""

from typing import Any

import numpy as np


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


def mean_with_interval(values: np.ndarray, subjects: np.ndarray, *, digits: int = 4) -> dict[str, Any]:
    """value, the mean of values [N], and ci95 [low, high], its interval over subjects [N], to so many places."""
    return {"value": rounded(np.mean(values), digits),
            "ci95": [rounded(x, digits) for x in bootstrap_interval(values, subjects)]}


def ratio_with_interval(values: np.ndarray, others: np.ndarray, subjects: np.ndarray) -> dict[str, Any]:
    """What share the mean of values [N] is of that of others [N], on the same cases, and its ci95 [low, high] over
    subjects [N]; the others are not all 0."""
    interval = _interval_of_ratio(values, others, subjects)
    return {"value": rounded(np.mean(values) / np.mean(others)), "ci95": [rounded(x) for x in interval]}


def rounded(x: float, digits: int = 4) -> float:
    """A report's number, to so many places."""
    return round(float(x), digits)
