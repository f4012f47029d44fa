"""From generated pictures to the report's numbers, by way of the judge.

Of each case, over the things that its target phrases stand for (all but a bystander):
- *subject_similarity*: the share of the five identity attributes that the judge reads of the thing and that are the
  reference's; 0 for a thing that it does not find. The reference's are known from its painting, not judged.
- *swapped* (two references): whether the judge's reading of a thing agrees more with the other reference than with its
  own.
- *mask_auc*: ROC area of a phrase's mask, enlarged to the picture, against the places where the judge finds its noun;
  *map_auc*: of the map before its weaker part is cut off. `generate` says which mask.
And over all that the prompt says:
- *text_controllability*: the mean of hits: each noun found, and the judge's first choice of scene.
- *bystander_fidelity*: the share of a described thing's attributes that the judge reads of it; 0 if it is not found.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.data.sprites.world import NOUNS, SCENES
from realcustom_jax.evaluation.intervals import mean_with_interval
from realcustom_jax.evaluation.miniature.cases import Case, Exam
from realcustom_jax.evaluation.miniature.judge import ATTRIBUTES, TrainedJudge
from realcustom_jax.evaluation.miniature.measures import overlap, roc_area, summarize
from realcustom_jax.models.resize import average_pixels, resize_bilinear

METRICS: dict[str, tuple[str, ...]] = {
    "one": ("subject_similarity", "text_controllability", "mask_auc"),
    "bystander": ("subject_similarity", "text_controllability", "bystander_fidelity", "mask_auc"),
    "many": ("subject_similarity", "text_controllability", "swapped", "mask_auc"),
    "one2many": ("subject_similarity", "text_controllability", "swapped", "mask_auc"),
}
"""What is reported of each task."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a method made of N cases with R phrases: images uint8 [N, P, P, 3]; masks and maps float [N, R, h, w], see
    `generate`; the latents [N, H, W, C] that were decoded."""

    images: np.ndarray
    masks: np.ndarray
    maps: np.ndarray
    latents: np.ndarray


def score_pictures(judge: TrainedJudge, cases: Sequence[Case], images: np.ndarray) -> dict[str, np.ndarray]:
    """Each score of each picture [N]: those of `METRICS` but the masks', and the single hits that they are means of."""
    nouns = _nouns(cases)
    opinions = judge(images, nouns)
    true = np.stack([[thing.attributes for thing in case.things] for case in cases])
    hits = (opinions.attributes == true) & opinions.found[..., None]
    agreement = hits.mean(2)
    targets = np.array(cases[0].targets)
    scene = opinions.scene == np.array([SCENES.index(case.scene) for case in cases])
    scores = {
        "subject_similarity": agreement[:, targets].mean(1),
        "text_controllability": np.concatenate([opinions.found, scene[:, None]], 1).mean(1),
        "nouns": opinions.found.mean(1), "scene": scene.astype(float)}
    scores |= {name: hits[:, targets, i].mean(1) for i, name in enumerate(ATTRIBUTES)}
    if cases[0].task == "bystander":
        scores["bystander_fidelity"] = agreement[:, 1]
    elif len(targets) == 2:
        others = (opinions.attributes == true[:, ::-1]).mean(2)
        scores["swapped"] = ((others > agreement) & opinions.found).mean(1)
    return scores


def score_masks(judge: TrainedJudge, cases: Sequence[Case], generated: Generated) -> dict[str, np.ndarray]:
    """ROC areas [N] of masks and maps against the judge's finding of the nouns in the outputs."""
    places = judge(generated.images, _nouns(cases)).places[:, np.array(cases[0].targets)] > 0.5
    size = places.shape[2:]

    def areas(values):
        enlarged = np.asarray(resize_bilinear(np.moveaxis(values, 1, -1), size))
        enlarged = np.moveaxis(enlarged, -1, 1)
        each = [[roc_area(*pair) for pair in zip(*of_case, strict=True)]
                for of_case in zip(enlarged, places, strict=True)]
        return np.array(each).mean(1)

    return {"mask_auc": areas(generated.masks), "map_auc": areas(generated.maps)}


def _nouns(cases: Sequence[Case]) -> np.ndarray:
    return np.array([[NOUNS.index(thing.noun) for thing in case.things] for case in cases], np.int32)


def report_method(scores: Mapping[str, np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """One method's entry: its metrics with intervals and groups, and the means of the rest as `details`."""
    subjects = np.array([case.subject for case in cases])
    held_out = np.array([case.held_out_noun for case in cases])
    metrics = METRICS[cases[0].task]
    entry = {name: summarize(scores[name], subjects, held_out) for name in metrics if name in scores}
    return entry | {"details": {k: round(float(v.mean()), 4) for k, v in scores.items() if k not in metrics}}


def report_leaks(leaks: Mapping[str, np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """Each of `leaks.LEAKS` with its interval over subjects."""
    subjects = np.array([case.subject for case in cases])
    return {name: mean_with_interval(values, subjects) for name, values in leaks.items()}


def compare(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], cases: Sequence[Case]) -> dict[str, Any]:
    """How much higher method `a` scores than `b` on the same cases: the paired difference and its interval."""
    subjects = np.array([case.subject for case in cases])
    return {name: mean_with_interval(a[name] - b[name], subjects) for name in METRICS[cases[0].task]}


def distance(a: Generated, b: Generated, cases: Sequence[Case]) -> dict[str, Any]:
    """How far two methods' results are apart on the same cases.

    *mask_overlap*: of the places that either mask keeps, the share that both do; `generate` says which mask, of methods
    that use none. *latent_difference*: root mean square of the latents' difference, in units of `b`'s standard
    deviation; two unrelated pictures differ by √2.
    """
    subjects = np.array([case.subject for case in cases])
    kept = a.masks.max(1) > 0, b.masks.max(1) > 0
    axes = tuple(range(1, a.latents.ndim))
    values = {
        "mask_overlap": overlap(*kept),
        "latent_difference": np.sqrt(((a.latents - b.latents) ** 2).mean(axes)) / b.latents.std(axes)}
    return {name: mean_with_interval(value, subjects) for name, value in values.items()}


def examine(judge: TrainedJudge, exam: Exam) -> dict[str, float]:
    """The judge's own accuracy on painted pictures: nouns found, nouns found that are not there, the scene, each
    attribute of a thing, and the overlap (IoU) of a noun's places with its thing."""
    opinions = judge(exam.images, exam.nouns)
    there = exam.nouns >= 0
    absent = judge(exam.images, (exam.nouns + 1) % len(NOUNS))
    accuracy = {
        "noun": opinions.found[there].mean(),
        "false_noun": absent.found[~_either(exam.nouns, (exam.nouns + 1) % len(NOUNS))].mean(),
        "scene": (opinions.scene == exam.scenes).mean()}
    accuracy |= {name: (opinions.attributes[..., i] == exam.attributes[..., i])[there].mean()
                 for i, name in enumerate(ATTRIBUTES)}
    true = average_pixels(exam.coverage, opinions.places.shape[2:]) > 0.5
    accuracy["segmentation_iou"] = overlap(opinions.places[there] > 0.5, true[there]).mean()
    return {name: round(float(value), 4) for name, value in accuracy.items()}


def _either(nouns: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Whether each noun that is asked for, int [N, 2], is one of the picture's."""
    return (asked[:, :, None] == nouns[:, None]).any(2)
