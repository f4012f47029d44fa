"""Torch-named files ↔ parameters: exact both ways, and strict about what is in a file."""

import contextlib
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import realcustom_jax as rc
from realcustom_jax.model_files import weights
from realcustom_jax.model_files.names import wrapping
from realcustom_jax.model_files.tensors import headers_only, read_tensors

from goldens import FIXTURES

PARTS = {
    "vae": rc.load_autoencoder,
    "clip_text_quickgelu": rc.load_text_encoder,
    "clip_text_proj_gelu": rc.load_text_encoder,
    "vit_siglip": rc.load_vision_encoder,
    "vit_dinov2_reg": rc.load_vision_encoder,
}


def tensors_of(name):
    return dict(read_tensors(FIXTURES / f"{name}.safetensors"))


def load(loader, name, *files, **options):
    return loader(FIXTURES / f"{name}.json", *(files or [FIXTURES / f"{name}.safetensors"]), **options)


def written(tmp_path, tensors, name="weights.safetensors"):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / name)
    return tmp_path / name


def assert_same(ours, theirs):
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("name", PARTS)
def test_round_trip_is_exact(name):
    _, params = load(PARTS[name], name)
    original = tensors_of(name)
    ours = weights.to_torch(params)
    assert_same(ours, original)
    unused = {k for k in original if not k.startswith(("norm.", "attn_pool.", "fc_norm.", "head."))} - set(ours)
    assert all(k.endswith("position_ids") for k in unused)


@pytest.mark.parametrize("name", [
    "unet_sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet_sdxl_shallow", "unet_sd15"))])
def test_unet_and_projector_together_are_the_released_file(name):
    ours = weights.to_torch(load(rc.load_unet, name)[1])
    ours |= weights.to_torch(load(rc.load_projector, name)[1], weights.PROJECTOR_PREFIX)
    original = tensors_of(name)
    assert set(ours) == set(original)
    assert_same(ours, original)


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoders_of_old_and_new_transformers(tmp_path, prefix):
    original = tensors_of("clip_text_quickgelu")
    named = {prefix + name.removeprefix("text_model."): value for name, value in original.items()}
    named[f"{prefix}embeddings.position_ids"] = np.arange(77)[None]
    _, params = load(rc.load_text_encoder, "clip_text_quickgelu", written(tmp_path, named))
    assert_same(weights.to_torch(params), original)


def test_all_problems_are_in_one_error(tmp_path):
    tensors = tensors_of("vae")
    del tensors["encoder.conv_in.bias"]
    tensors["decoder.conv_out.weight"] = np.zeros((3, 8, 1, 1), np.float32)
    problems = r"missing keys: encoder\.conv_in\.bias; wrong shapes: decoder\.conv_out\.weight"
    with pytest.raises(ValueError, match=problems):
        load(rc.load_autoencoder, "vae", written(tmp_path, tensors))
    with pytest.raises(ValueError, match="belong to no part: mystery.weight"):
        load(rc.load_autoencoder, "vae", written(tmp_path, tensors_of("vae") | {"mystery.weight": np.ones(1)}))
    extra = tensors_of("vae") | {"decoder.conv_extra.weight": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match=r"decoder\.conv_extra\.weight"):
        load(rc.load_autoencoder, "vae", written(tmp_path, extra))


def test_later_files_override_earlier(tmp_path):
    last = written(tmp_path, {"encoder.conv_in.bias": np.full(8, 7, np.float32)})
    _, params = load(rc.load_autoencoder, "vae", FIXTURES / "vae.safetensors", last)
    np.testing.assert_array_equal(params["encoder"]["conv_in"]["bias"], 7)


def test_old_autoencoder_attention_is_converted(tmp_path):
    new = tensors_of("vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in new.items():
        for ours, theirs in names.items():
            if f"attentions.0.{ours}." in name:
                name = name.replace(ours, theirs)
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[name] = value
    assert set(old) != set(new)
    assert_same(weights.to_torch(load(rc.load_autoencoder, "vae", written(tmp_path, old))[1]), new)


def test_an_open_clip_file_gives_its_vision_tower(tmp_path):
    tower = {f"visual.trunk.{k}": v for k, v in tensors_of("vit_siglip").items()}
    others = {"logit_scale": np.ones(1, np.float32), "text.transformer.weight": np.ones(1, np.float32)}
    file = written(tmp_path, tower | others)
    _, params = load(rc.load_vision_encoder, "vit_siglip", file)
    assert_same(weights.to_torch(params), tensors_of("vit_siglip"))


@pytest.mark.slow
def test_a_fresh_adapter_on_a_base_model(tmp_path):
    base = {k: v for k, v in tensors_of("unet_sdxl").items()
            if "_vision" not in k and not k.startswith(weights.PROJECTOR_PREFIX)}
    file = written(tmp_path, base)
    with pytest.raises(ValueError, match="missing keys: .*to_k_vision"):
        load(rc.load_unet, "unet_sdxl", file)
    _, params = load(rc.load_unet, "unet_sdxl", file, init_missing=("vision",), rng=jax.random.key(0))
    tensors = weights.to_torch(params)
    assert_same(base, tensors)
    added = {k: v for k, v in tensors.items() if k not in base}
    assert added and all((np.abs(v).max() > 0) == (".to_k_vision." in k) for k, v in added.items())
    _, projector = load(rc.load_projector, "unet_sdxl", file, init_missing=("vision",), rng=jax.random.key(0))
    assert set(weights.to_torch(projector, weights.PROJECTOR_PREFIX)) < set(tensors_of("unet_sdxl"))
    with pytest.raises(ValueError, match="needs rng"):
        load(rc.load_unet, "unet_sdxl", file, init_missing=("vision",))
    with pytest.raises(ValueError, match="'visual' is unknown"):
        load(rc.load_unet, "unet_sdxl", file, init_missing=("visual",), rng=jax.random.key(0))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.slow
def test_layers_apart(tmp_path, fresh):
    """As on GPUs: the same numbers, those that are drawn afresh too, and no stack of layers."""
    tensors = {k: v for k, v in tensors_of("unet_sdxl").items()
               if not k.startswith(weights.PROJECTOR_PREFIX) and not (fresh and "_vision" in k)}
    file, options = written(tmp_path, tensors), {}
    if fresh:
        options = {"init_missing": ("vision",), "rng": jax.random.key(0)}
    _, scanned = load(rc.load_unet, "unet_sdxl", file, **options)
    _, apart = load(rc.load_unet, "unet_sdxl", file, scan_layers=False, **options)
    assert not any("transformer_blocks" in path for path in flatten_dict(apart))
    assert_same(weights.to_torch(apart), weights.to_torch(scanned))
    assert len(weights.to_torch(apart)) == len(weights.to_torch(scanned))
    del tensors[next(name for name in tensors if "transformer_blocks.1" in name)]
    with pytest.raises(ValueError, match="missing keys: .*transformer_blocks.1"):
        load(rc.load_unet, "unet_sdxl", written(tmp_path, tensors), scan_layers=False, **options)


@pytest.mark.parametrize("scan_layers, layer", [(True, 0), (True, 1), (False, 0)])
def test_a_visual_layer_that_the_file_lacks_is_named(tmp_path, scan_layers, layer):
    """Neither is memory that nothing was written to taken for weights, nor is one layer among others drawn afresh."""
    tensors = {k: v for k, v in tensors_of("unet_sdxl").items() if not k.startswith(weights.PROJECTOR_PREFIX)}
    lost = f"mid_block.attentions.0.transformer_blocks.{layer}.attn2.to_k_vision.weight"
    value = tensors.pop(lost)
    options = {"init_missing": ("vision",), "rng": jax.random.key(0), "scan_layers": scan_layers}
    file, rest = written(tmp_path, tensors), written(tmp_path, {lost: value}, "rest.safetensors")
    with pytest.raises(ValueError, match=rf"missing keys: {re.escape(lost)}\.$"):
        load(rc.load_unet, "unet_sdxl", file, **options)
    _, params = load(rc.load_unet, "unet_sdxl", file, rest, **options)
    assert_same(weights.to_torch(params), tensors | {lost: value})


def test_filling_counts_what_it_fills():
    shapes = {"transformer_blocks": {"norm1": {"scale": jax.ShapeDtypeStruct((3, 2), np.float32)}}}
    tensors = {f"transformer_blocks.{i}.norm1.weight": np.full(2, i, np.float32) for i in range(3)}
    params, unused = weights.from_torch(shapes, tensors | {"other": np.ones(1)}, "stack", dtype=np.float32)
    np.testing.assert_array_equal(params["transformer_blocks"]["norm1"]["scale"], [[0, 0], [1, 1], [2, 2]])
    assert unused == {"other"}
    assert weights.from_torch(shapes, {}, "stack", dtype=np.float32, missing_ok=lambda name: True) == ({}, set())
    for lost in range(3):
        some = {name: value for name, value in tensors.items() if f".{lost}." not in name}
        with pytest.raises(ValueError, match=rf"missing keys: transformer_blocks\.{lost}\.norm1\.weight\.$"):
            weights.from_torch(shapes, some, "stack", dtype=np.float32, missing_ok=lambda name: True)
        with headers_only(), pytest.raises(ValueError, match="missing keys"):
            weights.from_torch(shapes, some, "stack", dtype=np.float32)


@pytest.mark.slow
def test_bfloat16_parameters():
    module, params = load(rc.load_autoencoder, "vae", dtype=jax.numpy.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert module.apply({"params": params}, np.zeros((1, 4, 4, 3)), method="encode").mean.dtype == jax.numpy.bfloat16


def test_bfloat16_files(tmp_path):
    value = np.arange(8).astype(jax.numpy.bfloat16)
    tensors = read_tensors(written(tmp_path, {"encoder.conv_in.bias": value}))
    np.testing.assert_array_equal(tensors["encoder.conv_in.bias"], value)
    assert tensors["encoder.conv_in.bias"].dtype == jax.numpy.bfloat16


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_tensors(tmp_path / "none.safetensors")
    content = (FIXTURES / "vae.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_tensors(tmp_path / "cut.safetensors")
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="unknown kind '.npz'"):
        read_tensors(tmp_path / "weights.npz")
    for text, message in (("{", "not valid JSON"), ("[1]", r"holds a JSON list; expected an object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            rc.load_autoencoder(tmp_path / "config.json")


def test_torch_files_are_read_weights_only(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = tensors_of("vae")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "vae.bin")
    assert_same(weights.to_torch(load(rc.load_autoencoder, "vae", tmp_path / "vae.bin")[1]), tensors)
    half = {"encoder.conv_in.bias": torch.full((8,), 1.5, dtype=torch.bfloat16)}
    torch.save(half, tmp_path / "half.pth")
    np.testing.assert_array_equal(read_tensors(tmp_path / "half.pth")["encoder.conv_in.bias"], 1.5)

    class Trap:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth holds the Python object print: refused.*nothing is unpickled"):
        read_tensors(tmp_path / "trap.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content, message", [
    ([1, 2], "not a dictionary of tensors: it holds a list"),
    ({"epoch": 3}, "not a dictionary of tensors: it holds epoch"),
    ({1: None}, "not a dictionary of tensors: it holds 1"),
    ({"state_dict": None}, "it holds a NoneType"),
])
def test_torch_files_of_other_things(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "other.pth")


def test_torch_files_of_parameters(tmp_path):
    """As `torch.save(dict(module.named_parameters()))` writes them: they require gradients."""
    torch = pytest.importorskip("torch")
    tensors = tensors_of("vae")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in tensors.items()}
    parameters["half"] = torch.nn.Parameter(torch.full((2,), 1.5, dtype=torch.bfloat16))
    torch.save(parameters, tmp_path / "parameters.pth")
    read = read_tensors(tmp_path / "parameters.pth")
    np.testing.assert_array_equal(read["half"], np.full(2, 1.5, jax.numpy.bfloat16))
    torch.save({"state_dict": parameters | {"half": torch.ones(1)}}, tmp_path / "checkpoint.pth")
    for file in (tmp_path / "parameters.pth", tmp_path / "checkpoint.pth"):
        assert_same({name: value for name, value in read_tensors(file).items() if name != "half"}, tensors)


def test_tensors_that_numpy_cannot_hold_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tiny = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    kinds = {"sparse": torch.eye(3).to_sparse(), "empty": torch.empty(3, device="meta")}
    torch.save(kinds, tmp_path / "kinds.pth")
    save_file({"tiny": tiny}, tmp_path / "kinds.safetensors")
    for file, name in (("kinds.pth", "sparse"), ("kinds.pth", "empty"), ("kinds.safetensors", "tiny")):
        with pytest.raises(ValueError, match=rf"{file}: {name} is a tensor of kind .*, which cannot be read; save"):
            read_tensors(tmp_path / file)[name]
        with headers_only(), pytest.raises(ValueError, match="cannot be read"):
            read_tensors(tmp_path / file)[name]


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_eight_bits_are_read_and_told_of(tmp_path, kind, suffix):
    """With the values that torch reads, and the same for `--memory`, which reads headers only."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {k: torch.from_numpy(v).to(getattr(torch, kind)) for k, v in tensors_of("vae").items()}
    file = tmp_path / f"small{suffix}"
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    with pytest.warns(UserWarning, match=f"this autoencoder are stored as {kind}, computed in bfloat16"):
        _, params = load(rc.load_autoencoder, "vae", file, dtype=jax.numpy.bfloat16)
    ours = weights.to_torch(params)
    assert {name: value.astype(np.float32).tolist() for name, value in ours.items()} == {
        name: value.float().tolist() for name, value in tensors.items()}
    with headers_only(), pytest.warns(UserWarning, match="stored as float8"):
        shapes = load(rc.load_autoencoder, "vae", file)[1]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("suffix, scale", [(".scale_weight", 0.5), (".weight_scale", [[2.0], [4.0]])])
def test_scales_of_eight_bit_weights_are_applied(tmp_path, suffix, scale):
    small, bias = jax.numpy.float8_e4m3fn, np.array([0.1, 0.2], np.float32)
    stored = np.array([[1, -2, 3], [0.5, 8, 0.25]]).astype(small)
    tensors = {"layer.weight": stored, f"layer{suffix}": np.array(scale, np.float32), "layer.bias": bias,
               "layer.scale_input": np.ones(1, np.float32), "scaled_fp8": np.zeros(2, small)}
    file = written(tmp_path, tensors)
    read = read_tensors(file)
    assert set(read) == {"layer.weight", "layer.bias"}
    np.testing.assert_array_equal(read["layer.weight"], np.float32([[1, -2, 3], [0.5, 8, 0.25]]) * np.float32(scale))
    with headers_only():
        assert read_tensors(file)["layer.weight"].shape == (2, 3)
    for change, message in (({f"layer{suffix}": np.ones(3, np.float32)}, "has a scale of shape"),
                            ({"layer.weight": stored.astype(np.int8)}, "stored as int8 with a scale")):
        with pytest.raises(ValueError, match=message):
            read_tensors(written(tmp_path, tensors | change))["layer.weight"]


@pytest.mark.parametrize("kind", [np.int8, np.bool_, np.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, kind):
    tensors = tensors_of("vae")
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"].astype(kind)
    for context in (contextlib.nullcontext(), headers_only()):
        with context, pytest.raises(ValueError, match=r"not floating-point numbers: encoder\.conv_in\.bias of \w+\."):
            load(rc.load_autoencoder, "vae", written(tmp_path, tensors))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "state_dict.", "model.", "module._orig_mod.",
                                    "model.module.", "_orig_mod.module._orig_mod."])
def test_what_wraps_all_names_is_taken_away(tmp_path, prefix):
    original = tensors_of("vae")
    wrapped = {prefix + name: value for name, value in original.items()}
    with pytest.warns(UserWarning, match="is ignored: epoch, global_step"):
        file = read_tensors(written(tmp_path, wrapped | {"epoch": np.ones(1), "global_step": np.ones(1)}))
    assert set(file) == set(original)
    assert_same(weights.to_torch(load(rc.load_autoencoder, "vae", file)[1]), original)
    first, *others = wrapped
    some = {first.removeprefix(prefix): wrapped[first]} | {name: wrapped[name] for name in others}
    with pytest.raises(ValueError, match="keys that belong to no part: .*" + re.escape(others[0])):
        load(rc.load_autoencoder, "vae", written(tmp_path, some))


def test_the_prefix_of_single_files_is_no_wrapper():
    assert wrapping(["model.diffusion_model.out.0.bias"]) == ""
    assert wrapping(["module.model.diffusion_model.out.0.bias", "module.first_stage_model.x"]) == "module."
    assert wrapping(["state_dict.model.diffusion_model.out.0.bias"]) == "state_dict."
    assert wrapping(["model.a", "v_pred", "epoch", "optimizer.state.0"]) == "model." and wrapping([]) == ""


def test_what_a_trainer_keeps_beside_the_weights_is_told_of_and_ignored(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = tensors_of("vae")
    model = {name: torch.from_numpy(value) for name, value in tensors.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"module": model, "optimizer": optimizer, "epoch": 3, "note": "mine"}, tmp_path / "all.pth")
    with pytest.warns(UserWarning, match="all.pth .* is ignored: epoch, note, optimizer") as told:
        read = read_tensors(tmp_path / "all.pth")
    assert len(told) == 1 and set(read) == set(tensors)
    assert_same(weights.to_torch(load(rc.load_autoencoder, "vae", read)[1]), tensors)
    with pytest.raises(ValueError, match="missing keys: encoder.conv_in.bias"), pytest.warns(UserWarning):
        del model["encoder.conv_in.bias"]
        torch.save({"model": model, "epoch": 3}, tmp_path / "all.pth")
        load(rc.load_autoencoder, "vae", tmp_path / "all.pth")


def test_a_text_encoder_within_a_whole_clip(tmp_path):
    """transformers writes the width of the joint space beside both towers, and makes the projection by that."""
    config = json.loads((FIXTURES / "clip_text_proj_gelu.json").read_text())
    tensors = tensors_of("clip_text_proj_gelu")
    width = tensors["text_projection.weight"].shape[0]
    whole = {"model_type": "clip", "projection_dim": width, "vision_config": {},
             "text_config": {name: value for name, value in config.items() if name != "projection_dim"}}
    others = ("vision_model.post_layernorm.weight", "visual_projection.weight", "logit_scale")
    file = written(tmp_path, tensors | dict.fromkeys(others, np.ones(1)))
    module, params = rc.load_text_encoder(whole, file)
    alone = rc.load_text_encoder(config, file)[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, alone)) and module.config.projection_dim == width


def test_torch_files_that_are_cut_or_none(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"garbage"):
        (tmp_path / "cut.pth").write_bytes(content)
        with pytest.raises(ValueError, match="cut.pth is truncated or not a torch file of tensors: refused"):
            read_tensors(tmp_path / "cut.pth")
