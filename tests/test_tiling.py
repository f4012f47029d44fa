"""Decoding in tiles: exact where it can be, smooth where it cannot."""

import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.sampling.tiling import decode_tiles

LATENTS = np.random.default_rng(0).normal(size=(2, 13, 22, 3)).astype(np.float32)


def enlarge(latents):
    return jnp.asarray(latents).repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("tile", [5, 8, 13, 30])
def test_a_decoder_that_sees_single_pixels_gives_the_same_in_tiles(tile):
    shapes = []
    made = decode_tiles(lambda x: shapes.append(x.shape) or enlarge(x), LATENTS, tile=tile, factor=2)
    np.testing.assert_allclose(made, enlarge(LATENTS), rtol=1e-5, atol=1e-6)
    assert len(set(shapes)) == 1 and max(shapes[0][1:3]) <= tile


def test_what_fits_is_decoded_at_once():
    calls = []
    decode_tiles(lambda x: calls.append(x) or enlarge(x), LATENTS, tile=22, factor=2)
    assert len(calls) == 1


def test_tiles_that_differ_fade_into_each_other():
    count = iter(range(100))
    made = decode_tiles(lambda x: jnp.full((1, 16, 16, 3), next(count), jnp.float32), np.zeros((1, 8, 14, 4)), tile=8,
                        factor=2)
    row = made[0, 8, :, 0]
    assert row[0] == 0 and row[-1] == 1
    assert (np.diff(row) >= 0).all() and np.diff(row).max() < 0.5
