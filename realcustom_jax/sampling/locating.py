"""Which part of one reference shows what a word names, where several phrases share it (One2Many).

In the paper each phrase is given the whole reference, and its word has to choose there, through the UNet's queries.
Here the base model says it by its attention, as it says where in the picture a subject is to be: the reference is
encoded and noised, the UNet reads it with the prompt, and each phrase gets the part around its own places. Nothing is
trained for it; docs/evidence.md compares the two.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realcustom_jax.devices.compilation import jit_sampler
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.masks import MaskConfig
from realcustom_jax.sampling.options import seeded_noise
from realcustom_jax.sampling.solvers import add_noise

TIMESTEP = 500  # of 1000: of the five in docs/evidence.md's table of sharing, the one whose maps divide things best
_NOISES = 2  # their maps are averaged
_SCOPE = 0.3  # of the picture that a thing may cover; a box is drawn around it, so that more does no harm
_BEYOND = 0.04  # the share of a map that may lie beyond an edge of its box
_MARGIN = 0.05  # of the picture's side, beyond each edge


def find_phrases(
    unet, params: Any, latents: jax.Array, text: Conditioning, target: jax.Array, *, mask: MaskConfig,
    betas: np.ndarray,
) -> np.ndarray:
    """Where each of R phrases is found in a picture: float32 [R, h, w], at least 0.

    Args:
        unet, params: the base model, with or without its visual layers.
        latents: [1, H, W, C] of the picture, as the UNet sees them.
        text: the conditioning of one prompt.
        target: int [R, T], the phrases' tokens.
        mask: how maps are normalised and refined; of which size they are. Each place belongs to one phrase.
        betas: [T] of the noise.
    """
    # No place is two phrases', and the flatter map does not lose its own (`masks.owners`).
    mask = MaskConfig(scope=_SCOPE, overlap="argmax_mean", normalize=mask.normalize, downscale=mask.downscale,
                      refine_at=mask.refine_at, normalize_self=mask.normalize_self)
    noise = seeded_noise(0, _NOISES, latents.shape[1:])
    noisy = add_noise(jnp.broadcast_to(latents, noise.shape), noise, TIMESTEP, betas)
    text, target = (jax.tree.map(lambda x: jnp.repeat(x, _NOISES, axis=0), part) for part in (text, target[None]))
    return np.asarray(_maps(unet, params, noisy, text, target, mask=mask).mean(axis=0), np.float32)


@functools.partial(jit_sampler, static_argnums=0, static_argnames=("mask",))
def _maps(unet, params, noisy, text, target, *, mask):
    output = unet.apply(
        {"params": params}, noisy, TIMESTEP, text.text, pooled=text.pooled, time_ids=text.time_ids, target=target,
        self_maps_at=mask.refine_at)
    return mask.masks_of(output, mask.size_of(noisy.shape[1:3]))


def box_around(found: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom), in pixels of a picture of this size, around what is `found` [h, w] of it: a square
    where the picture is large enough. Where nothing was found it is the whole picture."""
    if not found.sum() > 0:
        return 0, 0, width, height
    (left, right), (top, bottom) = (_ends(found.sum(axis), length) for axis, length in ((0, width), (1, height)))
    side = max(right - left, bottom - top) + 2 * _MARGIN * max(width, height)
    (left, right), (top, bottom) = (_around((start + end) / 2, side, length) for start, end, length in
                                    ((left, right, width), (top, bottom, height)))
    return left, top, right, bottom


def _ends(mass: np.ndarray, length: int) -> tuple[float, float]:
    """Between which places, in pixels of a side of this length, all but `_BEYOND` of the mass on either side lies."""
    summed = np.concatenate([[0], np.cumsum(mass, dtype=np.float64)]) / mass.sum(dtype=np.float64)
    edges = np.linspace(0, length, len(summed))
    return float(np.interp(_BEYOND, summed, edges)), float(np.interp(1 - _BEYOND, summed, edges))


def _around(middle: float, side: float, length: int) -> tuple[int, int]:
    """An interval of this side around a place, moved and cut to lie within the length."""
    side = min(max(round(side), 1), length)
    start = min(max(round(middle - side / 2), 0), length - side)
    return start, start + side
