"""Measures of single pictures of the miniature and what is reported of many: pure numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.evaluation.intervals import mean_with_interval, rounded


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
        **{name: rounded(group.mean()) if group.size else None for name, group in groups.items()},
    }


def quality(scores: Mapping[str, np.ndarray], metrics: Sequence[str]) -> np.ndarray:
    """How good pictures are on the whole, to sort them: the mean [N] of what is reported of their contents, where
    `swapped` counts against them; masks do not count."""
    return np.mean([1 - scores[name] if name == "swapped" else scores[name]
                    for name in metrics if name != "mask_auc"], axis=0)
