"""What is to be generated: held-out subjects, each with its references and prompts, in four tasks; and its bounds.

    one          one thing, one reference: "a dog on the beach"
    bystander    two things, a reference for the first, words for the second: "a dog and a red striped car on the beach"
    many         two things, a reference for each: "a dog and a car on the beach"
    one2many     the same, but both are in one reference
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from realcustom_jax.data.sprites.bank import Bank, BankConfig, bank_of, paint_bank
from realcustom_jax.data.sprites.captions import TELLABLE, Caption, caption
from realcustom_jax.data.sprites.composition import compose_few
from realcustom_jax.data.sprites.draws import draw_layout, draw_things, place
from realcustom_jax.data.sprites.world import (
    HELD_OUT_NOUNS,
    NOUNS,
    SCENES,
    Identity,
    random_identity,
)

TASKS: tuple[str, ...] = ("one", "bystander", "many", "one2many")
PROMPTS_PER_SUBJECT = 2
_HELD_OUT_SHARE = 1 / 3
_EXAM_IDENTITIES = 180


@dataclasses.dataclass(frozen=True)
class Case:
    """One picture to generate.

    Attributes:
        task: of `TASKS`. subject: the number of whom or what pair it is about.
        things: the one or two identities that the prompt names, in its order.
        references: uint8 [P, P, 3] each; every one has a background of its own.
        targets: which of the things each target phrase stands for.
        scene: of the prompt. seed: of the noise.
        shown: of each thing that has a reference, in the prompt's order, the pose and whether it faces left there.
        reference_scenes: what the references' backgrounds are; none of them is the prompt's.
    """

    task: str
    subject: int
    things: tuple[Identity, ...]
    references: tuple[np.ndarray, ...]
    targets: tuple[int, ...]
    scene: str
    seed: int
    shown: tuple[tuple[float, bool], ...] = ()
    reference_scenes: tuple[str, ...] = ()

    @property
    def prompt(self) -> Caption:
        """The nouns, and what a thing without a reference looks like."""
        return self._caption([() if i in self.targets else TELLABLE for i in range(len(self.things))])

    @property
    def description(self) -> Caption:
        """The prompt with all things' attributes named."""
        return self._caption([TELLABLE] * len(self.things))

    @property
    def held_out_noun(self) -> bool:
        return self.things[0].noun in HELD_OUT_NOUNS

    def _caption(self, told) -> Caption:
        return caption(list(zip(self.things, told, strict=True)), self.scene)


def make_cases(task: str, num_subjects: int, seed: int, config: BankConfig = BankConfig()) -> list[Case]:
    """Draws subjects of the test split, a third of them of the held-out nouns, and two prompts for each.

    The same numbers give the same cases, and the first things, scenes and noise are the same in all tasks.
    Raises ValueError for fewer than one subject or a negative seed.
    """
    check_request(num_subjects, seed)
    rng = np.random.default_rng((seed, 0))
    cases = []
    for subject, noun in enumerate(_nouns(rng, num_subjects)):
        first = random_identity(rng, noun=noun, split="test")
        others = [other for other in NOUNS if other not in (noun, *HELD_OUT_NOUNS)]
        second = random_identity(rng, nouns=others, split="test")
        scenes = [str(scene) for scene in rng.choice(SCENES, PROMPTS_PER_SUBJECT, replace=False)]
        noise = int(rng.integers(2**31))
        photographs = np.random.default_rng((seed, 3, subject))
        elsewhere = [scene for scene in SCENES if scene not in scenes]
        groups = {"one": [[first]], "bystander": [[first]], "many": [[first], [second]], "one2many": [[first, second]]}
        taken = [photograph(photographs, things, elsewhere, config) for things in groups[task]]
        references = tuple(each.image for each in taken)
        known = tuple(pose for each in taken for pose in each.shown), tuple(each.scene for each in taken)
        things = (first,) if task == "one" else (first, second)
        targets = (0,) if task in ("one", "bystander") else (0, 1)
        cases += [Case(task, subject, things, references, targets, scene, noise, *known) for scene in scenes]
    return cases


def check_request(num_subjects: int, seed: int) -> None:
    """Raises ValueError for numbers of which no cases can be made."""
    if num_subjects < 1:
        raise ValueError(f"The number of subjects is {num_subjects}; at least 1 is needed.")
    if seed < 0:
        raise ValueError(f"The seed is {seed}; give a number from 0 on.")


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A reference, uint8 [P, P, 3], and what the painter knows of it: its scene, and as of `Case.shown` each thing's
    pose and whether it faces left."""

    image: np.ndarray
    scene: str
    shown: tuple[tuple[float, bool], ...]


def photograph(rng: np.random.Generator, things: Sequence[Identity], scenes: Sequence[str],
               config: BankConfig) -> Photograph:
    """A reference: one thing that fills most of the picture, or two side by side, in one of `scenes`, at a random pose
    and facing."""
    poses = [float(rng.uniform(-1, 1)) for _ in things]
    scene = str(rng.choice(scenes))
    bank = bank_of(list(zip(things, poses, strict=True)), [(scene, int(rng.integers(2**31)))], config)
    rows = np.array([[0, 1 if len(things) > 1 else -1]])
    x = np.array([rng.permutation([0.26, 0.74]) if len(things) > 1 else [0.5, 0.5]])
    mirrored = rng.random((1, 2)) < 0.5
    layout = place(rng, bank, rows, np.array([0]), x, np.array([[0.54, 0.54]]), np.array([[0.78, 0.78]]), mirrored)
    facings = [bool(left) for left in mirrored[0, : len(things)]]
    return Photograph(_pictures(bank, layout)[0], scene, tuple(zip(poses, facings, strict=True)))


def _pictures(bank: Bank, layout) -> np.ndarray:
    return np.uint8(np.round(255 * np.asarray(compose_few(bank.cut_outs, bank.scenes, layout)[0])))


def _nouns(rng: np.random.Generator, count: int) -> list[str]:
    held_out = round(count * _HELD_OUT_SHARE)
    trained = [noun for noun in NOUNS if noun not in HELD_OUT_NOUNS]
    nouns = _in_turn(rng, trained, count - held_out) + _in_turn(rng, HELD_OUT_NOUNS, held_out)
    return [nouns[i] for i in rng.permutation(count)]


def _in_turn(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    """`count` names in random order, each as often as any other but for one."""
    rounds = [rng.permutation(names) for _ in range(-(-count // len(names)))]
    return [str(name) for name in np.concatenate(rounds)[:count]] if rounds else []


def paint_bounds(cases: Sequence[Case], seed: int, config: BankConfig = BankConfig()) -> dict[str, np.ndarray]:
    """What perfect and what blind customisation look like: painted answers to the cases, uint8 [N, P, P, 3].

    "same_subject": the case's things in the prompt's scene, at another place and pose; "other_subject": other
    identities of the same nouns there.
    """
    rng = np.random.default_rng((seed, 1))
    same = [_paint_in(rng, case.things, case.scene, config) for case in cases]
    others = [_paint_in(rng, [random_identity(rng, noun=thing.noun) for thing in case.things], case.scene, config)
              for case in cases]
    return {"same_subject": np.stack(same), "other_subject": np.stack(others)}


def _paint_in(rng, things: Sequence[Identity], scene: str, config: BankConfig) -> np.ndarray:
    bank = bank_of([(identity, float(rng.uniform(-1, 1))) for identity in things],
                   [(scene, int(rng.integers(2**31)))], config)
    return _pictures(bank, draw_layout(rng, bank, np.array([[0, 1 if len(things) > 1 else -1]])))[0]


@dataclasses.dataclass(frozen=True)
class Exam:
    """Painted pictures with the truth.

    Attributes:
        images: uint8 [N, P, P, 3]. nouns: int32 [N, 2], -1 for none. attributes: int32 [N, 2, 5]. scenes: int32 [N].
        coverage: float32 [N, 2, P, P], how much of each pixel each thing fills.
    """

    images: np.ndarray
    nouns: np.ndarray
    attributes: np.ndarray
    scenes: np.ndarray
    coverage: np.ndarray


def make_exam(count: int, seed: int, config: BankConfig = BankConfig()) -> Exam:
    """Paints `count` pictures of test identities, half of them of two things, for the judge's own accuracy."""
    small = dataclasses.replace(config, identities=_EXAM_IDENTITIES, poses=1, scenes=8, seed=seed, split="test")
    bank = paint_bank(small)
    rng = np.random.default_rng((seed, 2))
    things = draw_things(rng, bank, np.arange(len(bank.cut_outs)), count, 0.5)
    layout = draw_layout(rng, bank, things)
    images, coverage = compose_few(bank.cut_outs, bank.scenes, layout)
    known = np.where((things >= 0)[..., None], bank.identities[np.maximum(things, 0)], -1)
    return Exam(np.uint8(np.round(255 * np.asarray(images))), known[..., 0], known[..., 1:],
                bank.scene_names[layout.scene], np.asarray(coverage))
