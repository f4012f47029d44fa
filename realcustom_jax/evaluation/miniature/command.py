"""`python -m realcustom_jax.evaluation`: generates held-out cases of four tasks with every method and scores them.

    python -m realcustom_jax.evaluation --model mini --num-subjects 24 --seed 0 --json scores.json --out sheets
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from realcustom_jax.commands.program import check_output_file, path_option
from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.errors import check_choice, exit_code
from realcustom_jax.evaluation.miniature.cases import TASKS, Case, check_request, make_cases, make_exam, paint_bounds
from realcustom_jax.evaluation.miniature.generate import METHODS, Generator
from realcustom_jax.evaluation.miniature.leaks import score_leaks
from realcustom_jax.evaluation.miniature.report import TaskResult, markdown_table, task_sheet, worst_cases
from realcustom_jax.evaluation.miniature.scores import (
    Generated,
    compare,
    distance,
    examine,
    report_leaks,
    report_method,
    score_masks,
    score_pictures,
)
from realcustom_jax.files import png, write_file, write_json
from realcustom_jax.paths import check_reachable, is_bucket
from realcustom_jax.sampling.options import check_options

_EXAM_PICTURES = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `commands.exit_code`."""
    options = _parse(arguments)
    return exit_code(lambda: _run(options), debug=options.debug)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.evaluation",
        description="Scores a miniature on subjects that its training never saw.")
    add = parser.add_argument
    add("--model", default="mini", help="a model folder with a judge, or the bundled one's name")
    add("--adapter", help="file or folder of another adapter than the model's own")
    add("--tasks", default=",".join(TASKS), help="which tasks, with commas between (%(default)s)")
    add("--num-subjects", type=int, default=24, help="each with two prompts")
    add("--seed", type=int, default=0, help="of subjects, prompts and noise")
    add("--batch-size", type=int, default=8, help="cases at a time")
    add("--few-steps", action="store_true", help="load the model's form for few steps")
    add("--steps", type=int, help="of the solver (the preset's)")
    add("--solver", help="one of sample.py's (the preset's)")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 is none (the preset's)")
    add("--methods", default=",".join(METHODS), help="which methods, with commas between (%(default)s)")
    add("--json", type=path_option, help="file to write the scores to")
    add("--out", type=path_option, help="folder to write contact sheets to: one a task, and failures.png")
    add("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    tasks = _check(options)
    generator = dataclasses.replace(
        Generator.load(options.model, options.adapter, few_steps=options.few_steps), steps=options.steps,
        solver=options.solver,
        options={} if options.guidance is None else {
            "guidance_scale": None if options.guidance == 1 else options.guidance})
    methods = _names(options.methods, "method", METHODS)
    size = generator.picture_size
    # Cut-outs keep their resolution in relation to the pictures.
    world = BankConfig(side=size, cut_out=round(size * BankConfig.cut_out / BankConfig.side))
    judge = examine(generator.judge, make_exam(_EXAM_PICTURES, options.seed, world))
    cases = {task: make_cases(task, options.num_subjects, options.seed, world) for task in tasks}
    batch_size = min(options.batch_size, len(cases[tasks[0]]))
    results, entries = {}, {}
    with tqdm(total=len(methods) * sum(map(len, cases.values())), unit="picture", smoothing=0.1) as bar:
        for task in tasks:
            outputs = {}
            for method in methods:
                bar.set_description(f"{task}, {method}")
                outputs[method] = generator.in_batches(cases[task], method, batch_size, bar.update)
            results[task], entries[task] = _score(generator, cases[task], outputs, options.seed, world)
    report = {
        "model": str(options.model), "adapter": options.adapter and str(options.adapter), "seed": options.seed,
        "num_subjects": options.num_subjects, "few_steps": options.few_steps, "steps": options.steps,
        "solver": options.solver, "guidance": options.guidance, "tasks": entries, "judge": judge,
        "seconds": round(time.monotonic() - started)}
    for task, entry in entries.items():
        print(f"\n## {task}\n\n{markdown_table(task, entry)}")
    print("\njudge on painted pictures: " + ", ".join(f"{name} {value:.3f}" for name, value in judge.items()))
    if options.json:
        write_json(options.json, report)
    if options.out:
        for task, result in results.items():
            write_file(options.out / f"{task}.png", png(task_sheet(result)))
        write_file(options.out / "failures.png", png(worst_cases(list(results.values()))))


def _check(options: argparse.Namespace) -> tuple[str, ...]:
    """The tasks, in their own order. Raises ValueError or OSError before the long part for what would fail after it."""
    check_request(options.num_subjects, options.seed)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}; at least 1 is needed.")
    tasks = _names(options.tasks, "task", TASKS)
    _names(options.methods, "method", METHODS)
    check_options(steps=options.steps, solver=options.solver, guidance_scale=options.guidance)
    if options.json is not None:
        check_output_file("--json", options.json)
    if options.out is not None:
        check_reachable(options.out)
        if not is_bucket(options.out) and not options.out.absolute().parent.is_dir():
            raise FileNotFoundError(f"{options.out} cannot be written: the folder {options.out.absolute().parent} does "
                                    "not exist.")
    if options.out is not None and options.out.is_file():
        raise ValueError(f"--out {options.out} is a file; give the name of a folder.")
    return tasks


def _names(asked: str, what: str, known: Sequence[str]) -> tuple[str, ...]:
    """Those that are asked for, with commas between, in their own order. Raises ValueError for one not known."""
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        check_choice(what, name, known)
    return tuple(name for name in known if name in names)


def _score(generator: Generator, cases: Sequence[Case], outputs: dict[str, Generated], seed: int,
           world: BankConfig) -> tuple[TaskResult, dict[str, Any]]:
    """A task's pictures with their scores, and its entry in the report."""
    judge = generator.judge
    scores = {method: score_pictures(judge, cases, made.images) | score_masks(judge, cases, made)
              for method, made in outputs.items()}
    leaks = {method: score_leaks(judge, cases, made.images) for method, made in outputs.items()}
    bounds = paint_bounds(cases, seed, world)
    bounds["same_subject_autoencoded"] = generator.autoencode(bounds["same_subject"])
    others = [method for method in outputs if method != "fused"] if "fused" in outputs else []
    entry = {
        "num_cases": len(cases),
        "methods": {method: report_method(values, cases) | {"leaks": report_leaks(leaks[method], cases)}
                    for method, values in scores.items()},
        "differences": {
            f"fused_minus_{other}": compare(scores["fused"], scores[other], cases) for other in others},
        "distances": {f"fused_from_{other}": distance(outputs["fused"], outputs[other], cases) for other in others},
        "bounds": {name: report_method(score_pictures(judge, cases, images), cases)
                   | {"leaks": report_leaks(score_leaks(judge, cases, images), cases)}
                   for name, images in bounds.items()},
    }
    return TaskResult(cases, outputs, scores), entry
