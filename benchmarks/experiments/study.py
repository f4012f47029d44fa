"""The study behind docs/evidence.md: what each claim of the paper is worth on the miniature, row by row.

    python -m benchmarks.experiments.study --out runs/study                 # every row, resumable: a row is a file
    python -m benchmarks.experiments.study --out runs/study --report docs/evidence.md
    python -m benchmarks.experiments.study --out runs/study --groups further --differences-from unchanged

A row is one way to sample (or one adapter), on the cases of one task; its scores are kept case by case, so that rows
are compared on the same cases. Adapters that a row needs are trained by `train_adapters` and given as
`--adapters FOLDER`, with a folder for each name; rows whose adapter is not there are left out, and the report says so.
"""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.experiments.study_report import TITLES, differences, write_report
from benchmarks.experiments.train_adapters import ADAPTERS, ANEW, FURTHER
from realcustom_jax.evaluation.miniature.cases import TASKS, make_cases
from realcustom_jax.evaluation.miniature.generate import Generator
from realcustom_jax.evaluation.miniature.scores import METRICS, score_masks, score_pictures
from realcustom_jax.files import write_json
from realcustom_jax.model_files.network import Network
from realcustom_jax.sampling.masks import SHARING
from realcustom_jax.sampling.options import SHARED_REFERENCES


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: what differs from the model's own preset.

    preset: choices that are replaced. overlap: how several references share a picture. vision: the strength of the
    visual term. adapter: of `ADAPTERS`, `FURTHER` or `ANEW`, or the bundled one.
    """

    group: str
    name: str
    tasks: tuple[str, ...]
    method: str = "fused"
    preset: dict[str, Any] = dataclasses.field(default_factory=dict)
    overlap: str | None = None
    vision: float = 1.0
    adapter: str | None = None


_ONE, _TWO, _BOTH, _THREE = ("one", "bystander"), ("bystander",), ("bystander", "many"), ("one", "bystander", "many")


def settings() -> list[Setting]:
    """All rows; the first is what the others differ from."""
    rows = [Setting("baseline", "the miniature's preset", _THREE), Setting("baseline", "no mask", _THREE, "no_mask"),
            Setting("baseline", "sequential", _THREE, "sequential")]
    rows += [Setting("scope", f"soft {scope}", _ONE, preset={"scope": scope, "binary": False})
             for scope in (0.1, 0.25, 0.4, 1.0)]
    rows += [Setting("scope", f"binary {scope}", _ONE, preset={"scope": scope, "binary": True})
             for scope in (0.1, 0.25, 0.4)]
    rows += [Setting("scope", "binary 1.0", _ONE, "no_mask")]
    rows += [Setting("mask", f"normalised by {normalize}", _TWO, preset={"normalize": normalize, "binary": False})
             for normalize in ("max_norm", "min_max_norm", "min_max_per_channel")]
    rows += [Setting("mask", f"refined at 1/{refine} of the latents" if refine else "not refined", _BOTH,
                     preset={"refine": refine}) for refine in (0, 1, 2)]
    rows += [Setting("mask", f"at least {1 - scope:g} of the strongest", _BOTH,
                     preset={"select": "threshold", "scope": scope}) for scope in (0.5, 0.7, 0.85)]
    rows += [Setting("freeze", f"from step {step}", _TWO, preset={"freeze_mask_step": step}) for step in (1, 6, 12, 25)]
    rows += [Setting("guidance", f"scale {scale}", _TWO, preset={"guidance_scale": scale})
             for scale in (1.5, 3.5, 5.0, 7.5)]
    rows += [Setting("strength", f"visual term x {vision}", _ONE, vision=vision) for vision in (0.5, 1.0, 1.5)]
    rows += [Setting("sharing", way, ("many",), overlap=way) for way in ("sum", *SHARING)]
    rows += [Setting("shared", way, ("one2many",), preset={"shared_reference": way}) for way in SHARED_REFERENCES]
    # Whether a word chooses within the whole of a reference is what training decides.
    whole = {"shared_reference": "whole"}
    rows += [Setting("training", "the bundled one: curriculum", TASKS, preset=whole)]
    rows += [Setting("training", name, TASKS, preset=whole, adapter=name) for name in ADAPTERS]
    for group, names in (("further", FURTHER), ("anew", ANEW)):
        rows += [Setting(group, name.removeprefix(f"{group}/"), TASKS, preset=whole, adapter=name) for name in names]
    return rows


def arranged(generator: Generator, setting: Setting) -> Generator:
    """The generator of a row."""
    pipeline = generator.pipeline
    preset = dataclasses.replace(
        pipeline.preset, **setting.preset, **({"overlap": setting.overlap} if setting.overlap else {}))
    unet = pipeline.unet
    if setting.vision != 1:
        def scaled(path, leaf):
            return leaf * setting.vision if any(getattr(p, "key", "") == "to_v_vision" for p in path) else leaf

        unet = Network(unet.module, jax.tree_util.tree_map_with_path(scaled, unet.params))
    return dataclasses.replace(generator, pipeline=dataclasses.replace(pipeline, preset=preset, unet=unet))


def row_files(folder: Path, groups: Sequence[str] | None = None) -> list[tuple[Setting, str, Path]]:
    """(row, task, its file, there or not) of every row, or of those of the groups, in their order."""
    return [(setting, task, folder / re.sub(r"[^\w.-]+", "_", f"{setting.group}.{setting.name}.{task}.json"))
            for setting in settings() if not groups or setting.group in groups for task in setting.tasks]


def pending(folder: Path, adapters: Path | None, groups: Sequence[str] | None) -> list[tuple[Setting, str, Path]]:
    """Those that have not been made yet, and whose adapter is there."""
    return [(setting, task, file) for setting, task, file in row_files(folder, groups) if not file.is_file() and (
        setting.adapter is None or (adapters and (adapters / setting.adapter).is_dir()))]


def read_rows(folder: Path, groups: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What has been made, in the order of `settings`."""
    return [json.loads(file.read_bytes()) for *_, file in row_files(folder, groups) if file.is_file()]


def check_same(folder: Path, of_all: Mapping[str, Any]) -> None:
    """Raises ValueError if a row in the folder was made of other cases, or from another preset of the model, than
    `of_all` says: it would be compared with those that come."""
    for row in read_rows(folder):
        for name, value in of_all.items():
            found = row.get("of_all", {}).get(name)
            if found != value:
                raise ValueError(f"{folder} holds rows of another study: their {name} is {found}, not {value}; give "
                                 "another folder, or the same model and options.")


def run_study(options: argparse.Namespace) -> None:
    """Makes every row that is not there yet."""
    options.out.mkdir(parents=True, exist_ok=True)
    generators = {None: Generator.load(options.model)}
    of_all = {"num_subjects": options.num_subjects, "seed": options.seed,
              **dataclasses.asdict(generators[None].pipeline.preset)}
    check_same(options.out, of_all)
    cases = {task: make_cases(task, options.num_subjects, options.seed) for task in TASKS}
    todo = pending(options.out, options.adapters, options.groups)
    alike: dict[tuple, dict[str, np.ndarray]] = {}  # a preset's own choice stands in several groups
    for setting, task, file in tqdm(todo, desc="rows", unit="row"):
        if setting.adapter not in generators:
            generators[setting.adapter] = Generator.load(options.model, options.adapters / setting.adapter)
        generator = arranged(generators[setting.adapter], setting)
        started = time.monotonic()
        what = task, setting.method, generator.pipeline.preset, setting.vision, setting.adapter
        if what not in alike:
            made = generator.in_batches(cases[task], setting.method, options.batch_size)
            alike[what] = score_pictures(generator.judge, cases[task], made.images)
            alike[what] |= score_masks(generator.judge, cases[task], made)
        write_json(file, {
            **{name: getattr(setting, name) for name in ("group", "name", "method", "preset", "overlap", "vision",
                                                         "adapter")},
            "of_all": of_all, "task": task, "subjects": [case.subject for case in cases[task]],
            "scores": {name: np.round(values, 4).tolist() for name, values in alike[what].items()
                       if name in METRICS[task] or name in ("primary", "secondary", "pattern", "accessory", "build")},
            "seconds": round(time.monotonic() - started, 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapters", type=Path, help="folder of adapters that were trained for rows")
    parser.add_argument("--groups", nargs="*", choices=list(TITLES), help="only rows of these groups; all by default")
    parser.add_argument("--num-subjects", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1, help="not the evaluation's 0: choices are made by this table")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--report", type=Path, help="Markdown file to write from the rows, instead of making any")
    parser.add_argument("--differences-from", metavar="ROW", help="instead of making rows, prints how far the others "
                        "of each group are from this one, paired over subjects")
    options = parser.parse_args()
    rows = read_rows(options.out, options.groups)
    if options.report:
        write_report(rows, options.report)
    elif options.differences_from:
        print(differences(rows, options.differences_from))
    else:
        run_study(options)


if __name__ == "__main__":
    main()
