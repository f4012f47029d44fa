"""DreamBench: 30 subjects with 4 to 6 photographs each, 25 prompts for objects and 25 for cats and dogs.

Source: https://github.com/google/dreambooth, `dataset/prompts_and_classes.txt`, which is read as it is.
"""

import re
from typing import TYPE_CHECKING

from realcustom_jax.errors import quoted
from realcustom_jax.evaluation.benchmarks.benchmark import Benchmark, Copy, Prompted, Selection
from realcustom_jax.evaluation.benchmarks.lists import damaged, file_name, read_text
from realcustom_jax.evaluation.rows import Subject
from realcustom_jax.paths import listing

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

LIVE_CLASSES = frozenset({"cat", "dog"})
"""The classes of live subjects; the file says of no subject whether it is one, but the README counts nine, dogs and
cats."""
UNO_REFERENCES = {
    "backpack": 2, "backpack_dog": 2, "bear_plushie": 3, "berry_bowl": 2, "can": 1, "candle": 2, "cat": 4, "cat2": 2,
    "clock": 3, "colorful_sneaker": 1, "dog": 2, "dog2": 2, "dog3": 5, "dog5": 0, "dog6": 2, "dog7": 1, "dog8": 4,
    "duck_toy": 1, "fancy_boot": 2, "grey_sloth_plushie": 4, "monster_toy": 4, "pink_sunglasses": 4, "poop_emoji": 0,
    "rc_car": 3, "red_cartoon": 0, "robot_toy": 0, "shiny_sneaker": 1, "teapot": 4, "vase": 2, "wolf_plushie": 4}
"""Which photograph UNO's list takes of each (bytedance/UNO, `datasets/dreambench_singleip.json`)."""
_LISTS = {"objects": "Object Prompts", "live": "Live Subject Prompts"}
_TEMPLATE = re.compile(r"""^\s*(['"])(?P<text>.*)\1\s*\.format\(""", re.M)
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp")


def read_classes(path: "AnyPath") -> tuple[dict[str, str], dict[str, list[str]]]:
    """The class of each subject, and the prompts for "objects" and "live" subjects with "{0}" for the pseudo-token and
    "{1}" for the class. Raises ValueError for a damaged file, OSError for one that cannot be read."""
    sections = re.split(r"^(Classes|Prompts|Object Prompts|Live Subject Prompts)\s*$", read_text(path), flags=re.M)
    parts = dict(zip(sections[1::2], sections[2::2], strict=True))
    if lacking := [name for name in ("Classes", *_LISTS.values()) if name not in parts]:
        raise damaged(path, f"it has no part {quoted(lacking[0])}")
    lines = [line.split(",") for line in map(str.strip, parts["Classes"].splitlines()) if line]
    lines = [line for line in lines if line != ["subject_name", "class"]]
    if bad := [line for line in lines if len(line) != 2 or not all(map(str.strip, line))]:
        raise damaged(path, f"{quoted(','.join(bad[0]))} is no line of a subject's name and its class")
    classes = {name.strip(): word.strip() for name, word in lines}
    prompts = {kind: [found["text"] for found in _TEMPLATE.finditer(parts[title])] for kind, title in _LISTS.items()}
    for kind, texts in prompts.items():
        if not texts:
            raise damaged(path, f"its part {quoted(_LISTS[kind])} has no prompts")
        for text in texts:
            if not {"{1}"} <= set(re.findall(r"\{.*?\}", text)) <= {"{0}", "{1}"}:
                raise damaged(path, f"the prompt {quoted(text)} has not {{0}} and {{1}} for token and class")
    if not classes:
        raise damaged(path, "it names no subject")
    return classes, prompts


def with_class(template: str, word: str) -> str:
    """A prompt with the class word and without the pseudo-token; the article stays as the list has it."""
    return " ".join(template.replace("{0}", " ").replace("{1}", word).split())


def _read(copy: Copy, selection: Selection) -> list[Prompted]:
    classes, prompts = read_classes(copy.list)
    rows = []
    for name, word in classes.items():
        photographs = photographs_in(copy.list.parent / name)
        subject = Subject(name, word, _reference(photographs, name, selection.reference or 0), photographs)
        templates = prompts["live" if word in LIVE_CLASSES else "objects"]
        rows += [Prompted(file_name(name, f"{i:02d}"), name, with_class(template, word), (subject,))
                 for i, template in enumerate(templates)]
    return rows


def photographs_in(folder: "AnyPath") -> "tuple[AnyPath, ...]":
    """All photographs of a subject in their order; the first one's path if there is none, for the message."""
    found = tuple(path for path in listing(folder, "[!.]*") if path.suffix.lower() in _PHOTOGRAPHS)
    return found or (folder / "00.jpg",)


def _reference(photographs: "tuple[AnyPath, ...]", name: str, chosen: int | str) -> "AnyPath":
    if isinstance(chosen, str):
        if chosen != "uno":
            raise ValueError(f"The reference is {quoted(chosen)}; give a number from 0 on, or 'uno' for the "
                             "photographs that UNO's list takes.")
        if name not in UNO_REFERENCES:
            raise ValueError(f"UNO's list has no subject {quoted(name)}; give the reference as a number.")
        number = f"{UNO_REFERENCES[name]:02d}"
        return next((path for path in photographs if path.stem == number), photographs[0].parent / f"{number}.jpg")
    if not 0 <= chosen < len(photographs):
        raise ValueError(f"The reference is photograph {chosen}, counted from 0, but there are {len(photographs)} of "
                         f"{quoted(name)} in {photographs[0].parent}.")
    return photographs[chosen]


DREAMBENCH = Benchmark(
    "dreambench", "DreamBench", "https://github.com/google/dreambooth",
    ("dataset/prompts_and_classes.txt", "prompts_and_classes.txt"), pictures_per_prompt=4, seed=0, read=_read)
