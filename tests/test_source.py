"""What a model's files say of it, and what they leave to the libraries that wrote them."""

import inspect
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
from realcustom_jax.files import write_json
from realcustom_jax.model_files.source import FolderSource, ModelSource, SingleFileSource
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.models.clip_text import ClipTextConfig
from realcustom_jax.models.unet import UNetConfig
from realcustom_jax.models.vae import VAEConfig


def test_a_folder_is_opened_and_says_what_it_holds(mini_folder):
    source = ModelSource.open(mini_folder)
    assert isinstance(source, FolderSource) and source.root == mini_folder
    assert source.has("unet") and source.has("adapter") and not source.has("text_encoder_2")
    assert source.text_encoders == ("text_encoder",)
    assert source.config("unet") == json.loads((mini_folder / "unet/config.json").read_text())
    assert "conv_in.weight" in source.tensors("unet")
    assert source.preset() == rc.Preset() and "teapot" in source.vocabulary().nouns
    assert source.tokenizer()("a dog").input_ids
    betas, prediction = source.schedule()
    np.testing.assert_array_equal(betas, rc.betas())
    assert prediction == "epsilon" and source.adapter().where == mini_folder / "adapter"
    module, params = source.load("vae")
    assert module.config.latent_channels == 4 and "encoder" in params


def test_every_layout_answers_the_same_questions():
    questions = {name for name, value in vars(ModelSource).items() if getattr(value, "__isabstractmethod__", False)}
    assert questions == {"has", "place", "config", "tensors", "tokenizer", "text_encoders", "preset", "vocabulary",
                         "no_negative"}
    for layout in (FolderSource, SingleFileSource):
        assert questions <= set(vars(layout))


@pytest.fixture
def tokenizer_folder(mini_folder, tmp_path):
    """A model folder that holds nothing but a copy of the tokenizer."""
    shutil.copytree(mini_folder / "tokenizer", tmp_path / "tokenizer")
    return tmp_path


def change_json(file, **changes):
    write_json(file, json.loads(file.read_text()) | changes)


def test_a_tokenizer_that_does_not_say_how_long_prompts_are_takes_its_text_encoders_length(tokenizer_folder):
    file = tokenizer_folder / "tokenizer/tokenizer_config.json"
    source = FolderSource(tokenizer_folder)
    for nothing in (None, 10**30, 1e30):
        change_json(file, model_max_length=nothing)
        with pytest.raises(ValueError, match="tokenizer_config.json lacks model_max_length"):
            source.tokenizer()
        assert source.tokenizer(positions=12).model_max_length == 12
    write_json(tokenizer_folder / "text_encoder/config.json", {"max_position_embeddings": 20})
    assert source.tokenizer().model_max_length == 20
    write_json(tokenizer_folder / "text_encoder/config.json", {"hidden_size": "wide"})
    with pytest.raises(ValueError, match="text_encoder.*cannot be used"):
        source.tokenizer()


@pytest.mark.parametrize("length", ["77", 0, 2, -1, 77.5, True, [77]])
def test_a_length_of_prompts_that_is_none_is_named(tokenizer_folder, length):
    change_json(tokenizer_folder / "tokenizer/tokenizer_config.json", model_max_length=length)
    with pytest.raises(ValueError, match="tokenizer_config.json: model_max_length is .*expected a whole number"):
        FolderSource(tokenizer_folder).tokenizer()


def as_published(folder):
    """Writes the tokenizer as the hub has it, vocab.json and merges.txt; returns the lines of merges.txt."""
    file = folder / "tokenizer/tokenizer.json"
    model = json.loads(file.read_text())["model"]
    file.unlink()
    write_json(folder / "tokenizer/vocab.json", model["vocab"])
    lines = ["#version: 0.2", *map(" ".join, model["merges"])]
    (folder / "tokenizer/merges.txt").write_text("\n".join(lines) + "\n")
    return lines


def test_merges_that_were_cut_are_refused(tokenizer_folder):
    whole = FolderSource(tokenizer_folder).tokenizer()("a dog on the beach").input_ids
    lines, merges = as_published(tokenizer_folder), tokenizer_folder / "tokenizer/merges.txt"
    for ends in ("\n", "\r\n"):
        merges.write_bytes(ends.join(lines).encode())
        assert FolderSource(tokenizer_folder).tokenizer()("a dog on the beach").input_ids == whole
    for kept in (0, 1, 2, len(lines) // 2, len(lines) - 1):
        merges.write_text("\n".join(lines[:kept]))
        with pytest.raises(ValueError, match=rf"merges.txt is not complete: {len(lines) - max(kept, 1)} of the .*copy"):
            FolderSource(tokenizer_folder).tokenizer()
    merges.write_bytes("\n".join(lines).encode()[:-1])
    with pytest.raises(ValueError, match="tokenizer cannot be read"):
        FolderSource(tokenizer_folder).tokenizer()
    merges.unlink()
    with pytest.raises(FileNotFoundError, match="not complete: .*merges.txt is missing"):
        FolderSource(tokenizer_folder).tokenizer()


def test_a_vocabulary_that_was_cut_is_refused(tokenizer_folder):
    lines, file = as_published(tokenizer_folder), tokenizer_folder / "tokenizer/vocab.json"
    vocabulary = json.loads(file.read_text())
    count = len(vocabulary)
    for kept, merges in ((0, 0), (300, 0), (520, 8), (count - 2, len(lines)), (count - 1, len(lines))):
        write_json(file, dict(list(vocabulary.items())[:kept]))
        (tokenizer_folder / "tokenizer/merges.txt").write_text("\n".join(lines[: merges + 1]))
        with pytest.raises(ValueError, match=f"vocabulary of {kept} tokens lacks <|endoftext|>"):
            FolderSource(tokenizer_folder).tokenizer()
    for text in ("", file.read_text()[:100]):
        file.write_text(text)
        with pytest.raises(ValueError, match="tokenizer cannot be read"):
            FolderSource(tokenizer_folder).tokenizer()


def test_merges_are_missed_in_a_tokenizer_of_one_file_too(tokenizer_folder):
    file = tokenizer_folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    for kept in (0, 5, len(content["model"]["merges"]) - 1):
        model = content["model"] | {"merges": content["model"]["merges"][:kept]}
        write_json(file, content | {"model": model})
        with pytest.raises(ValueError, match=f"tokenizer.json is not complete: .* of the {kept} merges"):
            FolderSource(tokenizer_folder).tokenizer()


def test_words_that_were_added_to_a_tokenizer_need_no_merges(tokenizer_folder):
    tokenizer = FolderSource(tokenizer_folder).tokenizer()
    tokenizer.add_tokens(["<my-toy>", "zebu"])
    tokenizer.save_pretrained(tokenizer_folder / "tokenizer")
    assert len(FolderSource(tokenizer_folder).tokenizer()) == len(tokenizer)


@pytest.mark.parametrize("config, message", [
    ({"_class_name": "DDIMScheduler"}, "linear, 0.0001, 0.02 .DDIMScheduler's own, as the file lacks beta_schedule"),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085},
     "scaled_linear, 0.00085, 0.02 .DDIMScheduler's own, as the file lacks beta_end"),
    ({"beta_schedule": "linear"}, "only Stable Diffusion's scaled_linear, 0.00085, 0.012 are supported"),
    ({"_class_name": "LCMScheduler"}, None),
    ({"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
     None),
    ({}, None),
])
def test_a_schedule_is_what_its_class_makes_of_what_the_file_leaves_out(tmp_path, config, message):
    write_json(tmp_path / "scheduler/scheduler_config.json", config)
    if message is None:
        betas, prediction = FolderSource(tmp_path).schedule()
        np.testing.assert_array_equal(betas, rc.betas())
        assert prediction == "epsilon"
    else:
        with pytest.raises(ValueError, match=f"scheduler_config.json: .*{message}"):
            FolderSource(tmp_path).schedule()


@pytest.mark.parametrize("scheduler, said, marked, given, expected", [
    ("v_prediction", None, False, None, "v_prediction"), ("v_prediction", "epsilon", False, None, "epsilon"),
    ("epsilon", "v", False, None, "v_prediction"), ("epsilon", "epsilon", True, None, "v_prediction"),
    ("v_prediction", "v", True, "epsilon", "epsilon"),
])
def test_a_folder_predicts_what_its_unets_file_says(mini_folder, tmp_path, scheduler, said, marked, given, expected):
    folder = shutil.copytree(mini_folder, tmp_path / "model")
    write_json(folder / "scheduler/scheduler_config.json", {"prediction_type": scheduler})
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = dict(read_tensors(file)) | ({"v_pred": np.zeros(0, np.float32)} if marked else {})
    safetensors.numpy.save_file(tensors, file, metadata=said and {"modelspec.prediction_type": said})
    source = ModelSource.open(folder)
    assert source.schedule(given)[1] == expected
    source.load_unet(source.adapter())


def defaults(function):
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not inspect.Parameter.empty}


def test_what_a_configuration_leaves_out_is_as_diffusers_has_it():
    diffusers = pytest.importorskip("diffusers")
    for ours, theirs in ((UNetConfig, diffusers.UNet2DConditionModel), (VAEConfig, diffusers.AutoencoderKL)):
        written = json.loads(json.dumps(defaults(theirs.__init__)))
        assert ours.from_config({}) == ours.from_config(written)
        some = {name: written[name] for name in list(written)[::2]}
        assert ours.from_config(some) == ours.from_config(written)


def test_what_a_configuration_leaves_out_is_as_transformers_has_it():
    from transformers import CLIPConfig, CLIPTextConfig

    whole = CLIPTextConfig().to_dict()
    assert ClipTextConfig.from_config({}) == ClipTextConfig.from_config(whole)
    assert ClipTextConfig.from_config(CLIPTextConfig(hidden_size=64, projection_dim=32).to_diff_dict()) == (
        ClipTextConfig(hidden_size=64, projection_dim=32))
    both = json.loads(json.dumps(CLIPConfig(text_config={"hidden_size": 64, "projection_dim": 32}).to_dict()))
    assert ClipTextConfig.from_config(both) == ClipTextConfig(hidden_size=64, projection_dim=32)


@pytest.mark.parametrize("change, same_as", [
    ({"layers_per_block": [2, 2]}, {"layers_per_block": 2}), ({"cross_attention_dim": [12, 12]}, {}),
    ({"transformer_layers_per_block": [[1, 1], [2, 2, 2]], "reverse_transformer_layers_per_block": [[2, 2], 1]},
     {"transformer_layers_per_block": [1, 2]}),
    ({"only_cross_attention": [False, False]}, {}), ({"dual_cross_attention": None}, {}),
])
def test_a_unets_values_for_each_level_may_be_lists(change, same_as):
    base = {"block_out_channels": [8, 8], "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2, "cross_attention_dim": 12}
    assert UNetConfig.from_config(base | change) == UNetConfig.from_config(base | same_as)


@pytest.mark.parametrize("key, value", [
    ("cross_attention_dim", [64, 32, 64, 64]), ("transformer_layers_per_block", [1, [2, 1], 1, 1]),
    ("reverse_transformer_layers_per_block", [1, 1, 1, 2]), ("layers_per_block", [1, 2]),
    ("dual_cross_attention", True), ("class_embed_type", "timestep"), ("only_cross_attention", [True, False]),
    ("mid_block_only_cross_attention", True), ("addition_embed_type", "image"), ("attention_type", "gated"),
    ("time_cond_proj_dim", 256), ("num_class_embeds", 10), ("encoder_hid_dim_type", "image_proj"),
    ("mid_block_type", None), ("conv_in_kernel", 5), ("time_embedding_type", "fourier"),
])
def test_what_would_need_another_unet_is_named(key, value):
    with pytest.raises(ValueError, match=f"UNet config: {key}"):
        rc.load_unet({key: value})


@pytest.mark.parametrize("loader, config", [
    (rc.load_unet, {"layers_per_block": "2"}), (rc.load_unet, {"norm_num_groups": 7}),
    (rc.load_unet, {"norm_num_groups": None}), (rc.load_unet, {"attention_head_dim": 0}),
    (rc.load_autoencoder, {"block_out_channels": ["w"]}), (rc.load_text_encoder, {"num_hidden_layers": "many"}),
])
def test_what_the_network_makes_of_a_broken_configuration_is_a_value_error(loader, config):
    with pytest.raises(ValueError):
        loader(config)


@pytest.mark.parametrize("key", ["shift_factor", "latents_mean", "latents_std"])
def test_latents_that_are_shifted_are_refused(key):
    with pytest.raises(ValueError, match=f"autoencoder config: {key} is .*scaling_factor"):
        rc.load_autoencoder({key: [0.1] * 4})
    assert VAEConfig.from_config({key: None}) == VAEConfig()


@pytest.mark.parametrize("loader, config, message", [
    (rc.load_unet, {"addition_embed_type": "text_time"},
     "UNet config: projection_class_embeddings_input_dim is missing"),
    (rc.load_unet, {"block_out_channels": None}, "UNet config: the configuration cannot be used"),
    (rc.load_unet, {"block_out_channels": [8, 8]}, "has not one value for each of the 2 levels"),
    (rc.load_projector, {}, "Projector config: the configuration lacks 'vision_projection_config'"),
    (rc.load_projector, {"vision_projection_config": {"variant": "paper"}}, "Projector config: .*lacks 'params'"),
    (rc.load_projector, {"vision_projection_config": {"variant": "paper", "params": {"vision_dim": 4}}},
     "Projector config: params lacks out_dim"),
    (rc.load_autoencoder, {"block_out_channels": 3}, "autoencoder config: the configuration cannot be used"),
    (rc.load_vision_encoder, {"img_size": None}, "ViT config: the configuration cannot be used"),
    (rc.load_text_encoder, {"hidden_size": "wide"}, "CLIP text config: the configuration cannot be used"),
    (rc.load_clip_vision, {"vision_config": {"image_size": "wide"}},
     "CLIP vision config: the configuration cannot be used"),
])
def test_a_configuration_that_cannot_be_used_is_one_sentence(loader, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loader(config)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=message.rpartition("config: ")[2]) as raised:
        loader(tmp_path / "config.json")
    assert "config.json" in str(raised.value)
