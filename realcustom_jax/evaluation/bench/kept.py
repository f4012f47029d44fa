"""Scores that are kept, a small file for each picture, so that a run that was stopped scores the rest alone, and
several processes score their own shares."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from realcustom_jax import __version__
from realcustom_jax.batch import recorded
from realcustom_jax.evaluation.reports.summary import Scorer
from realcustom_jax.evaluation.rows import PictureRow
from realcustom_jax.files import write_json

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath


class KeptScores:
    """A scorer that reads what it, or another process, has scored before.

    `NAME.json` in its folder holds a row's scores and the digest of all that they depend on: the contents of the
    picture and of its references, the words, and the networks. Scores of anything else are made anew.
    """

    def __init__(self, scorer: Scorer, folder: "AnyPath", protocol: str):
        self.metrics, self.skipped, self.networks = scorer.metrics, scorer.skipped, scorer.networks
        self._scorer, self._folder = scorer, folder
        self._about = {"protocol": protocol, "version": __version__, "metrics": scorer.metrics,
                       "networks": scorer.networks}
        self._contents: dict[PurePath, Any] = {}  # of references, which many rows share

    def scores(self, row: PictureRow) -> Mapping[str, float]:
        """The row's scores, kept ones or new ones, which are then kept; errors as of the scorer's."""
        digest = self._digest(row)
        found = self._read(row, digest)
        if found is None:
            found = {name: float(value) for name, value in self._scorer.scores(row).items()}
            write_json(self._file(row), {"of": digest, "scores": found})
        return found

    def has(self, row: PictureRow) -> bool:
        """Whether the row's scores are kept."""
        return row.picture.is_file() and self._read(row, self._digest(row)) is not None

    def _file(self, row: PictureRow) -> "AnyPath":
        return self._folder / f"{row.name}.json"

    def _read(self, row: PictureRow, digest: str) -> dict[str, float] | None:
        try:
            found = json.loads(self._file(row).read_bytes())
            return dict(found["scores"]) if found["of"] == digest else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):  # not written here
            return None

    def _digest(self, row: PictureRow) -> str:
        subjects = [[self._content(x) for x in (*subject.references, *subject.reference_masks, subject.mask)]
                    + [subject.boxes] for subject in row.subjects]
        about = [self._about, recorded(row.picture)["sha256"], row.prompt, subjects, dict(row.facts)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _content(self, path: "AnyPath | None") -> Any:
        if path not in self._contents:
            self._contents[path] = None if path is None else recorded(path)["sha256"]
        return self._contents[path]
