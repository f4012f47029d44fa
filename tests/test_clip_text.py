"""The CLIP text encoder against transformers, at tiny random configurations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig

from goldens import FIXTURES, assert_close, golden


def load(name):
    return rc.load_text_encoder(FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors")


@pytest.mark.parametrize("name, projected", [("clip_text_quickgelu", False), ("clip_text_proj_gelu", True)])
def test_outputs_match_transformers(name, projected):
    arrays, (module, params) = golden(name), load(name)
    output = module.apply({"params": params}, arrays["input_ids"])
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
    (module, params), ids = load("clip_text_quickgelu"), golden("clip_text_quickgelu")["input_ids"]
    config = dataclasses.replace(module.config, num_hidden_layers=1)
    embeddings = params["text_model"]["embeddings"]
    expected = (embeddings["token_embedding"]["embedding"][ids]
                + embeddings["position_embedding"]["embedding"][:ids.shape[1]])
    output = ClipText(config).apply({"params": params}, ids)
    np.testing.assert_allclose(output.penultimate, expected, rtol=1e-6)


def test_short_prompts_are_the_beginning_of_padded_ones():
    (module, params), ids = load("clip_text_quickgelu"), golden("clip_text_quickgelu")["input_ids"]
    long, short = (module.apply({"params": params}, x).penultimate for x in (ids, ids[:, :9]))
    np.testing.assert_allclose(short, long[:, :9], atol=1e-5)


def test_unknown_activations_and_too_long_prompts_are_refused():
    with pytest.raises(ValueError, match="hidden_act 'relu'"):
        ClipTextConfig.from_config({"hidden_act": "relu"})
    with pytest.raises(ValueError, match="num_attention_heads=3"):
        ClipTextConfig(num_attention_heads=3)
    module, params = load("clip_text_quickgelu")
    with pytest.raises(ValueError, match="up to 77"):
        module.apply({"params": params}, jnp.zeros((1, 78), int))
