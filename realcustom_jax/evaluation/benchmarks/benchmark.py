"""What a benchmark is made of, and how a copy of it is found in a folder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from realcustom_jax.evaluation.rows import Subject

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


@dataclasses.dataclass(frozen=True)
class Selection:
    """How much of a benchmark is wanted, and how; None stands for what the benchmark itself says.

    Attributes:
        subjects, prompts_per_subject: the first ones. pictures_per_prompt: their seeds count up.
        reference: which photograph of a subject the model is given, see `dreambench`.
        seed: of a prompt's first picture.
    """

    subjects: int | None = None
    prompts_per_subject: int | None = None
    pictures_per_prompt: int | None = None
    reference: int | str | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Prompted:
    """One prompt of a benchmark, of which one or more pictures are to be made.

    Attributes:
        name: unique in the benchmark, a file's name. group: the subject or subjects that `Selection.subjects` counts.
        prompt, subjects, scored_prompt, facts: as of `BenchmarkRow`, which takes its group too.
        part: as of `BenchmarkRow`; each part has its own first prompts of a group.
        seed: of its first picture, where it is not the benchmark's.
    """

    name: str
    group: str
    prompt: str
    subjects: tuple[Subject, ...]
    scored_prompt: str | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of a benchmark: the folder that the user names, and the list that was found in it."""

    folder: "AnyPath"
    list: "AnyPath"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark by name.

    Attributes:
        title: as its authors call it. source: where its files are.
        lists: the file or folder that says its prompts, relative to the user's folder, in any of these places; none:
            it needs no files.
        pictures_per_prompt, seed: what its authors use, the seed that of a prompt's first picture.
        read: its prompts, in its order.
    """

    name: str
    title: str
    source: str
    lists: tuple[str, ...]
    pictures_per_prompt: int
    seed: int
    read: Callable[[Copy, Selection], list[Prompted]]

    def find(self, folder: "AnyPath") -> Copy | None:
        """Where its list lies below the folder; None if it does not."""
        places = [folder.joinpath(*place.split("/")) for place in self.lists]
        found = next((place for place in places if place.exists()), None)
        return None if found is None else Copy(folder, found)
