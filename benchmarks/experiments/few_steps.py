"""What a model's form for a few steps keeps of the model itself, and how fast it is: docs/evidence.md, "Four steps".

    python -m benchmarks.experiments.few_steps --out runs/few_steps               # resumable: a row is a file
    python -m benchmarks.experiments.few_steps --out runs/few_steps --report      # the tables, from the files
    python -m benchmarks.experiments.few_steps --time                             # the loop of one picture

Every row makes the same cases from the same noise, so that what a row keeps is a ratio of paired scores.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from realcustom_jax.evaluation.intervals import mean_with_interval, ratio_with_interval
from realcustom_jax.evaluation.miniature.cases import TASKS, make_cases
from realcustom_jax.evaluation.miniature.generate import Generator
from realcustom_jax.evaluation.miniature.report import number_cells
from realcustom_jax.evaluation.miniature.scores import METRICS, score_masks, score_pictures
from realcustom_jax.files import png, write_file, write_json
from realcustom_jax.sampling.options import seeded_noise
from realcustom_jax.sampling.sampler import sample_latents


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to make pictures: with the form for a few steps or not, and what else differs from its preset."""

    name: str
    few_steps: bool
    method: str
    preset: dict[str, Any] = dataclasses.field(default_factory=dict)


_PLAIN = {"steps": 4, "solver": "ddim", "freeze_mask_step": 2}
ROWS = (
    Row("25 steps", False, "fused"),
    Row("4 steps distilled, sequential", True, "sequential"),
    Row("4 steps distilled, fused", True, "fused"),
    Row("4 steps not distilled", False, "sequential", _PLAIN),
    Row("4 steps not distilled, no guidance", False, "sequential", _PLAIN | {"guidance_scale": 1.0}),
)
"""The first is what the others are compared with."""


def generator_of(row: Row, model: str) -> Generator:
    generator = Generator.load(model, few_steps=row.few_steps)
    preset = dataclasses.replace(generator.pipeline.preset, **row.preset)
    return dataclasses.replace(generator, pipeline=dataclasses.replace(generator.pipeline, preset=preset))


def make_rows(options: argparse.Namespace) -> None:
    """Scores every row that is not there yet, case by case, and keeps its first pictures as a strip."""
    cases = {task: make_cases(task, options.num_subjects, options.seed) for task in TASKS}
    for row in tqdm(ROWS, desc="rows", unit="row"):
        file = options.out / f"{row.name.replace(' ', '_').replace(',', '')}.json"
        if file.is_file():
            continue
        generator, scores = generator_of(row, options.model), {}
        for task in TASKS:
            made = generator.in_batches(cases[task], row.method, options.batch_size)
            found = score_pictures(generator.judge, cases[task], made.images)
            found |= score_masks(generator.judge, cases[task], made)
            scores[task] = {name: found[name].tolist() for name in METRICS[task]}
            strip = Image.fromarray(np.concatenate(made.images[:24:2], axis=1))
            write_file(file.with_suffix(f".{task}.png"), png(strip))
        write_json(file, {"row": dataclasses.asdict(row), "seed": options.seed, "scores": scores,
                          "subjects": {task: [case.subject for case in cases[task]] for task in TASKS}})


def report(folder: Path) -> str:
    """A table for each task: the scores, and what share of the first row's the others keep."""
    found = {row["row"]["name"]: row for row in (json.loads(file.read_text()) for file in folder.glob("*.json"))}
    rows, lines = [found[row.name] for row in ROWS if row.name in found], []
    for task in TASKS:
        titles = " | ".join(f"{name.replace('_', ' ')} | ±" for name in METRICS[task])
        lines += ["", f"| {task} | {titles} | similarity kept | control kept |",
                  "|---|" + "--:|" * 2 * len(METRICS[task]) + "--:|--:|"]
        for row in rows:
            scores, subjects = ({name: np.array(x) for name, x in row["scores"][task].items()},
                                np.array(row["subjects"][task]))
            cells = [number_cells(mean_with_interval(scores[name], subjects)) for name in METRICS[task]]
            for name in ("subject_similarity", "text_controllability"):
                kept = ratio_with_interval(scores[name], np.array(rows[0]["scores"][task][name]), subjects)
                low, high = kept["ci95"]
                cells.append("" if row is rows[0] else f"{kept['value']:.3f} [{low:.2f}, {high:.2f}]")
            lines.append(f"| {row['row']['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled_loops(model: str) -> dict[str, Callable[[], Any]]:
    """The sampling loop of one picture for each row, without encoders and decoder: functions that have run once."""
    loops = {}
    for row in ROWS:
        pipeline = generator_of(row, model).pipeline
        preset, size = pipeline.preset, pipeline.sizes.native
        picture, prompt = np.full((size, size, 3), 0.5, np.float32), "a dog on the beach"
        vision, nothing = (x[None, None] for x in pipeline.encode_references([picture, np.zeros_like(picture)]))
        positive = pipeline.encode_prompts(prompt)
        negative = pipeline.encode_negative(None, positive).replace(vision=nothing)
        marks = jnp.asarray(pipeline.mark_targets(prompt, ["dog"]))[None]
        sample = jax.jit(functools.partial(
            sample_latents, pipeline.unet.module, solver=pipeline.make_solver(preset.steps, preset.solver),
            guidance_scale=None if preset.guidance_scale == 1 else preset.guidance_scale, branches=row.method,
            mask=preset.mask_config(*pipeline.latent_shape()[:2]), freeze_mask_step=preset.freeze_mask_step))
        inputs = (pipeline.unet.params, seeded_noise(0, 1, pipeline.latent_shape()), positive.replace(vision=vision),
                  negative, marks)
        loops[row.name] = functools.partial(_finished, sample, *inputs)
        loops[row.name]()
    return loops


def _finished(function: Callable[..., Any], *inputs) -> Any:
    return jax.block_until_ready(function(*inputs))


def time_loops(loops: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run, the rows in turns, so that whatever else the machine does meets all of them."""
    seconds = {name: [] for name in loops}
    for _ in range(runs):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the rows")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--num-subjects", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--report", action="store_true", help="print the tables of the rows that are there")
    parser.add_argument("--time", type=int, nargs="?", const=50, help="time the loop instead, so many times")
    options = parser.parse_args()
    if options.time:
        for name, seconds in time_loops(compiled_loops(options.model), options.time).items():
            print(f"{name:40}{statistics.median(seconds):8.4f} s, least {min(seconds):.4f}")
        return
    if not options.out:
        parser.error("--out is missing: the folder of the rows")
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        make_rows(options)
    print(report(options.out))


if __name__ == "__main__":
    main()
