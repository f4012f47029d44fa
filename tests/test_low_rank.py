"""Low-rank changes: what they begin as, what they change, and that the file of them is a LoRA of the same network."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import realcustom_jax as rc
from realcustom_jax.model_files import weights
from realcustom_jax.training.low_rank import init_low_rank, low_rank_tensors, merge_low_rank

CONFIG = {
    "in_channels": 4, "out_channels": 4, "sample_size": 8, "block_out_channels": [8, 8], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "transformer_layers_per_block": 2, "attention_head_dim": 2, "cross_attention_dim": 12, "norm_num_groups": 4,
    "use_linear_projection": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(the base model's file, its parameters)"""
    rng = np.random.default_rng(0)
    from realcustom_jax.models.unet import UNet, UNetConfig
    config = UNetConfig.from_config(CONFIG)
    args, kwargs = weights.unet_inputs(config)
    shapes = weights.parameter_shapes(UNet(config), *args, **kwargs)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    file = tmp_path_factory.mktemp("base") / "unet.safetensors"
    safetensors.numpy.save_file(weights.to_torch(params), file)
    return file, params


def everything(path):
    return True


@pytest.mark.slow
def test_at_first_nothing_changes(base):
    _, params = base
    low_rank = init_low_rank(jax.random.key(0), params, 3, everything)
    kernels = {path for path in flatten_dict(params) if path[-1] == "kernel"}
    assert set(flatten_dict(low_rank["A"])) == set(flatten_dict(low_rank["B"])) == kernels
    jax.tree.map(np.testing.assert_array_equal, merge_low_rank(params, low_rank), params)
    drawn = np.concatenate([np.ravel(x) * np.sqrt(np.prod(x.shape[:-1]) if x.ndim == 4 else x.shape[-2])
                            for x in jax.tree.leaves(low_rank["A"])])
    assert abs(drawn.std() - 1) < 0.05


def test_only_what_is_chosen_changes(base):
    _, params = base
    low_rank = init_low_rank(jax.random.key(0), params, 3, lambda path: path[-2] == "to_q")
    low_rank["B"] = jax.tree.map(lambda x: x + 1, low_rank["B"])
    before, after = flatten_dict(params), flatten_dict(merge_low_rank(params, low_rank))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path[-2:] == ("to_q", "kernel")} != set()


@pytest.mark.slow
def test_the_file_is_a_lora_of_the_same_change(base, tmp_path):
    file, params = base
    low_rank = init_low_rank(jax.random.key(1), params, 3, everything)
    low_rank["B"] = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), low_rank["B"])
    lora = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(low_rank_tensors(low_rank), lora)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight" in low_rank_tensors(low_rank)
    _, loaded = rc.load_unet(CONFIG, file, loras=((lora, 1.0),))
    jax.tree.map(lambda ours, expected: np.testing.assert_allclose(ours, expected, atol=2e-5),
                 loaded, merge_low_rank(params, low_rank))
