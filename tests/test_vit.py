"""The vision transformer against timm, at tiny random SigLIP and DINOv2 configurations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import FIXTURES, assert_close, golden, nhwc
from torch_params import load_params

from realcustom_jax.models.vit import VisionTransformer, VitConfig, resample_pos_embed


def config_of(name):
    return VitConfig.from_config(json.loads((FIXTURES / f"{name}.json").read_text()))


def params_of(name):
    config, params = config_of(name), load_params(name)
    position = resample_pos_embed(params["pos_embed"], config.grid, config.num_embedded_prefix)
    return {k: v for k, v in params.items() if k not in ("norm", "attn_pool")} | {"pos_embed": position}


@pytest.mark.parametrize("name", ["vit_siglip", "vit_dinov2_reg", "vit_dinov2_resampled"])
def test_block_outputs_match_timm(name):
    arrays, module = golden(name), VisionTransformer(config_of(name))
    layers = sorted(int(key[5:]) for key in arrays if key.startswith("layer"))
    outputs = module.apply({"params": params_of(name)}, nhwc(arrays["image"]), layers=layers)
    for layer, output in zip(layers, outputs, strict=True):
        assert_close(output, arrays[f"layer{layer}"])


def test_outputs_follow_the_order_of_layers_and_need_no_later_blocks():
    arrays, params = golden("vit_siglip"), params_of("vit_siglip")
    del params["blocks_3"]
    module = VisionTransformer(config_of("vit_siglip"))
    second, first = module.apply({"params": params}, nhwc(arrays["image"]), layers=(2, 1))
    assert_close(first, arrays["layer1"])
    assert_close(second, arrays["layer2"])


def test_resampled_position_embeddings_match_timm():
    resampled = resample_pos_embed(load_params("vit_dinov2_resampled")["pos_embed"], (5, 5), num_prefix=0)
    assert_close(resampled, golden("vit_dinov2_resampled")["pos_embed_resampled"], 1e-5)


def test_resampling_keeps_prefix_entries_and_a_fitting_grid():
    stored = np.random.default_rng(0).normal(size=(1, 2 + 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(resample_pos_embed(stored, (4, 4), 2), stored)
    larger = resample_pos_embed(stored, (6, 5), 2)
    assert larger.shape == (1, 2 + 30, 3)
    np.testing.assert_array_equal(larger[:, :2], stored[:, :2])
    with pytest.raises(ValueError, match="square"):
        resample_pos_embed(stored, (4, 4), 1)


@pytest.mark.parametrize("name", ["vit_siglip", "vit_dinov2_reg"])
def test_init_makes_every_parameter_of_the_file(name):
    module = VisionTransformer(config_of(name))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 70, 70, 3)), layers=(0,)))
    assert jax.tree.map(jnp.shape, made["params"]) == jax.tree.map(np.shape, params_of(name))


def test_position_embeddings_cover_prefix_tokens_unless_no_embed_class():
    config = VitConfig.from_config({"img_size": [28, 42], "patch_size": 14, "embed_dim": 8, "depth": 1,
                                    "num_heads": 2, "reg_tokens": 2})
    module, images = VisionTransformer(config), jnp.ones((1, 28, 42, 3))
    (output,), variables = module.init_with_output(jax.random.key(0), images, layers=(0,))
    assert variables["params"]["pos_embed"].shape == (1, 3 + 6, 8)
    assert output.shape == (1, 6, 8)


def test_compute_dtype_is_the_modules():
    config, params = config_of("vit_dinov2_reg"), params_of("vit_dinov2_reg")
    arrays = golden("vit_dinov2_reg")
    (output,) = VisionTransformer(config, jnp.bfloat16).apply(
        {"params": params}, nhwc(arrays["image"]), layers=(2,))
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
    module, params = VisionTransformer(config_of("vit_siglip")), params_of("vit_siglip")
    with pytest.raises(ValueError, match="70"):
        module.apply({"params": params}, jnp.zeros((1, 3, 70, 70)), layers=(0,))
    for layers in ((4,), (-1,), ()):
        with pytest.raises(ValueError, match="from 0 to 3"):
            module.apply({"params": params}, jnp.zeros((1, 70, 70, 3)), layers=layers)
