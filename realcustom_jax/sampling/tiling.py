"""Decodes latents tile by tile, so that the autoencoder's memory does not grow with the picture.

A tile differs from the same place of a picture that is decoded whole: near its edges, which overlaps hide; and all
over, because a group norm takes mean and variance from the tile alone, so that a tile of sky gets the contrast of the
subject. So all tiles are decoded twice: first for their means and variances, then with those of all tiles together.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def tile_shape(height: int, width: int, tile: int) -> tuple[int, int]:
    """The shape of what is decoded at once of latents: all, or a part, of no more than tile² pixels."""
    if height * width <= tile * tile:
        return height, width
    short = min(height, width, tile)
    long = min(max(height, width), tile * tile // short)
    return (short, long) if height <= width else (long, short)


def decode_tiles(
    decode: Callable[..., jax.Array], latents: jax.Array, *, tile: int, factor: int, overlap: float = 0.25,
    measure: Callable[[jax.Array], Any] | None = None,
) -> np.ndarray:
    """Decodes overlapping tiles and fades them into each other.

    Args:
        decode: latents [B, h, w, C] → pictures [B, h·factor, w·factor, 3]; called with one shape only.
        latents: [B, h, w, C].
        tile: what has no more than tile² latent pixels is decoded whole; tiles have about as many.
        factor: pixels for each latent pixel.
        overlap: share of a tile that its neighbour also covers, in [0, 1).
        measure: latents [B, h, w, C] → a pytree of the moments [2, …] (mean, variance) of all norms; those of all tiles
            together are then given to `decode` as `moments`. None: each tile has its own.
    Returns:
        float32 [B, h·factor, w·factor, 3] on the host.
    """
    batch, height, width, _ = latents.shape
    rows, columns = tile_shape(height, width, tile)
    starts = [(top, left) for top in _starts(height, rows, overlap) for left in _starts(width, columns, overlap)]
    parts = [latents[:, top : top + rows, left : left + columns] for top, left in starts]
    if measure is not None and len(parts) > 1:
        decode = functools.partial(decode, moments=jax.tree.map(_together, *map(measure, parts)))
    total = np.zeros((batch, height * factor, width * factor, 3), np.float32)
    weights = np.zeros((1, *total.shape[1:3], 1), np.float32)
    fade = _ramp(rows * factor, overlap)[:, None] * _ramp(columns * factor, overlap)
    for (top, left), part in zip(starts, parts, strict=True):
        place = np.s_[:, top * factor : (top + rows) * factor, left * factor : (left + columns) * factor]
        total[place] += np.asarray(decode(part), np.float32) * fade[..., None]
        weights[place] += fade[..., None]
    return total / weights


def _together(*moments: jax.Array) -> jax.Array:
    """Mean and variance [2, …] of several equally large parts of a whole."""
    means, variances = jnp.stack(moments, axis=1)
    return jnp.stack([means.mean(0), variances.mean(0) + means.var(0)])


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start: evenly spread, so that no strip at the end is covered by a tile of its own."""
    count = 1 + max(0, math.ceil((length - tile) / (tile * (1 - overlap))))
    return np.round(np.linspace(0, length - tile, count)).astype(int).tolist()


def _ramp(length: int, overlap: float) -> np.ndarray:
    """Weights that rise from the edges, over the width of an overlap; never zero."""
    width = max(1.0, length * overlap)
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(1, distance / width).astype(np.float32)
