"""DreamBench++: 150 pictures of animals, people, objects and styles, with 9 prompts each.

Source: https://github.com/yuangpeng/dreambench_plus, `dreambench_plus/dreambench_plus_dataset.py`: the first line of
`captions/CATEGORY/NN.txt` says what the picture `images/CATEGORY/NN.jpg` shows, the others are its prompts. A
collection is called by category, number and subject, as there.
"""

from typing import TYPE_CHECKING

from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.lists import damaged, file_name, read_text
from realcustom_jax.evaluation.benchmarks.phrases import named
from realcustom_jax.evaluation.rows import Subject
from realcustom_jax.paths import listing

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

CATEGORIES = {"live_subject/animal": "animal", "live_subject/human": "human", "object": "object", "style": "style"}
"""Folders below `captions` and `images`, and the categories that scores are listed by."""
_SOURCE = "https://github.com/yuangpeng/dreambench_plus"


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    rows = []
    for folder, category in CATEGORIES.items():
        parts = folder.split("/")
        pictures = copy.list.parent.joinpath("images", *parts)
        for captions in listing(copy.list.joinpath(*parts), "[!.]*.txt"):
            rows += _collection(captions, pictures / f"{captions.stem}.jpg", "_".join(parts), category)
    if not rows:
        raise FileNotFoundError(f"{copy.list} has no captions in {', '.join(CATEGORIES)}, as DreamBench++ has; get "
                                f"them as {_SOURCE} says.")
    return rows


def _collection(captions: "AnyPath", picture: "AnyPath", prefix: str, category: str) -> list[Prompted]:
    called, *prompts = [line.strip() for line in read_text(captions).splitlines() if line.strip()] or [""]
    if not prompts:
        raise damaged(captions, "it has not the subject in its first line and prompts in the others")
    collection = f"{prefix}_{captions.stem}_{called.lower().replace(' ', '_')}"
    rows = []
    for i, prompt in enumerate(prompts):
        given, phrase = named(prompt, called)
        rows.append(Prompted(
            file_name(collection, str(i)), collection, given, (Subject(collection, phrase, picture, (picture,)),),
            scored_prompt=None if given == prompt else prompt, facts={"category": category}))
    return rows


DREAMBENCH_PLUS = Benchmark("dreambench_plus", "DreamBench++", _SOURCE, ("captions", "data/captions"),
                            pictures_per_prompt=1, seed=42, read=_read)
