"""From generated pictures to the report's numbers, by way of the judge.

- *subject_similarity*: the share of the five identity attributes that the judge reads in the output and that are the
  reference's. The reference's are known from its painting, not judged.
- *text_controllability*: the mean of two hits, that the judge's first choice of noun is the prompt's, and of scene.
- *mask_auc*: ROC area of the guidance mask's values, enlarged to the picture, against the subject that the judge
  segments in the output; *map_auc*: of the map before its weaker part is cut off. `generate` says which mask.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.data.sprites.world import NOUNS, SCENES
from realcustom_jax.evaluation.cases import Case, Exam
from realcustom_jax.evaluation.judge import ATTRIBUTES, TrainedJudge
from realcustom_jax.evaluation.metrics import agreement, mean_with_interval, overlap, roc_area, summarize
from realcustom_jax.models.resize import resize_bilinear

METRICS: tuple[str, ...] = ("subject_similarity", "text_controllability", "mask_auc")


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a method made of N cases: images uint8 [N,64,64,3]; masks and maps float [N,h,w], see `generate`; the
    latents [N,H,W,C] that were decoded."""

    images: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    latents: np.ndarray


def score_pictures(judge: TrainedJudge, cases: Sequence[Case], images: np.ndarray) -> dict[str, np.ndarray]:
    """Each score of each picture [N]: the two of the report, and the single hits that they are the means of."""
    opinions = judge(images)
    true = np.stack([case.identity.attributes for case in cases])
    nouns = np.array([NOUNS.index(case.identity.noun) for case in cases])
    scenes = np.array([SCENES.index(case.scene) for case in cases])
    hits = {"noun": opinions.labels["noun"] == nouns, "scene": opinions.labels["scene"] == scenes}
    hits |= {name: opinions.labels[name] == true[:, i] for i, name in enumerate(ATTRIBUTES)}
    return {
        "subject_similarity": agreement(opinions.attributes, true),
        "text_controllability": (hits["noun"] + hits["scene"].astype(float)) / 2,
        **{name: hit.astype(float) for name, hit in hits.items()},
    }


def score_masks(judge: TrainedJudge, generated: Generated) -> dict[str, np.ndarray]:
    """ROC areas [N] of masks and maps against the judge's segmentation of the outputs."""
    subject = judge(generated.images).subject > 0.5
    size = subject.shape[1:]

    def areas(values):
        enlarged = np.asarray(resize_bilinear(values[..., None], size))[..., 0]
        return np.array([roc_area(*pair) for pair in zip(enlarged, subject, strict=True)])

    return {"mask_auc": areas(generated.masks), "map_auc": areas(generated.maps)}


def report_method(scores: Mapping[str, np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """One method's entry: its metrics with intervals and groups, and the means of the rest as `details`."""
    subjects = np.array([case.subject for case in cases])
    held_out = np.array([case.held_out_noun for case in cases])
    entry = {name: summarize(scores[name], subjects, held_out) for name in METRICS if name in scores}
    return entry | {"details": {k: round(float(v.mean()), 4) for k, v in scores.items() if k not in METRICS}}


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """How much higher method `a` scores than `b` on the same cases: the paired difference and its interval."""
    subjects = np.array([case.subject for case in cases])
    differences = {name: a[name] - b[name] for name in METRICS[:2]}
    return {name: mean_with_interval(difference, subjects) for name, difference in differences.items()}


def distance(a: Generated, b: Generated, cases: Sequence[Case]) -> dict[str, Any]:
    """How far two methods' results are apart on the same cases.

    *mask_overlap*: of the places that either mask keeps, the share that both do; `generate` says which mask, of methods
    that use none. *latent_difference*: root mean
    square of the latents' difference, in units of `b`'s standard deviation; two unrelated pictures differ by √2.
    """
    subjects = np.array([case.subject for case in cases])
    kept = a.masks > 0, b.masks > 0
    axes = tuple(range(1, a.latents.ndim))
    values = {
        "mask_overlap": overlap(*kept),
        "latent_difference": np.sqrt(((a.latents - b.latents) ** 2).mean(axes)) / b.latents.std(axes)}
    return {name: mean_with_interval(value, subjects) for name, value in values.items()}


def examine(judge: TrainedJudge, exam: Exam) -> dict[str, float]:
    """The judge's own accuracy on painted pictures: of each head, and the overlap (IoU) of its segmentation."""
    opinions = judge(exam.images)
    accuracy = {name: float((opinions.labels[name] == truth).mean()) for name, truth in exam.labels.items()}
    accuracy["segmentation_iou"] = float(overlap(opinions.subject > 0.5, exam.subject).mean())
    return {name: round(value, 4) for name, value in accuracy.items()}
