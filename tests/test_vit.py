"""The vision transformer against timm, at tiny random SigLIP and DINOv2 configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import realcustom_jax as rc
from realcustom_jax.models.vit import VisionTransformer, VitConfig, resample_pos_embed

from goldens import FIXTURES, assert_close, golden, nhwc


def load(name, **options):
    return rc.load_vision_encoder(FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors", **options)


@pytest.mark.parametrize("name", ["vit_siglip", "vit_dinov2_reg", "vit_dinov2_resampled"])
def test_block_outputs_match_timm(name):
    arrays, (module, params) = golden(name), load(name)
    layers = sorted(int(key[5:]) for key in arrays if key.startswith("layer"))
    outputs = module.apply({"params": params}, nhwc(arrays["image"]), layers=layers)
    for layer, output in zip(layers, outputs, strict=True):
        assert_close(output, arrays[f"layer{layer}"])


def test_outputs_follow_the_order_of_layers_and_need_no_later_blocks():
    arrays, (module, params) = golden("vit_siglip"), load("vit_siglip")
    del params["blocks_3"]
    second, first = module.apply({"params": params}, nhwc(arrays["image"]), layers=(2, 1))
    assert_close(first, arrays["layer1"])
    assert_close(second, arrays["layer2"])


def test_resampled_position_embeddings_match_timm():
    stored = load_file(FIXTURES / "vit_dinov2_resampled.safetensors")["pos_embed"]
    resampled = golden("vit_dinov2_resampled")["pos_embed_resampled"]
    assert_close(resample_pos_embed(stored, (5, 5), num_prefix=0), resampled, 1e-5)


def test_resampling_keeps_prefix_entries_and_a_fitting_grid():
    stored = np.random.default_rng(0).normal(size=(1, 2 + 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(resample_pos_embed(stored, (4, 4), 2), stored)
    larger = resample_pos_embed(stored, (6, 5), 2)
    assert larger.shape == (1, 2 + 30, 3)
    np.testing.assert_array_equal(larger[:, :2], stored[:, :2])
    with pytest.raises(ValueError, match="square"):
        resample_pos_embed(stored, (4, 4), 1)


def test_position_embeddings_cover_prefix_tokens_unless_no_embed_class():
    config = VitConfig.from_config({"img_size": [28, 42], "patch_size": 14, "embed_dim": 8, "depth": 1,
                                    "num_heads": 2, "reg_tokens": 2})
    module, images = VisionTransformer(config), jnp.ones((1, 28, 42, 3))
    (output,), variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), images, layers=(0,)))
    assert variables["params"]["pos_embed"].shape == (1, 3 + 6, 8)
    assert output.shape == (1, 6, 8)


@pytest.mark.slow
def test_compute_dtype_is_the_modules():
    arrays, (module, params) = golden("vit_dinov2_reg"), load("vit_dinov2_reg", dtype=jnp.bfloat16)
    (output,) = module.apply({"params": params}, nhwc(arrays["image"]), layers=(2,))
    assert output.dtype == jnp.bfloat16
    assert_close(output.astype(jnp.float32), arrays["layer2"], 0.05)


@pytest.mark.parametrize("arguments, message", [
    ({"mlp_layer": "swiglu"}, "mlp_layer"),
    ({"qk_norm": True}, "qk_norm"),
    ({"act_layer": "relu"}, "act_layer"),
    ({"patchsize": 14}, "patchsize"),
    ({"embed_dim": 30, "num_heads": 4}, "num_heads"),
])
def test_configs_of_other_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VitConfig.from_config(arguments)


def test_wrong_images_and_layers_are_refused():
    module, params = load("vit_siglip")
    with pytest.raises(ValueError, match="70"):
        module.apply({"params": params}, jnp.zeros((1, 3, 70, 70)), layers=(0,))
    for layers in ((4,), (-1,), ()):
        with pytest.raises(ValueError, match="from 0 to 3"):
            module.apply({"params": params}, jnp.zeros((1, 70, 70, 3)), layers=layers)
