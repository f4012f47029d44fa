"""`python -m realcustom_jax.evaluation bench`: makes the pictures of a benchmark and scores them by a protocol.

    python -m realcustom_jax.evaluation bench --model MODEL --adapter ADAPTER --benchmark dreambench --data DIR \
        --protocol kosmos_g --clip CLIP --dino DINO --out OUT

The same command again goes on after whatever stopped it; a picture or a score that is there is not made again. Several
processes that share OUT each give --process I/N, or are those of `jax.distributed` where the program that calls `main`
has initialised it. So do several devices of one machine, with a process for each:

    for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i python -m realcustom_jax.evaluation bench … --process $i/4 & done; wait

Module `run` says what is in OUT.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realcustom_jax.commands.program import (
    path_option,
    say,
    say_nothing_of_accelerators,
    share_option,
    warnings_as_sentences,
)
from realcustom_jax.commands.sample_options import add_model_options, load_model
from realcustom_jax.errors import check_choice, exit_code
from realcustom_jax.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from realcustom_jax.evaluation.score.command import add_networks, open_networks

if TYPE_CHECKING:
    from realcustom_jax.evaluation.reports.summary import Scorer

SPRITES = "sprites"
"""The benchmark, and the protocol, of painted pictures: it needs no files but the model's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see module `errors`."""
    options = _parse(arguments)
    say_nothing_of_accelerators()
    from realcustom_jax import interruption
    from realcustom_jax.disk import enough_disk
    from realcustom_jax.memory import enough_memory

    def work() -> None:
        with enough_memory(), enough_disk(options.out):
            _run(options)

    with warnings_as_sentences(say), interruption.raised():
        return exit_code(work, debug=options.debug, report=say)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.evaluation bench",
        description="Makes the pictures of a benchmark, resumably, and scores them by a published protocol.")
    add = parser.add_argument_group("the benchmark").add_argument
    add("--benchmark", required=True, metavar="NAME", help="see docs/benchmarks.md; sprites needs no files")
    add("--data", type=path_option, metavar="DIR", help="folder of your copy of the benchmark's files")
    add("--protocol", metavar="NAME",
        help=f"whose script scores, see docs/benchmarks.md: {', '.join(PROTOCOLS)} (sprites: its own)")
    add("--out", type=path_option, required=True, metavar="DIR", help="folder of pictures, scores and reports")
    add("--subjects", type=int, metavar="K", help="the first K subjects only")
    add("--prompts", type=int, metavar="K", help="the first K prompts of each subject only")
    add("--num-images", type=int, metavar="N", help="pictures of each prompt (as the benchmark says)")
    add("--process", type=share_option, metavar="I/N", help="this is process I of N that share --out")
    add = parser.add_argument_group("how the pictures are made").add_argument
    add("--seed", type=int, help="of the first picture of each prompt (the benchmark's)")
    add("--steps", type=int, help="of the solver (the benchmark's, or else the preset's)")
    add("--solver", help="one of sample.py's (likewise)")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 is none (likewise)")
    add("--width", type=int, help="of the pictures, in pixels (the benchmark's, or else the model's)")
    add("--height", type=int, help="likewise")
    add("--few-steps", action="store_true", help="load the model's form for few steps")
    add_model_options(parser)
    add_networks(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    from realcustom_jax.batch import identity
    from realcustom_jax.commands.sample import LOADED
    from realcustom_jax.evaluation.bench.run import Bench, claim
    from realcustom_jax.evaluation.benchmarks import read_benchmark
    from realcustom_jax.evaluation.reports.published import published
    from realcustom_jax.evaluation.reports.tables import markdown_table

    chosen = _check(options)
    # What is wrong with files is told before a large model loads.
    scorer, about = _scorer(options)
    if options.benchmark == SPRITES:
        claim(options.out, options.benchmark)
    rows = read_benchmark(
        options.benchmark, options.data or options.out / "references", subjects=options.subjects,
        prompts_per_subject=options.prompts, pictures_per_prompt=options.num_images, seed=options.seed)
    say(f"Loading {options.model} …")
    pipeline = load_model(options, few_steps=options.few_steps)
    source = {name: value for name in LOADED if (value := getattr(options, name)) is not None}
    share = _share(options)
    bench = Bench(options.benchmark, about, options.out, chosen, identity(pipeline), share, source)
    report = bench.run(pipeline, rows, scorer, say)
    if report is None:
        say(f"The share {share[0]}/{share[1]} is made and scored; those of other processes are missing. The one that "
            "is the last to finish writes the reports.")
        return
    print(markdown_table(report, published(options.benchmark, options.protocol)))
    say(f"{len(report['rows'])} pictures; look at {options.out / 'report.md'} and {options.out / 'best_and_worst.png'}")


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the pipeline that are given. Raises ValueError or OSError for what can be told without files."""
    from realcustom_jax.contact_sheet import check_folder
    from realcustom_jax.evaluation.bench.run import check_claim
    from realcustom_jax.evaluation.benchmarks import BENCHMARKS
    from realcustom_jax.presets import find_preset
    from realcustom_jax.sampling.options import check_options

    check_choice("benchmark", options.benchmark, BENCHMARKS)
    sprites = options.benchmark == SPRITES
    if options.protocol is None:
        if not sprites:
            raise ValueError(f"--protocol is missing: whose script scores {options.benchmark}; known are "
                             f"{', '.join(PROTOCOLS)}.")
        options.protocol = SPRITES
    check_choice("protocol", options.protocol, [*PROTOCOLS, *([SPRITES] if sprites else [])])
    if options.data is None and not sprites:
        raise ValueError(f"--data is missing: the folder of your copy of {BENCHMARKS[options.benchmark].title}, from "
                         f"{BENCHMARKS[options.benchmark].source}.")
    if options.data is not None and sprites:
        raise ValueError("--data is for benchmarks of photographs; sprites paints its own references, so leave it out.")
    if options.preset is not None:
        find_preset(options.preset)
    choices = {"steps": options.steps, "solver": options.solver, "guidance_scale": options.guidance,
               "width": options.width, "height": options.height}
    check_options(**{name: choices[name] for name in ("steps", "solver", "guidance_scale")})
    check_folder(options.out)
    check_claim(options.out, options.benchmark)
    return {name: value for name, value in choices.items() if value is not None}


def _scorer(options: argparse.Namespace) -> "tuple[Scorer, Protocol]":
    """What scores, and what reports say of it."""
    if options.protocol == SPRITES:
        from realcustom_jax.evaluation.benchmarks.sprites import SpritesScorer
        from realcustom_jax.model_files.source import ModelSource

        judge = Protocol(SPRITES, "the miniature's judge", "realcustom_jax/evaluation/miniature/scores.py", (), ())
        return SpritesScorer.open(ModelSource.open(options.model).root), judge
    protocol = find_protocol(options.protocol)
    found = [metric for metric in protocol.metrics if metric.part != "whole"]
    if len(found) == len(protocol.metrics):
        raise ValueError(f"The protocol {protocol.name} scores only what a detector finds in the pictures: make them "
                         f"with another --protocol, add what it finds to {options.out / 'rows.jsonl'}, and score that "
                         "file by the command score.")
    whole = dataclasses.replace(protocol, metrics=tuple(x for x in protocol.metrics if x not in found))
    scorer = open_networks(whole, options)
    scorer.skipped |= {metric.name: f"{metric.name} is skipped: it needs where the subject is in each picture; add "
                                    "that to rows.jsonl, and score the file by the command score." for metric in found}
    return scorer, protocol


def _share(options: argparse.Namespace) -> tuple[int, int]:
    """Which process this is, of how many: as the command line says, or else as `jax.distributed` does."""
    import jax

    return options.process or (jax.process_index(), jax.process_count())
