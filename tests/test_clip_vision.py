"""CLIP's image encoder, and the text encoder of the same file, against transformers run live with random weights."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from torch_models import disturbed

import realcustom_jax as rc
from realcustom_jax.model_files.tensors import headers_only, read_tensors

from goldens import FIXTURES, assert_close, nhwc

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 24,
        "patch_size": 8, "projection_dim": 20}
TEXT = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 9, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0}


def vision_model(torch, transformers, name, **changes):
    torch.manual_seed(0)
    return disturbed(getattr(transformers, name)(transformers.CLIPVisionConfig(**TINY | changes)), 0.05)


def whole_model(torch, transformers, projection_dim=12):
    """A CLIPModel, whose towers' configurations say another width of the joint space than it does itself."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT | {"projection_dim": 5}, vision_config=TINY,
                                     projection_dim=projection_dim)
    return disturbed(transformers.CLIPModel(config), 0.05)


def images_of(side, count=2):
    return np.random.default_rng(1).normal(size=(count, 3, side, side)).astype(np.float32)


def ours(module, params, images):
    return jax.jit(lambda params: module.apply({"params": params}, nhwc(images)))(params)


@pytest.mark.parametrize("name, act", [
    ("CLIPVisionModel", "gelu"), pytest.param("CLIPVisionModelWithProjection", "quick_gelu", marks=pytest.mark.slow)])
def test_the_image_encoder_is_transformers(torch, transformers, tmp_path, name, act):
    model, images = vision_model(torch, transformers, name, hidden_act=act), images_of(24)
    model.save_pretrained(tmp_path)
    module, params = rc.load_clip_vision(tmp_path / "config.json", tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = model(torch.from_numpy(images))
    output = ours(module, params, images)
    assert_close(output.last, expected.last_hidden_state, 1e-5)
    if name == "CLIPVisionModel":
        assert output.projected is None
        assert_close(output.pooled, expected.pooler_output, 1e-5)
    else:
        assert output.projected.shape == (2, 20)
        assert_close(output.projected, expected.image_embeds, 1e-5)


def test_both_towers_of_a_whole_clip_are_transformers(torch, transformers, tmp_path):
    """Of one file and one JSON; and the projections have the width that the JSON says beside the towers."""
    model, images = whole_model(torch, transformers), images_of(24)
    model.save_pretrained(tmp_path)
    files = tmp_path / "config.json", tmp_path / "model.safetensors"
    ids = np.array([[48, 3, 7, 49, 0, 0], [48, 5, 49, 0, 0, 0]])
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(images))
    (vision, vision_params), (text, text_params) = rc.load_clip_vision(*files), rc.load_text_encoder(*files)
    image = ours(vision, vision_params, images).projected
    words = jax.jit(lambda params: text.apply({"params": params}, ids).projected)(text_params)
    assert image.shape == words.shape == (2, 12) and vision.config.projection_dim == 12
    # A whole CLIP normalises both before it compares them.
    for mine, other in ((image, whole.image_embeds), (words, whole.text_embeds)):
        assert_close(mine / np.linalg.norm(mine, axis=-1, keepdims=True), other, 1e-5)
    with torch.no_grad():
        features = model.get_text_features(input_ids=torch.from_numpy(ids))
    assert_close(words, getattr(features, "pooler_output", features), 1e-5)


def test_a_file_without_the_published_prefix_or_with_position_ids(torch, transformers, tmp_path):
    model = vision_model(torch, transformers, "CLIPVisionModelWithProjection")
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    old = tensors | {"vision_model.embeddings.position_ids": np.arange(10)[None], "logit_scale": np.ones(1)}
    bare = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    loaded = []
    for number, names in enumerate((tensors, old, bare)):
        safetensors.numpy.save_file(names, tmp_path / f"{number}.safetensors")
        loaded.append(rc.load_clip_vision(TINY, tmp_path / f"{number}.safetensors"))
    assert len({str(module) for module, _ in loaded}) == 1
    for _, params in loaded[1:]:
        assert jax.tree.all(jax.tree.map(np.array_equal, params, loaded[0][1]))
    with headers_only():
        shapes = rc.load_clip_vision(TINY, tmp_path / "0.safetensors")[1]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, loaded[0][1])


def test_what_does_not_fit_is_one_sentence(torch, transformers, tmp_path):
    model = vision_model(torch, transformers, "CLIPVisionModelWithProjection")
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}

    def refused(message, tensors, **changes):
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message) as error:
            rc.load_clip_vision(TINY | changes, tmp_path / "model.safetensors")
        assert "\n" not in str(error.value)

    # Positions of another grid are not resampled, as transformers does not.
    refused(r"do not fit this CLIP image encoder: wrong shapes: vision_model\.embeddings\.position_embedding\.weight "
            r"\(10, 32\), expected \(17, 32\)\.", tensors, image_size=32)
    refused(r"wrong shapes: .*visual_projection\.weight \(20, 32\), expected \(10, 32\)", tensors, projection_dim=10)
    refused(r"missing keys: vision_model\.encoder\.layers\.2\.layer_norm1\.bias", tensors, num_hidden_layers=3)
    refused(r"belong to no part: vision_model\.encoder\.layers\.1\.", tensors, num_hidden_layers=1)
    refused("belong to no part: mystery.weight", tensors | {"mystery.weight": np.ones(1, np.float32)})
    refused("num_channels=1 is not supported", tensors, num_channels=1)
    refused("patch_size=32 does not fit into image_size=24", tensors, patch_size=32)
    refused("hidden_size=32 is not a multiple of num_attention_heads=5", tensors, num_attention_heads=5)
    refused("Unknown hidden_act 'relu'", tensors, hidden_act="relu")
    refused("describes a CLIP text encoder, not an image encoder", tensors, vocab_size=50)
    text = read_tensors(FIXTURES / "clip_text_proj_gelu.safetensors")
    refused(r"the weights \(of a CLIP text encoder of transformers\) hold no CLIP image encoder; expected", dict(text))
    bare = {name.removeprefix("text_model."): value for name, value in text.items()}
    refused(r"the weights \(of a CLIP text encoder of transformers\) do not fit", bare)


@pytest.mark.parametrize("given, message", [
    ("vit_siglip", r"the weights \(of a timm vision transformer\) do not fit this CLIP image encoder"),
    ("vae", r"the weights \(of a diffusers autoencoder\) do not fit this CLIP image encoder"),
])
def test_other_networks_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        rc.load_clip_vision({}, FIXTURES / f"{given}.safetensors")


def test_an_image_encoder_is_no_text_encoder(torch, transformers, tmp_path):
    for name in ("CLIPVisionModelWithProjection", "CLIPVisionModel"):
        vision_model(torch, transformers, name).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"\(of a CLIP image encoder of transformers\)"):
            rc.load_text_encoder(json.loads((FIXTURES / "clip_text_proj_gelu.json").read_text()),
                                 tmp_path / "model.safetensors")


def test_images_of_another_size_are_refused(torch, transformers, tmp_path):
    vision_model(torch, transformers, "CLIPVisionModel").save_pretrained(tmp_path)
    module, params = rc.load_clip_vision(tmp_path / "config.json", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"takes images \[B, 24, 24, 3\], not \[1, 3, 24, 24\]"):
        module.apply({"params": params}, np.zeros((1, 3, 24, 24)))


BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 512, "image_size": 224, "patch_size": 32}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "projection_dim": 768, "image_size": 224, "patch_size": 14}


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    pytest.param(BASE, id="ViT-B/32"), pytest.param(LARGE, id="ViT-L/14"),
    pytest.param(LARGE | {"image_size": 336}, id="ViT-L/14-336"),
])
def test_image_encoders_of_the_published_sizes_are_transformers(torch, transformers, tmp_path, config):
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config)).eval()
    model.save_pretrained(tmp_path)
    images = images_of(config["image_size"], count=1)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).image_embeds
    module, params = rc.load_clip_vision(tmp_path / "config.json", tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert_close(ours(module, params, images).projected, expected, 2e-4)
