"""The miniature's held-out subjects as a benchmark, and its judge as a protocol, so that both run anywhere.

The references are painted into the folder that is given, and the facts of a row say what its things look like.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from realcustom_jax.data.sprites.world import SCENES, Identity
from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.miniature.cases import TASKS, Case, make_cases
from realcustom_jax.evaluation.rows import PictureRow, Subject
from realcustom_jax.files import file_digest, png, write_file
from realcustom_jax.paths import listing

if TYPE_CHECKING:
    from realcustom_jax.evaluation.miniature.judge import TrainedJudge
    from realcustom_jax.paths import AnyPath

_SUBJECTS, _SEED = 24, 0
_TARGETS = {1: [(0,)], 2: [(0,), (0, 1)]}
"""Which of so many things may have references."""


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    """All tasks' cases. The subjects are drawn together, so that fewer of them are others, not the first ones."""
    count, seed = selection.subjects or _SUBJECTS, _SEED if selection.seed is None else selection.seed
    rows = []
    for task in TASKS:
        numbers: dict[int, int] = {}
        for case in make_cases(task, count, seed):
            number = numbers[case.subject] = numbers.get(case.subject, -1) + 1
            rows.append(_prompted(case, number, copy.folder / f"seed{seed}_of_{count}"))
    return rows


def _prompted(case: Case, number: int, folder: "AnyPath") -> Prompted:
    name = f"{case.task}-{case.subject:03d}"
    files = [folder / f"{name}-{i}.png" for i in range(len(case.references))]
    for file, reference in zip(files, case.references, strict=True):
        content = png(Image.fromarray(reference))
        if not file.is_file() or file.read_bytes() != content:
            write_file(file, content)
    # One reference that shows both things stands for each of them.
    files = files if len(files) == len(case.targets) else files * len(case.targets)
    subjects = tuple(Subject(f"{case.subject:03d}_{case.things[thing].noun}", case.things[thing].noun, file, (file,))
                     for thing, file in zip(case.targets, files, strict=True))
    return Prompted(f"{name}-{number}", f"{case.subject:03d}", str(case.prompt), subjects, facts=facts_of(case),
                    seed=case.seed, part=case.task)


def facts_of(case: Case) -> dict[str, Any]:
    """What the judge needs to know of a case, as JSON values; `case_of` reads it."""
    return {"task": case.task, "subject": case.subject, "things": [vars(thing).copy() for thing in case.things],
            "targets": list(case.targets), "scene": case.scene, "seed": case.seed,
            "held_out_noun": case.held_out_noun}


def case_of(facts: Mapping[str, Any]) -> Case:
    """The case without its references. Raises ValueError for facts of other rows."""
    try:
        things = tuple(Identity(**thing) for thing in facts["things"])
        case = Case(facts["task"], facts["subject"], things, (), tuple(facts["targets"]), facts["scene"], facts["seed"])
        if case.task not in TASKS or case.scene not in SCENES or case.targets not in _TARGETS[len(things)]:
            raise KeyError
    except (KeyError, TypeError, ValueError):
        raise ValueError("it has not the facts of a row of the benchmark sprites, which say what its things look "
                         "like") from None
    return case


class SpritesScorer:
    """Scores by the miniature's judge, with the interface of a protocol's scorer.

    Attributes:
        metrics: what may be scored; a row has those of its task.
        skipped: nothing. networks: the judge's file, for the report.
    """

    metrics: tuple[str, ...] = ("subject_similarity", "text_controllability", "bystander_fidelity", "swapped")

    def __init__(self, judge: "TrainedJudge", networks: Mapping[str, Any]):
        self._judge = judge
        self.skipped: dict[str, str] = {}
        self.networks = dict(networks)

    @classmethod
    def open(cls, model: "str | AnyPath") -> "SpritesScorer":
        """The judge of a model, named as `Pipeline.load` takes it. Raises FileNotFoundError or ValueError if it has
        none that is usable."""
        from realcustom_jax.evaluation.miniature.judge import load_judge
        from realcustom_jax.model_files.source import ModelSource

        source = ModelSource.open(model)
        judge = load_judge(source.root)
        files = [file for file in listing(source.place("judge")) if file.is_file()]
        digests = {file.name: file_digest(file) for file in files}
        return cls(judge, {"judge": {"file": "judge", "sha256": digests, "as_published": True}})

    def scores(self, row: PictureRow) -> dict[str, float]:
        """The scores of a picture. Raises ValueError or OSError that names the row for a bad picture or facts of
        another benchmark."""
        from realcustom_jax.conditioning.images import load_rgb
        from realcustom_jax.evaluation.miniature.scores import score_pictures

        try:
            case, picture = case_of(row.facts), np.asarray(load_rgb(row.picture))
        except OSError as error:
            raise OSError(f"{row.where}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
        scores = score_pictures(functools.partial(self._judge, batch_size=1), [case], picture[None])
        return {name: float(scores[name][0]) for name in self.metrics if name in scores}


SPRITES = Benchmark("sprites", "the miniature's sprites", "this package", (), pictures_per_prompt=1, seed=_SEED,
                    read=_read)
