"""What is shown of a result beside its pictures: where each subject's mask was in a step."""

from html import escape

from PIL import Image

from realcustom_jax.contact_sheet import COLOURS, in_square, mask_overlay
from realcustom_jax.pipeline import Result

SIDE = 384
"""Of the shown picture, in pixels."""


def mask_of_step(result: Result, picture: int, step: int) -> Image.Image:
    """The picture (from 0) in grey, with the masks that were used in this step (from 1) in their colours. Numbers
    outside of the result's are taken as its nearest."""
    picture = min(max(picture, 0), len(result.images) - 1)
    step = min(max(step, 1), len(result.masks))
    return in_square(mask_overlay(result.images[picture], result.masks[step - 1, picture]), SIDE)


def legend(result: Result, step: int) -> str:
    """HTML that says which step this is, and which colour is which target's."""
    spots = "".join(f'<span class="spot" style="background: rgb{COLOURS[i % len(COLOURS)]}"></span>{escape(target)} '
                    for i, target in enumerate(result.targets))
    return f'<div class="legend">Step {step} of {len(result.masks)}: {spots}</div>'
