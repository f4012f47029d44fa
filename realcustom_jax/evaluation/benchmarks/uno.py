"""UNO's fixed lists of DreamBench: the model is given one photograph of each subject, prompts have no pseudo-token.

Source: https://github.com/bytedance/UNO, `datasets/dreambench_{singleip,multiip}.json`: 750 entries each, of 30
subjects or pairs. The photographs are its submodule `datasets/dreambooth`. Which word stands for which photograph is
DreamBench's class of the subject, after which the photograph's folder is called. Compared are all photographs in that
folder, as UNO's `eval/evaluate_clip_dino_score_{single,multi}_subject.py` do.
"""

import posixpath
from typing import TYPE_CHECKING

from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.dreambench import photographs_in, read_classes
from realcustom_jax.evaluation.benchmarks.lists import base_of, below, damaged, entry, file_name, read_json
from realcustom_jax.evaluation.benchmarks.phrases import told_apart
from realcustom_jax.evaluation.rows import Subject

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_CLASSES = "dreambooth/dataset/prompts_and_classes.txt"
SOURCE = "https://github.com/bytedance/UNO"


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    entries = read_json(copy.list, list)
    places = [f"entry {i}" for i in range(len(entries))]
    pictures = [[entry(copy.list, f"'image_paths' of {place}", paths, k, str) for k in range(len(paths))]
                for place, one in zip(places, entries, strict=True)
                for paths in [entry(copy.list, place, one, "image_paths", list)]]
    base = base_of(sorted({name for names in pictures for name in names}), [copy.list.parent, copy.folder])
    classes = _classes(base)
    compared = {folder: photographs_in(below(base, folder))
                for folder in {posixpath.dirname(path) for paths in pictures for path in paths}}
    rows, counts = [], {}
    for place, one, paths in zip(places, entries, pictures, strict=True):
        prompt = entry(copy.list, place, one, "prompt", str)
        names = [posixpath.basename(posixpath.dirname(path)) for path in paths]
        if unknown := [name for name in names if name not in classes]:
            raise damaged(copy.list, f"{place} has a picture in a folder {unknown[0]!r}, which is no subject of "
                                     "DreamBench")
        try:
            targets = told_apart(prompt, [classes[name] for name in names])
        except ValueError as error:
            raise damaged(copy.list, f"in {place}, {error}") from None
        found = [(start, Subject(name, phrase, below(base, path), compared[posixpath.dirname(path)]))
                 for name, path, (phrase, start) in zip(names, paths, targets, strict=True)]
        group = "+".join(names)
        number = counts[group] = counts.get(group, -1) + 1
        subjects = tuple(subject for _, subject in sorted(found, key=lambda pair: pair[0]))
        rows.append(Prompted(file_name("_".join(names), f"{number:02d}"), group, prompt, subjects))
    return rows


def _classes(base: "AnyPath") -> dict[str, str]:
    path = below(base, _CLASSES)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: UNO's lists take their photographs from DreamBench, a submodule "
                                f"of {SOURCE}; run git submodule update --init in that clone, or put a clone of "
                                f"https://github.com/google/dreambooth at {below(base, 'dreambooth')}.")
    return read_classes(path)[0]


def _lists(name: str) -> tuple[str, str]:
    return f"datasets/{name}.json", f"{name}.json"


UNO_SINGLE = Benchmark("uno_single", "UNO's single-subject list of DreamBench", SOURCE,
                       _lists("dreambench_singleip"), pictures_per_prompt=1, seed=3407, read=_read)
UNO_MULTI = Benchmark("uno_multi", "UNO's two-subject list of DreamBench", SOURCE,
                      _lists("dreambench_multiip"), pictures_per_prompt=1, seed=3407, read=_read)
