"""`python -m realcustom_jax.evaluation`: generates held-out cases with every method and writes the scores."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from realcustom_jax.evaluation.cases import Case, make_cases, make_exam, paint_bounds
from realcustom_jax.evaluation.generate import METHODS, Generator
from realcustom_jax.evaluation.report import contact_sheet, markdown_table
from realcustom_jax.evaluation.scores import (
    Generated,
    compare,
    distance,
    examine,
    report_method,
    score_masks,
    score_pictures,
)
from realcustom_jax.files import png, write_file, write_json

_EXAM_PICTURES = 512
_SHEET_ROWS, _FAILURES = 12, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 0, or 2 after one sentence on stderr."""
    options = _parse(arguments)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.evaluation",
        description="Scores a miniature on subjects that its training never saw.")
    parser.add_argument("--model", default="mini", help="a model folder with a judge, or the bundled one's name")
    parser.add_argument("--num-subjects", type=int, default=24, help="each with two prompts")
    parser.add_argument("--seed", type=int, default=0, help="of subjects, prompts and noise")
    parser.add_argument("--batch-size", type=int, default=8, help="cases at a time")
    parser.add_argument("--json", type=Path, help="file to write the scores to")
    parser.add_argument("--out", type=Path, help="folder to write contact sheets to")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}; at least 1 is needed.")
    _check_outputs(options.json, options.out)
    cases = make_cases(options.num_subjects, options.seed)
    generator = Generator.load(options.model)
    outputs = _generate(generator, cases, min(options.batch_size, len(cases)))
    scores = {
        method: score_pictures(generator.judge, cases, made.images) | score_masks(generator.judge, made)
        for method, made in outputs.items()}
    bounds = paint_bounds(cases, options.seed)
    bounds["same_subject_autoencoded"] = generator.autoencode(bounds["same_subject"])
    report = {
        "model": str(options.model),
        "seed": options.seed,
        "num_subjects": options.num_subjects,
        "num_cases": len(cases),
        "methods": {method: report_method(values, cases) for method, values in scores.items()},
        "fused_minus": {other: compare(scores["fused"], scores[other], cases) for other in METHODS[:-1]},
        "fused_from": {other: distance(outputs["fused"], outputs[other], cases) for other in METHODS[:-1]},
        "bounds": {
            name: report_method(score_pictures(generator.judge, cases, images), cases)
            for name, images in bounds.items()},
        "judge": examine(generator.judge, make_exam(_EXAM_PICTURES, options.seed)),
        "seconds": round(time.monotonic() - started),
    }
    print(markdown_table(report))
    print("\njudge on painted pictures: " + ", ".join(f"{name} {value:.3f}" for name, value in report["judge"].items()))
    apart = report["fused_from"]["sequential"]
    print("fused from sequential: " + ", ".join(f"{name} {entry['value']:.3f}" for name, entry in apart.items()))
    if options.json:
        write_json(options.json, report)
    if options.out:
        similarity = scores["fused"]["subject_similarity"]
        first = [i for i, case in enumerate(cases) if i == 0 or case.subject != cases[i - 1].subject][:_SHEET_ROWS]
        worst = np.argsort(similarity, kind="stable")[:_FAILURES]
        _write_png(options.out / "contact_sheet.png", contact_sheet(cases, outputs, first, similarity))
        _write_png(options.out / "failures.png", contact_sheet(cases, outputs, worst, similarity))


def _generate(generator: Generator, cases: Sequence[Case], batch_size: int) -> dict[str, Generated]:
    outputs = {}
    with tqdm(total=len(METHODS) * len(cases), unit="image", desc="generating") as bar:
        for method in METHODS:
            bar.set_postfix_str(method)
            parts = []
            for start in range(0, len(cases), batch_size):
                batch = cases[start:start + batch_size]
                # The last batch is filled up, so that one compilation serves all.
                full = [*batch, *[batch[-1]] * (batch_size - len(batch))]
                made = generator(full, method)
                parts.append({name: value[:len(batch)] for name, value in vars(made).items()})
                bar.update(len(batch))
            outputs[method] = Generated(**{k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    return outputs


def _check_outputs(file: Path | None, folder: Path | None) -> None:
    """Before the long part, what would fail after it."""
    for path in (file, folder):
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: the folder {path.absolute().parent} does not exist.")
    if file is not None and file.is_dir():
        raise ValueError(f"--json {file} is a folder; give the name of a file.")
    if folder is not None and folder.is_file():
        raise ValueError(f"--out {folder} is a file; give the name of a folder.")


def _write_png(path: Path, picture: Image.Image) -> None:
    write_file(path, png(picture))
