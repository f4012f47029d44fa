"""From a benchmark's rows to pictures, their scores and the reports.

    OUT/benchmark.json        which benchmark the folder is of
        pictures/             NAME.png, or NAME-0.png, NAME-1.png …, and NAME.json, as module `batch` writes them
        scored/PROTOCOL/      each picture's scores, see `kept`
        references/           where the benchmark paints its own
        scores.json, scores.csv, report.md, best_and_worst.png
        rows.jsonl            the pictures as the command `score` reads them, to be scored by another protocol

Row i belongs to process i mod N, which makes and scores its pictures. The process that finds everything there when it
has done its share writes the reports; two that do so at the same time write the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from PIL import Image

from realcustom_jax import batch
from realcustom_jax.evaluation.bench.kept import KeptScores
from realcustom_jax.evaluation.reports.published import published
from realcustom_jax.evaluation.reports.sheet import best_and_worst
from realcustom_jax.evaluation.reports.summary import Scored, Scorer, goodness, score_rows, shown_path, summarize
from realcustom_jax.evaluation.reports.tables import report_page, scores_csv
from realcustom_jax.evaluation.rows import BenchmarkRow, ComparedSubject, PictureRow
from realcustom_jax.files import clear_leftovers, png, user_of_share, write_file, write_json
from realcustom_jax.paths import is_bucket, listing, local_copy, make_folder

if TYPE_CHECKING:
    from realcustom_jax.evaluation.protocols import Protocol
    from realcustom_jax.paths import AnyPath
    from realcustom_jax.pipeline import Pipeline


_REPORTS = "scores.json", "scores.csv", "report.md", "rows.jsonl", "best_and_worst.png"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is to be made and scored, and where.

    Attributes:
        benchmark: its name. protocol: what reports say of the scorer. out: the folder.
        share: (I, N), this is process I of N.
        options: of the pipeline, JSON values, that go before what the benchmark prescribes.
        identity: of the pipeline, see `batch.identity`. source: where it was loaded from, for the reader.
    """

    benchmark: str
    protocol: "Protocol"
    out: "AnyPath"
    options: Mapping[str, Any]
    identity: Mapping[str, Any]
    share: tuple[int, int] = (0, 1)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, pipeline: "Pipeline", rows: Sequence[BenchmarkRow], scorer: Scorer,
            report: Callable[[str], None]) -> dict[str, Any] | None:
        """Makes and scores the pictures of this process's share, then writes the reports if nothing is missing.

        Args:
            report: told a line about each row that failed.
        Returns:
            What scores.json holds; None where pictures or scores of other processes are missing.
        Raises:
            OSError, ValueError: the folder holds something else or is in use, a row could not be made, or a picture or
                a reference cannot be scored. What is finished is kept.
        """
        number, of = self.share
        claim(self.out, self.benchmark)
        with user_of_share(self.out, number, of):
            calls = [self._call(row) for row in rows]
            made = batch.run_batch(pipeline, calls, self._pictures, options={}, loaded=self.identity,
                                   source=self.source, report=report, share=self.share)
            if made.failed:
                raise ValueError(f"{made.failed} of {len(calls[number::of])} rows could not be made, as told above; a "
                                 "mean that leaves them out would be another benchmark's, so nothing is reported.")
            pictures = [self._scored_rows(row, call) for row, call in zip(rows, calls, strict=True)]
            own = list(chain.from_iterable(pictures[number::of]))
            scored = self.out / "scored" / self.protocol.name
            clear_leftovers(scored, [f"{row.name}.json" for row in own])
            kept = KeptScores(scorer, scored, self.protocol.name)
            score_rows(kept, own)
            everything = list(chain.from_iterable(pictures))
            if of > 1 and (batch.unfinished(calls, self._pictures, options={}, loaded=self.identity)
                           or not all(map(kept.has, everything))):
                return None
            seeds = [row.seed for row, some in zip(rows, pictures, strict=True) for _ in some]
            clear_leftovers(self.out, _REPORTS)
            return self._write(scorer, seeds, Scored(everything, [kept.scores(row) for row in everything]))

    @property
    def _pictures(self) -> "AnyPath":
        return self.out / "pictures"

    @property
    def _name(self) -> str:
        """What reports call the model: the last parts of its paths, which a copy elsewhere has too."""
        paths = [str(self.source[key]) for key in ("model", "adapter") if key in self.source]
        return " with ".join(path.rstrip("/").rpartition("/")[2] for path in paths)

    def _call(self, row: BenchmarkRow) -> batch.Row:
        options = {**row.options, **self.options, "seed": row.seed}
        return batch.Row(self._where(row), row.name, row.prompt, tuple(subject.phrase for subject in row.subjects),
                         tuple(subject.reference for subject in row.subjects), options)

    def _where(self, row: BenchmarkRow) -> str:
        return f"{self.benchmark}, row {row.name}"

    def _scored_rows(self, row: BenchmarkRow, call: batch.Row) -> list[PictureRow]:
        subjects = tuple(ComparedSubject(subject.compared, subject.compared_masks) for subject in row.subjects)
        prompt = row.prompt if row.scored_prompt is None else row.scored_prompt
        return [PictureRow(self._where(row), file.removesuffix(".png"), self._pictures / file, prompt, subjects,
                           row.group, row.part, row.facts) for file in batch.pictures_of(call, {})]

    def _write(self, scorer: Scorer, seeds: Sequence[int], scored: Scored) -> dict[str, Any]:
        """Writes the reports; returns what scores.json holds."""
        report = {
            "benchmark": self.benchmark, "name": self._name, "dtype": self.source.get("dtype"),
            "options": dict(self.options), "sizes": sorted({_size(row.picture) for row in scored.rows}),
            "model": dict(self.identity),
            **summarize(scorer, self.protocol, scored, lambda row: shown_path(row.picture, self.out))}
        report = json.loads(json.dumps(report))
        for row, seed in zip(report["rows"], seeds, strict=True):
            row["seed"] = seed
        page = report_page(report, published(self.benchmark, self.protocol.name))
        sheet = best_and_worst(scored, goodness(scorer, scored), scorer.metrics)
        contents = (json.dumps(report, indent=2) + "\n", scores_csv(report, list(report["metrics"])), page,
                    "".join(_line(row, self._pictures) for row in scored.rows))
        for name, content in zip(_REPORTS, (*(text.encode() for text in contents), png(sheet)), strict=True):
            write_file(self.out / name, content)
        return report


def claim(out: "AnyPath", benchmark: str) -> None:
    """Makes a folder that of a benchmark; errors as of `check_claim`, which then change nothing."""
    if not check_claim(out, benchmark):
        make_folder(out)
        write_json(out / "benchmark.json", {"benchmark": benchmark})


def check_claim(out: "AnyPath", benchmark: str) -> bool:
    """Whether a folder is already that of a benchmark. Raises ValueError where it is another's, or holds what is of
    none."""
    marker = out / "benchmark.json"
    if not marker.is_file():
        if others := [file.name for file in listing(out) if not file.name.startswith(".")]:
            raise ValueError(f"{out} holds {others[0]!r} and is no folder of this command, which would have a "
                             "benchmark.json; choose another --out.")
        return False
    try:
        found = json.loads(marker.read_bytes())["benchmark"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{marker} was not written by this command; choose another --out.") from None
    if found != benchmark:
        raise ValueError(f"{out} holds pictures of the benchmark {found!r}, not of {benchmark!r}; choose another "
                         "--out.")
    return True


def _size(picture: "AnyPath") -> str:
    with Image.open(local_copy(picture)) as image:
        return f"{image.width} x {image.height}"


def _line(row: PictureRow, folder: "AnyPath") -> str:
    """The row as a line that the command `score` reads, with paths relative to the pictures where there can be such."""
    def path(file: "AnyPath") -> str:
        return os.fspath(file) if is_bucket(file) or is_bucket(folder) else os.path.relpath(file, folder)

    line = {"picture": path(row.picture), "prompt": row.prompt, "name": row.name, "subject": row.group,
            "references": [list(map(path, subject.references)) for subject in row.subjects]}
    if row.part:
        line["part"] = row.part
    if all(subject.reference_masks for subject in row.subjects):
        line["reference_masks"] = [list(map(path, subject.reference_masks)) for subject in row.subjects]
    return json.dumps(line, ensure_ascii=False) + "\n"
