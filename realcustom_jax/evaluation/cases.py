"""What is to be generated: held-out subjects, each with its reference picture and prompts; and its painted bounds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from realcustom_jax.data.sprites.world import (
    HELD_OUT_NOUNS,
    NOUNS,
    SCENES,
    Identity,
    caption,
    describe,
    paint,
    paint_reference,
    random_identity,
    random_placement,
)
from realcustom_jax.evaluation.judge import HEADS

PROMPTS_PER_SUBJECT = 2
_HELD_OUT_SHARE = 1 / 3
_FACINGS = ("left", "right")


@dataclasses.dataclass(frozen=True)
class Case:
    """One picture to generate.

    Attributes:
        subject: its number. identity: what the reference, uint8 [64,64,3], shows. scene: of the prompt.
        seed: of the noise.
    """

    subject: int
    identity: Identity
    reference: np.ndarray
    scene: str
    seed: int

    @property
    def prompt(self) -> str:
        return caption([self.identity.noun], self.scene)

    @property
    def description(self) -> str:
        """The prompt with the attributes named."""
        return describe(self.identity, (), self.scene)

    @property
    def held_out_noun(self) -> bool:
        return self.identity.noun in HELD_OUT_NOUNS


def make_cases(num_subjects: int, seed: int) -> list[Case]:
    """Draws subjects of the test split, a third of them of the held-out nouns, and two prompts for each.

    A reference shows its subject in the studio, at a random pose and facing. The same numbers give the same cases.
    Raises ValueError for fewer than one subject or a negative seed.
    """
    if num_subjects < 1:
        raise ValueError(f"The number of subjects is {num_subjects}; at least 1 is needed.")
    if seed < 0:
        raise ValueError(f"The seed is {seed}; give a number from 0 on.")
    rng = np.random.default_rng((seed, 0))
    cases = []
    for subject, noun in enumerate(_nouns(rng, num_subjects)):
        identity = random_identity(rng, noun=noun, split="test")
        reference = paint_reference(
            identity, seed=0, pose=float(rng.uniform(-1, 1)), facing=_FACINGS[rng.integers(2)])
        scenes = rng.choice(SCENES, PROMPTS_PER_SUBJECT, replace=False)
        noise = int(rng.integers(2**31))
        cases += [Case(subject, identity, reference, str(scene), noise) for scene in scenes]
    return cases


def _nouns(rng: np.random.Generator, count: int) -> list[str]:
    held_out = round(count * _HELD_OUT_SHARE)
    trained = [noun for noun in NOUNS if noun not in HELD_OUT_NOUNS]
    nouns = _in_turn(rng, trained, count - held_out) + _in_turn(rng, HELD_OUT_NOUNS, held_out)
    return [nouns[i] for i in rng.permutation(count)]


def _in_turn(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    """`count` names in random order, each as often as any other but for one."""
    rounds = [rng.permutation(names) for _ in range(-(-count // len(names)))]
    return [str(name) for name in np.concatenate(rounds)[:count]] if rounds else []


def paint_bounds(cases: Sequence[Case], seed: int) -> dict[str, np.ndarray]:
    """What perfect and what blind customisation look like: painted answers to the cases, uint8 [N,64,64,3].

    "same_subject": the case's identity in the prompt's scene, at another place and pose; "other_subject": another
    identity of the same noun there.
    """
    rng = np.random.default_rng((seed, 1))
    same = [_paint_in(rng, case.identity, case.scene) for case in cases]
    others = [_paint_in(rng, random_identity(rng, noun=case.identity.noun), case.scene) for case in cases]
    return {"same_subject": np.stack(same), "other_subject": np.stack(others)}


@dataclasses.dataclass(frozen=True)
class Exam:
    """Painted pictures with the truth.

    Attributes:
        images: uint8 [N,64,64,3]. labels: the class [N] of each of `HEADS`. subject: its pixels, bool [N,64,64].
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    subject: np.ndarray


def make_exam(count: int, seed: int) -> Exam:
    """Paints `count` pictures of one test identity each, for the judge's own accuracy."""
    rng = np.random.default_rng((seed, 2))
    images, subjects, labels = [], [], []
    for _ in range(count):
        identity = random_identity(rng, split="test")
        scene = int(rng.integers(len(SCENES)))
        image, masks = paint([(identity, random_placement(rng)[0])], SCENES[scene], seed=int(rng.integers(2**31)))
        images.append(image)
        subjects.append(masks[0])
        labels.append([NOUNS.index(identity.noun), scene, *identity.attributes])
    return Exam(np.stack(images), dict(zip(HEADS, np.array(labels).T, strict=True)), np.stack(subjects))


def _paint_in(rng: np.random.Generator, identity: Identity, scene: str) -> np.ndarray:
    return paint([(identity, random_placement(rng)[0])], scene, seed=int(rng.integers(2**31)))[0]
