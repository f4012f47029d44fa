"""Decodes latents tile by tile, so that the autoencoder's memory does not grow with the picture."""

from collections.abc import Callable

import jax
import numpy as np


def decode_tiles(
    decode: Callable[[jax.Array], jax.Array], latents: jax.Array, *, tile: int, factor: int, overlap: float = 0.25
) -> np.ndarray:
    """Decodes overlapping tiles and fades them into each other.

    Args:
        decode: latents [B, h, w, C] → pictures [B, h·factor, w·factor, 3]; called with one shape only.
        latents: [B, h, w, C].
        tile: the largest side that is decoded at once, in latent pixels; what fits is decoded whole.
        factor: pixels for each latent pixel.
        overlap: share of a tile that its neighbour also covers, in [0, 1).
    Returns:
        float32 [B, h·factor, w·factor, 3] on the host.
    """
    batch, height, width, _ = latents.shape
    rows, columns = min(tile, height), min(tile, width)
    total = np.zeros((batch, height * factor, width * factor, 3), np.float32)
    weights = np.zeros((1, *total.shape[1:3], 1), np.float32)
    fade = _ramp(rows * factor, overlap)[:, None] * _ramp(columns * factor, overlap)
    for top in _starts(height, rows, overlap):
        for left in _starts(width, columns, overlap):
            picture = np.asarray(decode(latents[:, top : top + rows, left : left + columns]), np.float32)
            place = np.s_[:, top * factor : (top + rows) * factor, left * factor : (left + columns) * factor]
            total[place] += picture * fade[..., None]
            weights[place] += fade[..., None]
    return total / weights


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start: evenly spread, so that no strip at the end is covered by a tile of its own."""
    count = 1 + max(0, int(np.ceil((length - tile) / (tile * (1 - overlap)))))
    return np.round(np.linspace(0, length - tile, count)).astype(int).tolist()


def _ramp(length: int, overlap: float) -> np.ndarray:
    """Weights that rise from the edges, over the width of an overlap; never zero."""
    width = max(1.0, length * overlap)
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(1, distance / width).astype(np.float32)
