"""Files that are not what is asked for, and what is said of them: by their first bytes, or by their tensors' names."""

import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.kinds import identify
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import read_tensors

ADAPTER = "encoder_hidden_states_vision_projection."
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 10270077736\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
KINDS = {
    "an IP-Adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], ["image_proj.latents"],
                      ["image_proj.layers.0.0.to_q.weight", "ip_adapter.0.to_q_lora.down.weight"]),
    "a LoRA": (["lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "lora_te1_x.alpha"],
               ["unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"],
               ["base_model.model.down_blocks.0.attn1.to_q.lora_B.default.weight"],
               ["lora_unet_x.hada_w1_a"], ["diffusion_model.input_blocks.1.lokr_w1"]),
    "a ControlNet": (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"],
                     ["control_model.input_blocks.0.0.weight"], ["input_hint_block.0.weight", "zero_convs.0.0.bias"],
                     ["controlnet_down_blocks.0.weight"]),
    "a T2I-Adapter": (["adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"],
                      ["body.0.block1.weight", "conv_in.weight"], ["body.1.in_conv.weight"]),
    "a textual inversion": (["emb_params"], ["string_to_param.*"], ["clip_g", "clip_l"], ["<cat-toy>"]),
    "an upscaler": (["body.0.rdb1.conv1.weight"], ["model.1.sub.0.RDB1.conv1.0.weight", "model.0.weight"],
                    ["RRDB_trunk.0.RDB1.conv1.weight"], ["layers.0.residual_group.blocks.0.norm1.weight"]),
    "an autoencoder in Stable Diffusion's original names": (
        ["encoder.down.0.block.0.norm1.weight", "post_quant_conv.bias"], ["first_stage_model.decoder.conv_in.weight"]),
    "a diffusers autoencoder": (["decoder.up_blocks.0.resnets.0.conv1.bias", "quant_conv.bias"],),
    "a diffusers UNet": (["conv_in.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"],),
    "a UNet in Stable Diffusion's original names": (["input_blocks.0.0.weight", "time_embed.0.weight"],),
    "a single-file Stable Diffusion checkpoint": (["model.diffusion_model.out.0.bias", "first_stage_model.x"],),
}
CASES = [(what, names) for what, files in KINDS.items() for names in files]


@pytest.fixture
def folder(mini_folder, tmp_path):
    return shutil.copytree(mini_folder, tmp_path / "model")


def nested(names, value):
    """As trainers keep parts of a model apart: dictionaries within a dictionary."""
    tree = {}
    for name in names:
        first, _, rest = name.partition(".")
        if rest:
            tree.setdefault(first, {})[rest] = value
        else:
            tree[first] = value
    return tree


@pytest.mark.parametrize(("what", "names"), CASES)
@pytest.mark.parametrize("form", ["safetensors", "bin", "nested"])
def test_what_is_no_adapter_is_named(tmp_path, what, names, form):
    path = tmp_path / ("given.safetensors" if form == "safetensors" else "given.bin")
    if form == "safetensors":
        safetensors.numpy.save_file(dict.fromkeys(names, np.zeros((2, 2), np.float32)), path)
    else:
        torch = pytest.importorskip("torch")
        value = torch.zeros(2, 2)
        torch.save(nested(names, value) if form == "nested" else dict.fromkeys(names, value), path)
    with pytest.raises(ValueError, match=f"given.* is no RealCustom adapter but {what}"):
        find_adapter(path)


@pytest.mark.parametrize(("option", "what", "names"), [
    (option, what, names) for what, names in CASES for option, fitting in (
        ("model", "single-file"), ("vae", "autoencoder|single-file"), ("unet", "UNet|single-file"))
    if not re.search(fitting, what)])
def test_what_is_no_model_autoencoder_or_unet_is_named(mini_folder, tmp_path, option, what, names):
    path = tmp_path / "given.safetensors"
    safetensors.numpy.save_file(dict.fromkeys(names, np.zeros((2, 2), np.float32)), path)
    with pytest.raises(ValueError, match=f"given.safetensors.* {what}") as raised:
        if option == "model":
            ModelSource.open(path).check("unet")
        else:
            rc.Pipeline.load(mini_folder, **{option: path})
    assert f"--{option}" not in str(raised.value)


def test_a_textual_inversion_with_its_name_and_step_in_it(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(1, 768)}, "name": "toy", "step": 5,
                "sd_checkpoint": None}, tmp_path / "toy.pt")
    with pytest.warns(UserWarning, match="ignored"), pytest.raises(ValueError, match="but a textual inversion"):
        find_adapter(tmp_path / "toy.pt")


def test_a_lora_is_sent_to_its_option(folder, tmp_path):
    path = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(dict.fromkeys(
        ("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"), np.zeros((2, 2), np.float32)), path)
    for load in (find_adapter, lambda path: ModelSource.open(path).check("unet"),
                 lambda path: rc.Pipeline.load(folder, unet=path), lambda path: rc.Pipeline.load(folder, vae=path)):
        with pytest.raises(ValueError, match=r"a LoRA; (expected a .*; )?give it with loras \(--lora\), beside"):
            load(path)


def test_a_file_is_sent_to_the_option_that_takes_it(folder):
    for path, option in (("unet/diffusion_pytorch_model", "unet"), ("vae/diffusion_pytorch_model", "vae"),
                         ("adapter/realcustom", "adapter")):
        path = folder / f"{path}.safetensors"
        with pytest.raises(ValueError, match=rf"give it as the {option} \(--{option}\)"):
            ModelSource.open(path).check("unet")
        if option != "adapter":
            with pytest.raises(ValueError, match=rf"is no RealCustom adapter but .* \(--{option}\)"):
                find_adapter(path)


@pytest.mark.parametrize(("content", "message"), [
    (POINTER, "is a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (PAGE, r"is a web page \(HTML\), not the file"),
    ("<?xml version='1.0'?><!-- saved --><html>", "is a web page"),
])
@pytest.mark.parametrize("name", [
    "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json", "adapter/config.json", "scheduler/scheduler_config.json", "model_index.json",
    "vocabulary.json", "unet/diffusion_pytorch_model.safetensors.index.json"])
def test_a_pointer_or_a_page_in_a_files_place_is_named(folder, name, content, message):
    if "index" in name and "unet" in name:
        (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / name).write_text(content)
    if name == "model_index.json":  # which is only read where something is missing
        (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=f"{name} {message}"):
        rc.Pipeline.load(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".ckpt", ".pt"])
def test_a_pointer_in_place_of_weights_of_any_kind(tmp_path, suffix):
    (tmp_path / f"weights{suffix}").write_text(POINTER)
    for read in (read_tensors, find_adapter, lambda path: ModelSource.open(path).check("unet")):
        with pytest.raises(ValueError, match=f"weights{suffix} is a git-lfs pointer"):
            read(tmp_path / f"weights{suffix}")


@pytest.mark.parametrize(("change", "message"), [
    (lambda name: name if "_vision." in name and ADAPTER not in name else None,
     "holds only half of a RealCustom adapter: .* not the projector"),
    (lambda name: f"unet.{name}" if name.startswith(ADAPTER) else name,
     "holds a RealCustom adapter under other names: 'unet.encoder_hidden.* take 'unet.' away"),
])
def test_an_adapter_without_its_projector_is_told_what_it_lacks(folder, change, message):
    file = folder / "adapter/realcustom.safetensors"
    renamed = {new: value for name, value in read_tensors(file).items() if (new := change(name))}
    safetensors.numpy.save_file(renamed, file)
    with pytest.raises(ValueError, match=message) as raised:
        find_adapter(file)
    assert "no RealCustom adapter but" not in str(raised.value)


def test_an_adapter_without_its_visual_layers_is_told_which(folder):
    file = folder / "adapter/realcustom.safetensors"
    safetensors.numpy.save_file({k: v for k, v in read_tensors(file).items() if k.startswith(ADAPTER)}, file)
    with pytest.raises(ValueError, match="do not fit this UNet: missing keys: .*to_k_vision"):
        rc.Pipeline.load(folder)


def test_names_of_no_known_kind():
    assert identify(["mystery.weight", "flower.bias"]) == "no model that we know"
