"""What a benchmark asks for, and what a protocol scores: plain values that commands, readers and scores share."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture, the second corner outside."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One subject of a row.

    Attributes:
        name: the benchmark's name of it, such as "dog6"; rows of one subject share its luck.
        phrase: the real word or words of the prompt that stand for it.
        reference: the picture that the model is given.
        compared: the real pictures of it that the generated one is compared with.
        compared_masks: where it is in each of them, one file for each (white is the subject), or none at all.
    """

    name: str
    phrase: str
    reference: "AnyPath"
    compared: "tuple[AnyPath, ...]"
    compared_masks: "tuple[AnyPath, ...]" = ()


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """One call of the model that a benchmark asks for.

    Attributes:
        name: of its pictures, unique in the benchmark; also a file's name without its ending.
        prompt: with real words only, what the model is given. subjects: at least one, in the prompt's order.
        group: whose luck it shares; intervals are over groups.
        part: of the benchmark, where it has several, whose means are reported apart too.
        seed: of the noise. options: of `Pipeline.__call__` that the benchmark itself prescribes, JSON values.
        scored_prompt: what the pictures are compared with, where that is not the prompt (as the benchmark's script).
        facts: what else a protocol of this benchmark scores by, JSON values.
    """

    name: str
    prompt: str
    subjects: tuple[Subject, ...]
    group: str
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scored_prompt: str | None = None
    part: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ComparedSubject:
    """A subject of a picture to be scored: real pictures of it, where it is in each, and where it is in the picture.

    Attributes:
        references: at least one. reference_masks: one for each of them, or none.
        mask: where it is in the generated picture (white is the subject). boxes: its detections there; None: nobody has
            looked, (): it was looked for and not found.
    """

    references: "tuple[AnyPath, ...]"
    reference_masks: "tuple[AnyPath, ...]" = ()
    mask: "AnyPath | None" = None
    boxes: tuple[Box, ...] | None = None


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """One generated picture to be scored, of any system.

    Attributes:
        where: of what file and line it is said, for messages. name: for the report.
        picture: its file. prompt: what it is compared with. subjects: at least one.
        group: whose luck it shares; intervals are over groups.
        part, facts: as of `BenchmarkRow`.
    """

    where: str
    name: str
    picture: "AnyPath"
    prompt: str
    subjects: tuple[ComparedSubject, ...]
    group: str
    part: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
