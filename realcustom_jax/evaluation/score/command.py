"""`python -m realcustom_jax.evaluation score`: scores pictures of any system by a published protocol.

    python -m realcustom_jax.evaluation score --pictures DIR --rows rows.jsonl --protocol kosmos_g \
        --clip clip-vit-large-patch14 --dino dino_deitsmall16_pretrain.pth --json scores.json

`rows_file` says what rows.jsonl holds. Nothing is written before all rows are scored.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from realcustom_jax.commands.program import (
    check_output_file,
    path_option,
    say,
    say_nothing_of_accelerators,
    warnings_as_sentences,
)
from realcustom_jax.errors import exit_code
from realcustom_jax.evaluation.protocols import PROTOCOLS, SLOTS, find_protocol

if TYPE_CHECKING:
    from realcustom_jax.evaluation.protocols import Protocol
    from realcustom_jax.evaluation.scorer import ProtocolScorer

def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see module `errors`."""
    options = _parse(arguments)
    say_nothing_of_accelerators()
    from realcustom_jax import interruption
    from realcustom_jax.memory import enough_memory

    def work() -> None:
        with enough_memory():
            _run(options)

    with warnings_as_sentences(say), interruption.raised():
        return exit_code(work, debug=options.debug, report=say)


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The options that name the files of a protocol's networks."""
    add = parser.add_argument_group("networks of the protocol; a metric without its network is skipped").add_argument
    for slot, about in SLOTS.items():
        add(f"--{slot.replace('_', '-')}", type=path_option, metavar="PATH", help=about)


def open_networks(protocol: "Protocol", options: argparse.Namespace) -> "ProtocolScorer":
    """The scorer of a protocol with the files that those options name. Raises ValueError or OSError for files that
    cannot be used, and where no metric is left."""
    from realcustom_jax.evaluation.scorer import open_scorer

    given = {slot: getattr(options, slot) for slot in SLOTS}
    return open_scorer(protocol, {slot: path for slot, path in given.items() if path is not None})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.evaluation score",
        description="Scores pictures of any system by a published protocol.")
    add = parser.add_argument
    add("--pictures", type=path_option, required=True, metavar="DIR", help="folder of the rows' relative paths")
    add("--rows", type=path_option, required=True, metavar="FILE",
        help="JSON lines: picture, prompt, references … (see realcustom_jax/evaluation/score/rows_file.py)")
    add("--protocol", required=True, metavar="NAME",
        help=f"whose script, see docs/benchmarks.md: {', '.join(PROTOCOLS)}")
    add("--json", type=path_option, metavar="FILE", help="to write the scores to")
    add("--csv", type=path_option, metavar="FILE", help="to write a table of all rows to")
    add("--sheet", type=path_option, metavar="FILE", help="to write the best and the worst pictures to, as PNG")
    add_networks(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    from realcustom_jax.evaluation.reports.summary import goodness, score_rows, shown_path, summarize
    from realcustom_jax.evaluation.reports.tables import markdown_table, scores_csv
    from realcustom_jax.evaluation.score.rows_file import read_rows
    from realcustom_jax.files import write_file, write_json
    from realcustom_jax.paths import is_bucket

    protocol = find_protocol(options.protocol)
    for name in ("json", "csv", "sheet"):
        if (path := getattr(options, name)) is not None:
            check_output_file(f"--{name}", path)
    if not (is_bucket(options.pictures) or options.pictures.is_dir()):
        raise ValueError(f"--pictures {options.pictures} is no folder; give the one that the rows' paths start from.")
    rows = read_rows(options.rows, options.pictures)
    scorer = open_networks(protocol, options)
    scored = score_rows(scorer, rows)
    report = summarize(scorer, protocol, scored, lambda row: shown_path(row.picture, options.pictures))
    if options.json is not None:
        write_json(options.json, report)
    if options.csv is not None:
        write_file(options.csv, scores_csv(report, list(report["metrics"])).encode())
    if options.sheet is not None:
        from realcustom_jax.evaluation.reports.sheet import best_and_worst
        from realcustom_jax.files import png

        write_file(options.sheet, png(best_and_worst(scored, goodness(scorer, scored), scorer.metrics)))
    print(markdown_table(report))
