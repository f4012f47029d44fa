"""Training examples of the sprite world: a target scene and reference pictures of its subjects.

The two kinds of pairs of the curriculum training recipe:
- *reconstruction*: the reference is the subject cropped from the target itself, so pose, size and background
  give the target away (difficulty 0);
- *recontextualisation*: the reference shows the same identity elsewhere. At difficulty d its pose and size
  lie d of the way from the target's to the opposite end of their ranges; from 1/2 on it stands in another
  scene, or, half the time, alone in a studio as in a product picture; close to 1 it faces the other way.

An example is a pure function of (seed, split, index).
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from realcustom_jax.data.sprites.world import (
    NOUNS,
    SCENES,
    Identity,
    Placement,
    caption,
    describe,
    paint,
    paint_reference,
    random_identity,
    random_placement,
)

SPLITS: tuple[str, ...] = ("train", "test")
KINDS: tuple[str, ...] = ("reconstruction", "recontextualisation")
DIFFICULTIES: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
MAX_SUBJECTS = 2

_TWO_SUBJECTS_SHARE = 0.25
_REFERENCE_SIZES = (0.48, 0.72)
_SCENE_CHANGES_AT, _FACING_CHANGES_AT = 1 / 2, 5 / 6
_STUDIO_SHARE = 0.5


def crop_subject(image: np.ndarray, mask: np.ndarray, *, padding: float = 0.08) -> np.ndarray:
    """The square round a subject's mask [S, S], padded by a share of its side, enlarged to `image`'s size.

    The background stays. uint8 [S, S, 3] in and out; ValueError when the mask is empty.
    """
    if not mask.any():
        raise ValueError("The mask is empty, there is no subject to crop.")
    rows, columns = np.nonzero(mask)
    low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
    total = image.shape[0]
    side = min(total, (high - low).max() * (1 + 2 * padding))
    left, top = np.clip((low + high - side) / 2, 0, total - side).tolist()
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((total, total), Image.Resampling.BILINEAR, box=box))


def recontextualise(
    rng: np.random.Generator, identity: Identity, place: Placement, scene: str, *, difficulty: float
) -> np.ndarray:
    """Paints `identity` alone in another view than `place` in `scene`; uint8 [64, 64, 3].

    `difficulty` in [0, 1] is the share of the full difference in pose, size and scene.
    """
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is {difficulty}; expected a number in [0, 1].")
    small, large = _REFERENCE_SIZES
    size = min(max(place.size, small), large)
    far_size = small if size > (small + large) / 2 else large
    far_pose = rng.uniform(0.5, 1) * (-1 if place.pose > 0 else 1)
    other_facing = "left" if place.facing == "right" else "right"
    other_scenes = [name for name in SCENES if name != scene]
    other_scene = other_scenes[rng.integers(len(other_scenes))]
    view = replace(
        place,
        x=0.5 + difficulty * rng.uniform(-0.15, 0.15),
        y=0.55 + difficulty * rng.uniform(-0.1, 0.1),
        size=size + difficulty * (far_size - size),
        pose=place.pose + difficulty * (far_pose - place.pose),
        facing=other_facing if difficulty >= _FACING_CHANGES_AT else place.facing,
    )
    seed, in_studio = int(rng.integers(2**31)), rng.random() < _STUDIO_SHARE
    if difficulty < _SCENE_CHANGES_AT:
        return paint([(identity, view)], scene, seed=seed)[0]
    if in_studio:
        return paint_reference(identity, seed=seed, pose=view.pose, facing=view.facing)
    return paint([(identity, view)], other_scene, seed=seed)[0]


def paint_example(*, seed: int, split: str, index: int) -> dict[str, np.ndarray | str | list[str]]:
    """Paints example `index` of a split, with identities of that split only.

    - target: uint8 [64, 64, 3]; masks: bool [2, 64, 64], visible pixels of each subject
    - caption: str; description: str, the caption with the first subject's attributes; words: the two words that
      name the subjects; scene: str
    - nouns: int32 [2], indices into `NOUNS`; attributes: int32 [2, 5], see `Identity.attributes`
    - references: uint8 [4, 64, 64, 3] of the first subject, with kind: list of 4 names from `KINDS` and
      difficulty: float32 [4]
    - second_reference: uint8 [64, 64, 3] of the second subject, recontextualised at difficulty 1
    Where there is no second subject: a black mask and reference, the word "", noun and attributes -1.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    count = MAX_SUBJECTS if rng.random() < _TWO_SUBJECTS_SHARE else 1
    identities = [
        random_identity(rng, noun=NOUNS[noun], split=split)
        for noun in rng.choice(len(NOUNS), count, replace=False)
    ]
    places = random_placement(rng, subjects=count)
    scene = SCENES[rng.integers(len(SCENES))]
    target, visible = paint(list(zip(identities, places, strict=True)), scene, seed=int(rng.integers(2**31)))

    absent = MAX_SUBJECTS - count
    words = [identity.noun for identity in identities]
    references = [crop_subject(target, visible[0])] + [
        recontextualise(rng, identities[0], places[0], scene, difficulty=d) for d in DIFFICULTIES[1:]
    ]
    if count == MAX_SUBJECTS:
        second_reference = recontextualise(rng, identities[1], places[1], scene, difficulty=1.0)
    else:
        second_reference = np.zeros_like(target)
    return {
        "target": target,
        "masks": np.concatenate([visible, np.zeros((absent, *visible.shape[1:]), bool)]),
        "caption": caption(words, scene),
        "description": describe(identities[0], words[1:], scene),
        "words": words + [""] * absent,
        "scene": scene,
        "nouns": np.array([NOUNS.index(word) for word in words] + [-1] * absent, np.int32),
        "attributes": np.stack([i.attributes for i in identities] + [np.full(5, -1, np.int32)] * absent),
        "references": np.stack(references),
        "kind": [KINDS[0]] + [KINDS[1]] * (len(DIFFICULTIES) - 1),
        "difficulty": np.array(DIFFICULTIES, np.float32),
        "second_reference": second_reference,
    }
