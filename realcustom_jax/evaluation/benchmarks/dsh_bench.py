"""DSH-Bench: 459 pictures with 12 prompts each, two of each of six scenarios.

Source: https://github.com/sunriverhzy/DSH-Bench, `data/DSH-Bench_image_info.json`. An entry says its subject in words;
47 of the 5,508 prompts do not hold them, see `phrases.named`, and 8 of these hold no other form of them.
"""

from pathlib import PurePosixPath

from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.lists import base_of, below, entry, file_name, read_json
from realcustom_jax.evaluation.benchmarks.phrases import named
from realcustom_jax.evaluation.rows import Subject

_FACTS = {"subject_difficulty_level": "difficulty", "cate1": "style", "cate2": "category", "cate3": "kind"}


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    entries = read_json(copy.list, dict)
    paths = {key: entry(copy.list, f"'ref_image' of {key!r}",
                        entry(copy.list, f"entry {key!r}", value, "ref_image", dict), "image_path", str)
             for key, value in entries.items()}
    base = base_of(list(paths.values()), [copy.list.parent, copy.folder])
    rows = []
    for key, value in entries.items():
        place = f"entry {key!r}"
        called = entry(copy.list, place, value, "subject", str).strip()
        about = entry(copy.list, place, value, "metadata", dict)
        facts = {ours: about[theirs] for theirs, ours in _FACTS.items() if theirs in about}
        picture, group = below(base, paths[key]), f"{PurePosixPath(key).stem}_{called}"
        prompts = entry(copy.list, place, value, "prompt", list)
        for i, one in enumerate(prompts):
            prompt = entry(copy.list, f"prompt {i} of {place}", one, "prompt", str)
            scenario = entry(copy.list, f"prompt {i} of {place}", one, "prompt_scenario", str)
            given, phrase = named(prompt, called)
            rows.append(Prompted(
                file_name(group, f"{i:02d}"), group, given, (Subject(group, phrase, picture, (picture,)),),
                scored_prompt=None if given == prompt else prompt, facts={**facts, "scenario": scenario}))
    return rows


DSH_BENCH = Benchmark(
    "dsh_bench", "DSH-Bench", "https://github.com/sunriverhzy/DSH-Bench",
    ("data/DSH-Bench_image_info.json", "DSH-Bench_image_info.json"), pictures_per_prompt=1, seed=0, read=_read)
