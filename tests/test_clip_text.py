"""The CLIP text encoder against transformers, at tiny random configurations."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import FIXTURES, assert_close, golden
from torch_params import load_params

from realcustom_jax.models.clip_text import ClipText, ClipTextConfig


def config_of(name):
    return ClipTextConfig.from_config(json.loads((FIXTURES / f"{name}.json").read_text()))


@pytest.mark.parametrize("name, projected", [("clip_text_quickgelu", False), ("clip_text_proj_gelu", True)])
def test_outputs_match_transformers(name, projected):
    arrays, module = golden(name), ClipText(config_of(name), with_projection=projected)
    output = module.apply({"params": load_params(name)}, arrays["input_ids"])
    assert_close(output.last, arrays["last"])
    assert_close(output.penultimate, arrays["penultimate"])
    if projected:
        assert_close(output.projected, arrays["text_embeds"])
    else:
        assert output.projected is None
        assert_close(output.pooled, arrays["pooled"])


@pytest.mark.parametrize("eos, ids, end", [
    (2, [[8, 2, 4, 9, 9]], 3),  # the legacy rule: the first largest id
    (4, [[8, 2, 4, 9, 4]], 2),
])
def test_pooled_is_the_first_end_of_text(eos, ids, end):
    config = ClipTextConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                            num_attention_heads=2, eos_token_id=eos)
    output, _ = ClipText(config).init_with_output(jax.random.key(0), jnp.array(ids))
    np.testing.assert_array_equal(output.pooled, output.last[:, end])


def test_penultimate_of_one_layer_is_the_embeddings():
    name = "clip_text_quickgelu"
    config = dataclasses.replace(config_of(name), num_hidden_layers=1)
    params, ids = load_params(name), golden(name)["input_ids"]
    embeddings = params["text_model"]["embeddings"]
    expected = (embeddings["token_embedding"]["embedding"][ids]
                + embeddings["position_embedding"]["embedding"][:ids.shape[1]])
    output = ClipText(config).apply({"params": params}, ids)
    np.testing.assert_allclose(output.penultimate, expected, rtol=1e-6)


def test_short_prompts_are_the_beginning_of_padded_ones():
    name = "clip_text_quickgelu"
    module, params, ids = ClipText(config_of(name)), load_params(name), golden(name)["input_ids"]
    long, short = (module.apply({"params": params}, x).penultimate for x in (ids, ids[:, :9]))
    np.testing.assert_allclose(short, long[:, :9], atol=1e-5)


def test_init_makes_every_parameter_of_the_file():
    name = "clip_text_proj_gelu"
    module = ClipText(config_of(name), with_projection=True)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 7), int)))["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(np.shape, load_params(name))


def test_unknown_activations_and_too_long_prompts_are_refused():
    with pytest.raises(ValueError, match="hidden_act 'relu'"):
        ClipTextConfig.from_config({"hidden_act": "relu"})
    with pytest.raises(ValueError, match="num_attention_heads=3"):
        ClipTextConfig(num_attention_heads=3)
    module = ClipText(config_of("clip_text_quickgelu"))
    with pytest.raises(ValueError, match="up to 77"):
        module.apply({"params": load_params("clip_text_quickgelu")}, jnp.zeros((1, 78), int))
