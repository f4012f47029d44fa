"""Scores of pictures by a protocol, from the user's own copies of its networks.

    scorer = open_scorer("kosmos_g", {"clip": "clip-vit-large-patch14", "dino": "dino_deitsmall16_pretrain.pth"})
    scorer.metrics, scorer.skipped             # what will be scored, and why the rest will not
    scorer.scores(row)                         # {"clip_t": 0.2871…, …}
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from realcustom_jax.errors import check_choice
from realcustom_jax.evaluation import reward
from realcustom_jax.evaluation.encoders import ClipEncoder, DinoEncoder, open_encoder
from realcustom_jax.evaluation.preprocessing import cut_out, detections, read_mask, read_picture
from realcustom_jax.evaluation.protocols import SLOTS, Metric, Protocol, find_protocol
from realcustom_jax.evaluation.rows import ComparedSubject, PictureRow

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

Encoders = Mapping[str, ClipEncoder | DinoEncoder | reward.Reward]


class ProtocolScorer:
    """An opened protocol. References and prompts repeat from row to row: what the networks make of them is kept.

    Attributes:
        protocol: which.
        metrics: that are scored, in the protocol's order.
        skipped: metric → one sentence why it is not scored.
        networks: slot → a JSON record of what is used (module `encoders`).
    """

    def __init__(self, protocol: Protocol, encoders: Encoders, skipped: Mapping[str, str]):
        self.protocol, self.skipped, self._encoders = protocol, dict(skipped), encoders
        self._metrics = [metric for metric in protocol.metrics if metric.name not in skipped]
        self.metrics = tuple(metric.name for metric in self._metrics)
        self.networks = {slot: encoder.record for slot, encoder in encoders.items()}
        self._reference = functools.cache(self._compute_reference)
        self._text = functools.cache(lambda slot, prompt: encoders[slot].text(prompt))

    def scores(self, row: PictureRow) -> dict[str, float]:
        """A picture's scores.

        Returns:
            Metric → score, unrounded, in the order of `metrics`.
        Raises:
            ValueError, OSError: a picture cannot be read, or the row lacks masks or boxes that the protocol compares;
                one sentence that begins with `row.where`.
        """
        try:
            with jax.default_matmul_precision("highest"):
                return self._scores(row)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{row.where}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
        except OSError as error:
            raise OSError(f"{row.where}: {error}") from error

    def _scores(self, row: PictureRow) -> dict[str, float]:
        image = read_picture(row.picture, self.protocol)
        whole = functools.cache(lambda slot: self._encoders[slot].picture(image))
        raw = functools.cache(lambda: self._encoders["image_reward"].score(row.prompt, image.convert("RGB")))
        scores = {}
        for metric in self._metrics:
            if metric.compared == "reward":
                value = reward.normalised(raw()) if metric.normalised else raw()
            elif metric.compared == "prompt":
                value = float(whole(metric.network) @ self._text(metric.network, row.prompt))
            else:
                value = float(np.mean([self._likeness(metric, subject, image, whole) for subject in row.subjects]))
            scores[metric.name] = metric.scale * (value if metric.floor is None else max(value, metric.floor))
        return scores

    def _likeness(self, metric: Metric, subject: ComparedSubject, image: Image.Image,
                  whole: Callable[[str], np.ndarray]) -> float:
        """The mean cosine over a subject's references."""
        slot = metric.network
        masks: Sequence[AnyPath | None] = [None] * len(subject.references)
        if metric.part == "mask":
            masks = _masks(subject)
            seen = [self._encoders[slot].picture(self._alone(image, subject))]
        elif metric.part == "boxes":
            if subject.boxes is None:
                raise ValueError(f"the protocol {self.protocol.name} compares the places where a subject was found, "
                                 "and a subject of this row has no boxes; add them, or an empty list for a subject "
                                 "that was looked for and not found.")
            found = detections(self._alone(image, subject) if subject.mask else image, subject.boxes, self.protocol)
            seen = [self._encoders[slot].picture(one) for one in found]
            if not seen:
                return 0.0
        else:
            seen = [whole(slot)]
        references = [self._reference(slot, *pair) for pair in zip(subject.references, masks, strict=True)]
        return float(np.mean([max(float(one @ reference) for one in seen) for reference in references]))

    def _alone(self, image: Image.Image, subject: ComparedSubject) -> Image.Image:
        return cut_out(image, read_mask(subject.mask, image.size), self.protocol.paper)

    def _compute_reference(self, slot: str, file: "AnyPath", mask: "AnyPath | None") -> np.ndarray:
        image = read_picture(file, self.protocol)
        if mask is not None:
            image = cut_out(image, read_mask(mask, image.size), self.protocol.paper)
        return self._encoders[slot].picture(image)


def open_scorer(protocol: str | Protocol, files: Mapping[str, "AnyPath | str"]) -> ProtocolScorer:
    """Opens a protocol's networks.

    A metric whose network is not given, or whose package is not installed, is skipped. A network that is not the one
    that the protocol names is used, with a warning.

    Args:
        protocol: a name of `PROTOCOLS`, or one of your own.
        files: by slot (`protocols.SLOTS`): folders of CLIPs; weight files or folders of DINOs; ImageReward.pt. Slots
            that the protocol does not use are left alone.
    Raises:
        FileNotFoundError, ValueError: an unknown protocol or slot; a file is missing, damaged or does not fit; or not
            one metric is left. One sentence.
    """
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    for slot in files:
        check_choice("network", slot, SLOTS)
    reasons = {network.slot: reason for network in protocol.networks if (reason := _missing(network.slot, files))}
    skipped = {metric.name: f"{metric.name} is skipped: {reasons[metric.network]}"
               for metric in protocol.metrics if metric.network in reasons}
    if len(skipped) == len(protocol.metrics):
        wanted = "; ".join(f"{network.slot}: {network.published}" for network in protocol.networks)
        raise ValueError(f"The protocol {protocol.name} scores nothing without its networks; give one of them at least "
                         f"({wanted}).")
    encoders: dict[str, ClipEncoder | DinoEncoder | reward.Reward] = {}
    for network in protocol.networks:
        if network.slot in reasons:
            continue
        opened = reward.Reward.open if network.slot == "image_reward" else open_encoder
        encoders[network.slot] = opened(files[network.slot], network)
    if others := [slot for slot, encoder in encoders.items() if not encoder.record["as_published"]]:
        named = ", ".join(f"{slot} is not {encoders[slot].record['published']}" for slot in others)
        warnings.warn(f"The scores are not comparable with published ones of the protocol {protocol.name}: {named}.",
                      stacklevel=2)
    return ProtocolScorer(protocol, encoders, skipped)


def _missing(slot: str, files: Mapping[str, Any]) -> str | None:
    """Why a network cannot be used, as the rest of a sentence; None if it can."""
    if not files.get(slot):
        return f"no weights were given for the network {slot}."
    if slot == "image_reward" and not reward.is_installed():
        return "the package image-reward is not installed (pip install image-reward)."
    return None


def _masks(subject: ComparedSubject) -> "tuple[AnyPath, ...]":
    if subject.mask is None or len(subject.reference_masks) != len(subject.references):
        lacking = "of its own picture" if subject.mask is None else (
            f"for each of its {len(subject.references)} references ({len(subject.reference_masks)} are given)")
        raise ValueError("the protocol compares subjects that are cut out, and a subject of this row has no mask "
                         f"{lacking}; add it.")
    return subject.reference_masks
