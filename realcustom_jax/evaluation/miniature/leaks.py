"""What a generated picture keeps of the reference that is not the subject: its facing, its pose and its background.

A thing that the judge finds is cut out, stretched to a square of one size on grey, and correlated with paintings of its
identity at `POSES` in both facings. The most similar one says its pose and facing; the painter knows the reference's.

- *facing_leak*: whether it faces as the reference does; chance is 0.5, a copy scores 1.
- *pose_leak*: 1 − d / e, where d is how far the two poses are apart, and e how far on average a uniformly drawn pose is
  from the reference's; a copy scores 1, an independent pose 0 on average, another pose on purpose less than 0.
- *background_leak*: whether the judge's scene is that of a reference, which is never the prompt's; a copy scores 1.

A thing that is not found tells nothing, and counts as chance: 0.5 and 0.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from realcustom_jax.data.sprites.world import NOUNS, SCENES, Identity, cut_out
from realcustom_jax.evaluation.miniature.cases import Case
from realcustom_jax.evaluation.miniature.judge import TrainedJudge

LEAKS: tuple[str, ...] = ("facing_leak", "pose_leak", "background_leak")
POSES: tuple[float, ...] = tuple(i / 8 for i in range(-7, 8, 2))
_SIDE = 48
_CUT_OUT = 96
_GREY = 0.5


def score_leaks(judge: TrainedJudge, cases: Sequence[Case], images: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `LEAKS` [N] of pictures uint8 [N, P, P, 3], as the mean over the things that have a reference."""
    nouns = np.array([[NOUNS.index(thing.noun) for thing in case.things] for case in cases], np.int32)
    opinions = judge(images, nouns)
    each = zip(cases, images, opinions.places, opinions.found, strict=True)
    kept = np.array([[_facing_and_pose(image, places[i], case.things[i], *case.shown[i]) if found[i] else (0.5, 0.0)
                      for i in case.targets] for case, image, places, found in each])
    background = np.array([SCENES[scene] in case.reference_scenes
                           for case, scene in zip(cases, opinions.scene, strict=True)], float)
    return {"facing_leak": kept[..., 0].mean(1), "pose_leak": kept[..., 1].mean(1), "background_leak": background}


def _facing_and_pose(image: np.ndarray, places: np.ndarray, thing: Identity, pose: float,
                     mirrored: bool) -> tuple[float, float]:
    """facing_leak and pose_leak of the thing that is at `places` [h, w] of the image."""
    places = np.repeat(np.repeat(places, 2, 0), 2, 1)[..., None]
    made = _aligned(image / 255, (places > 0.5).astype(float))
    painted = [_painted(thing, each) for each in POSES]
    likeness = np.array([[_correlation(made, _aligned(*_faced(each, left))) for each in painted]
                         for left in (False, True)])
    facing = likeness.max(1)
    kept = (1 + np.sign(facing[int(mirrored)] - facing[int(not mirrored)])) / 2  # a tie tells nothing: 0.5
    read = POSES[int(likeness[int(facing.argmax())].argmax())]
    expected = (1 + pose**2) / 2  # the mean of |x - pose| where x is uniform in [-1, 1]
    return float(kept), 1 - abs(read - pose) / expected


def _painted(thing: Identity, pose: float) -> np.ndarray:
    return cut_out(thing, pose, _CUT_OUT) / 255


def _faced(painted: np.ndarray, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Colours and opacity of a cut-out, whose colours are premultiplied."""
    painted = painted[:, ::-1] if left else painted
    opacity = painted[..., 3:]
    return painted[..., :3] / np.maximum(opacity, 1e-6), opacity


def _aligned(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """The thing on grey, its bounding box stretched to [S, S, 3]."""
    rows, columns = (np.flatnonzero((opacity[..., 0] > 0.5).any(axis)) for axis in (1, 0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    on_grey = (colours * opacity + _GREY * (1 - opacity))[inside]
    picture = Image.fromarray(np.uint8(np.round(255 * np.clip(on_grey, 0, 1))))
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)) / 255


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-6))
