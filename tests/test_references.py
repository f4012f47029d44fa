"""The reference image on its way to the projector."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.conditioning.references import (
    DINO_MEAN,
    DINO_STD,
    VisionSettings,
    merge_parts,
    normalize,
    reference_features,
)

from goldens import FIXTURES, assert_close, golden, nhwc

SIZES = {"size": 48, "encoder_size": 24, "split": 2}


@pytest.mark.parametrize("quantize, suffix", [(True, "_8bit"), (False, "")])
def test_whole_and_phases_match_the_released_path(quantize, suffix):
    arrays = golden("vision_preprocess")
    whole, parts = rc.prepare_reference(nhwc(arrays["image"]), **SIZES, quantize=quantize)
    assert_close(whole, nhwc(arrays["global" + suffix]), 1e-5)
    assert_close(parts, nhwc(arrays["local_phases" + suffix]), 1e-5)


def test_tiles_are_the_quarters_of_the_square():
    arrays = golden("vision_preprocess")
    _, parts = rc.prepare_reference(nhwc(arrays["image"]), **SIZES, local="tiles", quantize=False)
    assert_close(parts, nhwc(arrays["local_tiles"]), 1e-5)


def test_parts_of_one_image_follow_each_other():
    images = jnp.stack([jnp.zeros((50, 40, 3)), jnp.ones((50, 40, 3))])
    whole, parts = rc.prepare_reference(images, **SIZES, quantize=False)
    assert whole.shape == (2, 24, 24, 3)
    np.testing.assert_allclose(parts.mean(axis=(1, 2, 3)), [0, 0, 0, 0, 1, 1, 1, 1], atol=1e-6)


def test_local_tokens_are_ordered_as_released():
    arrays = golden("vision_preprocess")
    np.testing.assert_array_equal(merge_parts(arrays["local_feats"], 2), arrays["local_tokens"])


def test_references_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="split × encoder_size"):
        rc.prepare_reference(jnp.zeros((1, 8, 8, 3)), size=768, encoder_size=224)
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\]"):
        rc.prepare_reference(jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="local 'tile'.*did you mean 'tiles'"):
        rc.prepare_reference(jnp.zeros((1, 8, 8, 3)), local="tile")


def encoder(name, **changes):
    config = json.loads((FIXTURES / f"{name}.json").read_text()) | changes
    return rc.load_vision_encoder(config, FIXTURES / f"{name}.safetensors")


@pytest.mark.slow
def test_features_are_both_encoders_channels_layer_by_layer_then_local():
    (siglip, siglip_params), (dino, dino_params) = encoder("vit_siglip"), encoder("vit_dinov2_reg")
    settings = VisionSettings(size=140, encoder_size=70, siglip_layers=(0, 1), dino_layers=(1, 2))
    images = jnp.asarray(np.random.default_rng(0).random((2, 90, 60, 3), np.float32))
    shallow, deep, local = jax.jit(lambda x: reference_features(
        siglip, siglip_params, dino, dino_params, x, settings))(images)
    assert shallow.shape == deep.shape == (2, 25, 64) and local.shape == (2, 100, 64)

    whole, parts = rc.prepare_reference(images, size=140, encoder_size=70)
    by_siglip = siglip.apply({"params": siglip_params}, 2 * whole - 1, layers=(0, 1))
    by_dino = dino.apply({"params": dino_params}, normalize(whole, DINO_MEAN, DINO_STD), layers=(1, 2))
    for features, pair in zip((shallow, deep), zip(by_siglip, by_dino, strict=True), strict=True):
        assert_close(features, jnp.concatenate(pair, axis=-1), 1e-5)
    (by_siglip,) = siglip.apply({"params": siglip_params}, 2 * parts - 1, layers=(1,))
    assert_close(local[..., :32], merge_parts(by_siglip, 2), 1e-5)


@pytest.mark.slow
def test_encoders_of_another_size_see_the_pictures_resized():
    (siglip, siglip_params), (dino, dino_params) = encoder("vit_siglip"), encoder("vit_dinov2_reg")
    settings = VisionSettings(size=80, encoder_size=40, siglip_layers=(0,), dino_layers=(0,))
    deep, local = jax.jit(lambda x: reference_features(
        siglip, siglip_params, dino, dino_params, x, settings))(jnp.full((1, 64, 64, 3), 0.5))
    grey = jnp.full((1, 70, 70, 3), 127 / 255 * 2 - 1)
    (expected,) = siglip.apply({"params": siglip_params}, grey, layers=(0,))
    assert_close(deep[..., :32], expected, 1e-4)
    assert local.shape == (1, 100, 64)


def test_encoders_with_different_grids_are_refused():
    siglip, siglip_params = encoder("vit_siglip")
    dino, dino_params = encoder("vit_dinov2_reg", img_size=56)
    settings = VisionSettings(size=140, encoder_size=70, siglip_layers=(0,), dino_layers=(0,))
    with pytest.raises(ValueError, match="25 tokens and DINO 16"):
        jax.eval_shape(lambda x: reference_features(siglip, siglip_params, dino, dino_params, x, settings),
                       jnp.zeros((1, 70, 70, 3)))


def test_settings_survive_json():
    settings = VisionSettings(128, 64, local="tiles", siglip_layers=(1, 3), dino_layers=(0, 1))
    assert VisionSettings.from_config(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    with pytest.raises(ValueError, match="colour"):
        VisionSettings.from_config({"colour": "rgb"})
    with pytest.raises(ValueError, match="equally many"):
        VisionSettings(siglip_layers=(1, 2))


def test_settings_are_read_from_the_released_json():
    params = {"siglip_config": {"feature_index": [7, 13, 19, 25]}, "patchfy_scale": 2,
              "dino_config": {"feature_index": [4, 10, 16, 22]}, "default_image_size": 384}
    config = {"vision_model_config": {"vision_model_config": {"params": params}}}
    settings = VisionSettings(siglip_layers=(7, 13, 19, 25), dino_layers=(4, 10, 16, 22))
    assert VisionSettings.from_released(config) == settings
