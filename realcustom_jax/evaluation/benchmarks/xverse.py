"""XVerseBench: 90 prompts with one subject and 210 with two or three, of people, objects and animals.

Source: https://github.com/bytedance/XVerse, `eval/tools/XVerseBench_{single,multi}.json`. An entry has pictures, and
for each the word of the prompt that stands for it and, where the word occurs for several subjects, which occurrence.
Boxes of subjects in the generated pictures are not part of it; its script detects them.
"""

from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.lists import base_of, below, damaged, entry, file_name, read_json
from realcustom_jax.evaluation.benchmarks.phrases import told_apart
from realcustom_jax.evaluation.rows import Subject

_SOURCE = "https://github.com/bytedance/XVerse"


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    entries = read_json(copy.list, list)
    inputs = [_inputs(copy, f"entry {i}", one) for i, one in enumerate(entries)]
    base = base_of(sorted({path for one in inputs for path, _, _ in one}), [copy.folder, copy.list.parent])
    rows = []
    for i, (one, found) in enumerate(zip(entries, inputs, strict=True)):
        prompt = entry(copy.list, f"entry {i}", one, "prompt", str)
        try:
            targets = told_apart(prompt, [word for _, word, _ in found], [number for _, _, number in found])
        except ValueError as error:
            raise damaged(copy.list, f"in entry {i}, {error}") from None
        subjects = [(start, Subject(_name(path), phrase, below(base, path), (below(base, path),)), word, _kind(path))
                    for (path, word, _), (phrase, start) in zip(found, targets, strict=True)]
        subjects.sort(key=lambda subject: subject[0])
        _, ours, words, kinds = zip(*subjects, strict=True)
        group = "+".join(subject.name for subject in ours)
        rows.append(Prompted(file_name(f"{i:03d}", *words), group, prompt, ours,
                             facts={"words": list(words), "kinds": list(kinds)}))
    return rows


def _inputs(copy: Copy, place: str, one) -> list[tuple[str, str, int | None]]:
    """Of each picture of an entry: its path, the word that stands for it, and which occurrence if that is said."""
    modulation = entry(copy.list, f"'modulation' of {place}", entry(copy.list, place, one, "modulation", list), 0, dict)
    sources = entry(copy.list, place, modulation, "src_inputs", list)
    uses = entry(copy.list, place, modulation, "use_words", list)
    found = {}
    for i, use in enumerate(uses):
        where = f"'use_words' {i} of {place}"
        source = entry(copy.list, f"'src_inputs' of {place}", sources, entry(copy.list, where, use, 0, int), dict)
        number = entry(copy.list, where, use, 3, int) if len(use) > 3 else None
        found[use[0]] = (entry(copy.list, f"'src_inputs' of {place}", source, "image_path", str),
                         entry(copy.list, where, use, 1, str), number)
    if sorted(found) != list(range(len(sources))):
        raise damaged(copy.list, f"{place} has {len(sources)} pictures, but words for {len(found)} of them")
    return [found[i] for i in range(len(sources))]


def _name(path: str) -> str:
    """A subject's name: the folder and the file of its picture, such as "human_05_man"."""
    return file_name("_".join(path.replace("\\", "/").split("/")[-2:]).rpartition(".")[0])


def _kind(path: str) -> str:
    """Of a subject: "human", "object" or "animal". XVerse's DINO score leaves people out."""
    return path.replace("\\", "/").split("/")[-2:][0]


def _lists(name: str) -> tuple[str, str]:
    return f"eval/tools/{name}.json", f"{name}.json"


XVERSE_SINGLE = Benchmark("xverse_single", "XVerseBench with one subject", _SOURCE, _lists("XVerseBench_single"),
                          pictures_per_prompt=4, seed=42, read=_read)
XVERSE_MULTI = Benchmark("xverse_multi", "XVerseBench with several subjects", _SOURCE, _lists("XVerseBench_multi"),
                         pictures_per_prompt=4, seed=42, read=_read)
