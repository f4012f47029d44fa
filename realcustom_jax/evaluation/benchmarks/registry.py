"""The benchmarks by name, and their rows."""

import collections
import itertools
from typing import TYPE_CHECKING

from realcustom_jax.conditioning.targets import target_phrase
from realcustom_jax.errors import check_choice, quoted
from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.dreambench import DREAMBENCH
from realcustom_jax.evaluation.benchmarks.dreambench_plus import DREAMBENCH_PLUS
from realcustom_jax.evaluation.benchmarks.dsh_bench import DSH_BENCH
from realcustom_jax.evaluation.benchmarks.lists import check_pictures
from realcustom_jax.evaluation.benchmarks.sprites import SPRITES
from realcustom_jax.evaluation.benchmarks.uno import UNO_MULTI, UNO_SINGLE
from realcustom_jax.evaluation.benchmarks.xverse import XVERSE_MULTI, XVERSE_SINGLE
from realcustom_jax.evaluation.rows import BenchmarkRow
from realcustom_jax.paths import as_path, check_reachable

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (
    DREAMBENCH, UNO_SINGLE, UNO_MULTI, DREAMBENCH_PLUS, DSH_BENCH, XVERSE_SINGLE, XVERSE_MULTI, SPRITES)}


def read_benchmark(
    name: str, folder: "str | AnyPath", *, subjects: int | None = None, prompts_per_subject: int | None = None,
    pictures_per_prompt: int | None = None, reference: int | str | None = None, seed: int | None = None,
) -> list[BenchmarkRow]:
    """The rows of a benchmark, from the user's own copy of its files.

    Args:
        name: of `BENCHMARKS`.
        folder: the clone or the unpacked files; of "sprites", where its references are painted.
        subjects, prompts_per_subject: the first so many; None: all. ("sprites" draws so many subjects; None: 24.)
        pictures_per_prompt: their seeds count up; None: as its authors.
        reference: of "dreambench", which photograph of each subject the model is given: its place from 0 (None: the
            first), or "uno": the one that UNO's list takes.
        seed: of a prompt's first picture; None: as its authors, or 0. Of "sprites", of what is drawn too.
    Returns:
        rows with different names, each with targets that its prompt holds and pictures that are there. A row's name
        and seed do not depend on how many are asked for (but of "sprites").
    Raises:
        ValueError: unknown name, numbers that cannot be, another benchmark's folder, or a damaged list.
        OSError: no such folder, no list in it, or pictures that are missing; says which.
    """
    check_choice("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    selection = Selection(subjects, prompts_per_subject, pictures_per_prompt, reference, seed)
    _check(selection, benchmark)
    prompted = _first(benchmark.read(_copy(benchmark, as_path(folder)), selection), selection)
    _check_rows(prompted, as_path(folder), benchmark)
    count = pictures_per_prompt or benchmark.pictures_per_prompt
    first = benchmark.seed if seed is None else seed
    return [
        BenchmarkRow(f"{one.name}-{i}", one.prompt, one.subjects, one.group,
                     (first if one.seed is None else one.seed) + i, scored_prompt=one.scored_prompt, part=one.part,
                     facts=one.facts)
        for one in prompted for i in range(count)]


def _check(selection: Selection, benchmark: Benchmark) -> None:
    for field in ("subjects", "prompts_per_subject", "pictures_per_prompt", "seed"):
        value, least = getattr(selection, field), 0 if field == "seed" else 1
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{field} is {quoted(value)}; expected a whole number from {least} on.")
    reference = selection.reference
    if reference is None:
        return
    if isinstance(reference, bool) or not isinstance(reference, int | str):
        raise ValueError(f"The reference is {quoted(reference)}; expected a number from 0 on, or 'uno'.")
    if benchmark.name != DREAMBENCH.name:
        raise ValueError(f"The benchmark {benchmark.name} says itself which picture is the reference; leave the "
                         f"reference {quoted(reference)} out, which is for {DREAMBENCH.name}.")


def _copy(benchmark: Benchmark, folder: "AnyPath") -> Copy:
    """The copy in the folder. Raises ValueError for another benchmark's folder, OSError if there is none."""
    if not benchmark.lists:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; give a folder, in which the references are painted.")
        return Copy(folder, folder)
    check_reachable(folder)
    expected = f"expected {benchmark.lists[0]} in a copy of {benchmark.source}"
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder} for the benchmark {benchmark.name}: {expected}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not the folder of {benchmark.title}: {expected}.")
    if found := benchmark.find(folder):
        return found
    others = [other for other in BENCHMARKS.values() if other is not benchmark and other.find(folder)]
    if others:
        names = " or ".join(other.name for other in others)
        raise ValueError(f"{folder} holds {others[0].title} (the benchmark {names}), not {benchmark.title}: "
                         f"{expected}.")
    raise FileNotFoundError(f"{folder} does not hold {benchmark.title}: {expected}.")


def _first(prompted: list[Prompted], selection: Selection) -> list[Prompted]:
    """The first prompts in each part of the first groups, in their order."""
    groups = list(dict.fromkeys(one.group for one in prompted))[: selection.subjects]
    numbers = collections.defaultdict(itertools.count)
    most = selection.prompts_per_subject
    return [one for one in prompted if one.group in groups
            and (most is None or next(numbers[one.group, one.part]) < most)]


def _check_rows(prompted: list[Prompted], folder: "AnyPath", benchmark: Benchmark) -> None:
    """Raises ValueError for names that are not unique on every disk or targets that are not in their prompts, and
    FileNotFoundError for missing pictures."""
    names = set()
    for one in prompted:
        if one.name.casefold() in names:
            raise ValueError(f"The list of {benchmark.title} in {folder} has the row {one.name} twice; take it anew "
                             f"from {benchmark.source}.")
        names.add(one.name.casefold())
        for subject in one.subjects:
            try:
                target_phrase(one.prompt, subject.phrase)
            except ValueError as error:
                raise ValueError(f"The list of {benchmark.title} in {folder}, row {one.name}: {error}") from None
    pictures = (picture for one in prompted for subject in one.subjects
                for picture in (subject.reference, *subject.compared))
    check_pictures(pictures, folder, benchmark.title, benchmark.source)
