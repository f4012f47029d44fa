"""Scores of pictures by a protocol: `open_scorer(protocol, files).scores(row)`."""

from collections.abc import Mapping
from typing import Any

from realcustom_jax.evaluation.protocols import Protocol
from realcustom_jax.evaluation.rows import PictureRow


class Scorer:
    """An opened protocol.

    Attributes:
        protocol: which. metrics: that are scored, in the protocol's order.
        skipped: metric → one sentence why it is not. networks: slot → a JSON record of the file that is used.
    """

    protocol: Protocol
    metrics: tuple[str, ...]
    skipped: dict[str, str]
    networks: dict[str, Any]

    def scores(self, row: PictureRow) -> dict[str, float]:
        """Metric → the picture's score, unrounded. Raises ValueError or OSError that names the row."""
        raise NotImplementedError


def open_scorer(protocol: str | Protocol, files: Mapping[str, Any]) -> Scorer:
    """Opens the networks of a protocol from files by slot (`protocols.SLOTS`)."""
    raise NotImplementedError
