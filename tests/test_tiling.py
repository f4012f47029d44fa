"""Decoding in tiles: exact where it can be, smooth where it cannot."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.models.norm import MOMENTS, GroupNorm
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.decoding import decode_latents
from realcustom_jax.sampling.tiling import decode_tiles, tile_shape

LATENTS = np.random.default_rng(0).normal(size=(2, 13, 22, 3)).astype(np.float32)


def enlarge(latents):
    return jnp.asarray(latents).repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize("tile", [5, 8, 13, 30])
def test_a_decoder_that_sees_single_pixels_gives_the_same_in_tiles(tile):
    shapes = []
    made = decode_tiles(lambda x: shapes.append(x.shape) or enlarge(x), LATENTS, tile=tile, factor=2)
    np.testing.assert_allclose(made, enlarge(LATENTS), rtol=1e-5, atol=1e-6)
    assert len(set(shapes)) == 1 and shapes[0][1] * shapes[0][2] <= tile * tile


def test_what_fits_is_decoded_at_once():
    calls = []
    # 13 × 22 pixels are fewer than 17 × 17.
    decode_tiles(lambda x: calls.append(x) or enlarge(x), LATENTS, tile=17, factor=2, measure=pytest.fail)
    assert len(calls) == 1 and calls[0].shape == LATENTS.shape


@pytest.mark.parametrize("size, expected", [
    ((128, 128), (128, 128)), ((96, 168), (96, 168)), ((168, 96), (168, 96)),  # SDXL's 1344 × 768
    ((64, 256), (64, 256)),
    ((128, 192), (128, 128)), ((256, 256), (128, 128)), ((96, 256), (96, 170)), ((256, 96), (170, 96)),
    ((64, 300), (64, 256)), ((129, 127), (129, 127)), ((1, 20000), (1, 16384))])
def test_tiles_have_no_more_pixels_than_the_models_own_latents(size, expected):
    assert tile_shape(*size, 128) == expected


def test_tiles_that_differ_fade_into_each_other():
    count = iter(range(100))
    made = decode_tiles(lambda x: jnp.full((1, 16, 16, 3), next(count), jnp.float32), np.zeros((1, 8, 14, 4)), tile=8,
                        factor=2)
    row = made[0, 8, :, 0]
    assert row[0] == 0 and row[-1] == 1
    assert (np.diff(row) >= 0).all() and np.diff(row).max() < 0.5


def test_tiles_share_their_norms():
    """Two halves of a picture, normalised with the moments of both, are what the whole is."""
    norm = GroupNorm(2)
    x = jax.random.normal(jax.random.key(0), (3, 4, 8, 6)) * jnp.linspace(1, 9, 8)[:, None] + 5
    params = norm.init(jax.random.key(1), x)
    assert set(params) == {"params"}

    def measure(part):
        return norm.apply(params, part, mutable=MOMENTS)[1][MOMENTS]

    def normalise(part, moments):
        return norm.apply(params | {MOMENTS: moments}, part)[..., :3]

    whole = norm.apply(params, x)[..., :3]
    made = decode_tiles(normalise, x, tile=4, factor=1, overlap=0, measure=measure)
    np.testing.assert_allclose(made, whole, atol=1e-5)
    alone = decode_tiles(lambda part: norm.apply(params, part)[..., :3], x, tile=4, factor=1, overlap=0)
    assert np.abs(alone - whole).max() > 1


@pytest.fixture(scope="module")
def painted():
    """The miniature's autoencoder as a pipeline holds it; latents of painted pictures side by side, of any size; and
    how they are decoded at once."""
    module, params = ModelSource.open("mini").load("vae", dtype=jnp.float32, platform=None)
    pipeline = SimpleNamespace(vae=SimpleNamespace(module=module, params=params), sample_size=16, _factor=8)
    dog, cat = (np.asarray(Image.open(ASSETS / f"references/{name}.png").convert("RGB"), np.float32) / 127.5 - 1
                for name in ("dog", "cat"))
    sheet = np.concatenate([np.concatenate([dog, cat], 1), np.concatenate([cat, dog], 1)])
    encode = jax.jit(lambda x: module.apply({"params": params}, x, method="encode").mean)

    def latents(width, height):
        return encode(sheet[None, :height, :width]) * module.config.scaling_factor

    return pipeline, latents, functools.partial(decode_latents, module, params)


def levels(pictures):
    return (np.clip(pictures, -1, 1) + 1) * 127.5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 96), (96, 160), (128, 128)])
def test_another_shape_of_the_models_own_area_is_decoded_at_once(painted, size):
    pipeline, latents, at_once = painted
    z = latents(*size)
    np.testing.assert_allclose(Pipeline.decode(pipeline, z), levels(at_once(z)), atol=0.51)
    assert Pipeline.decoded_at_once(pipeline, z.shape) == z.shape


@pytest.mark.slow
def test_tiles_of_half_as_much_again_are_near_to_the_whole(painted):
    """The seam: along the border of two tiles, no jump that the whole has not. The statistics: over large areas, the
    same levels; with norms of their own, tiles differ by more than a level."""
    pipeline, latents, at_once = painted
    z = latents(192, 128)
    whole, made = levels(at_once(z)), Pipeline.decode(pipeline, z).astype(float)
    alone = levels(decode_tiles(at_once, z, tile=16, factor=8))
    error, of_alone = made - whole, alone - whole
    assert np.abs(error).mean() < 0.7 and np.abs(error).max() < 20
    assert np.abs(of_alone).mean() > 1.2 and np.abs(error).mean() < 0.6 * np.abs(of_alone).mean()
    shift, shift_alone = (np.abs(average_pixels(np.moveaxis(x, -1, 1), (2, 3))).max() for x in (error, of_alone))
    assert shift < 1 < shift_alone
    halves = levels(at_once(z[:, :, :16]))[:, :, :96], levels(at_once(z[:, :, 8:]))[:, :, 32:]
    jumps, jumps_abutting = (np.abs(np.diff(x, axis=2)).mean((0, 1, 3)) for x in (
        error, np.concatenate(halves, axis=2) - whole))
    assert jumps.max() < 1.2 and jumps_abutting[95] > 2, (jumps.max(), jumps_abutting[95])


@pytest.mark.slow
def test_tiles_of_four_times_the_area_are_near_to_the_whole(painted):
    pipeline, latents, at_once = painted
    z = latents(256, 256)
    whole = levels(at_once(z))
    errors = [np.abs(x - whole).mean() for x in (
        Pipeline.decode(pipeline, z), levels(decode_tiles(at_once, z, tile=16, factor=8)))]
    assert errors[0] < 1.2 and errors[0] < 0.6 * errors[1]
