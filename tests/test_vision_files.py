"""Image encoders of DINO and DINOv2 in the names of timm, torch.hub and transformers, against torch run live.

The networks of torch.hub are written here once more, as functions of a state dict, so that their ways to fit positions
to another grid need no network to be tested.
"""

import math
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from torch_models import disturbed

import realcustom_jax as rc
from realcustom_jax.model_files.known_vision import KNOWN, POSITIONS, arguments_of
from realcustom_jax.model_files.tensors import headers_only
from realcustom_jax.models import vit
from realcustom_jax.models.vit_config import VitConfig, timm_arguments

from goldens import FIXTURES, assert_close, nhwc

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
HUBS = {  # positions → what torch.nn.functional.interpolate is given beside the size
    "dino": {"offset": 0.1, "antialias": False}, "dinov2": {"offset": 0.1, "antialias": False},
    "dinov2_reg": {"offset": 0, "antialias": True},
}


def images_of(side, count=2):
    height, width = (side, side) if isinstance(side, int) else side
    return np.random.default_rng(1).normal(size=(count, 3, height, width)).astype(np.float32)


def pooled(module, params, images):
    return jax.jit(lambda params: module.apply({"params": params}, nhwc(images), method="pooled"))(params)


def written(tensors, path):
    safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def hub_state(config, *, trained_at, registers=False, scale=0.05):
    """Random weights in torch.hub's names."""
    rng, width, depth = np.random.default_rng(0), config["embed_dim"], config["depth"]
    hidden, patch = 4 * width, config["patch_size"]
    side = trained_at // patch
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side * side, width), "mask_token": (1, width),
              "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    if registers:
        shapes["register_tokens"] = (1, 4, width)
    for i in range(depth):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in {
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,), "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,)}.items()}
        if config.get("init_values"):
            shapes |= {f"blocks.{i}.ls{j}.gamma": (width,) for j in (1, 2)}
    tensors = {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    for name in ("norm", *(f"blocks.{i}.norm{j}" for i in range(depth) for j in (1, 2))):
        for leaf, mean in (("weight", 1), ("bias", 0)):
            tensors[f"{name}.{leaf}"] = (mean + scale * rng.standard_normal(width)).astype(np.float32)
    return tensors


def hub_positions(torch, trained, grid, *, offset, antialias):
    """[1, 1 + n·n, C] → [1, 1 + h·w, C]."""
    side = math.isqrt(trained.shape[1] - 1)
    if grid == (side, side):
        return trained
    size = {"scale_factor": tuple((new + offset) / side for new in grid)} if offset else {"size": grid}
    patches = trained[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, mode="bicubic", antialias=antialias, **size)
    assert patches.shape[2:] == grid
    return torch.cat([trained[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def hub_class_token(torch, tensors, images, config, **how):
    """The class token that the hub's network gives for images [B,3,H,W]."""
    F, state = torch.nn.functional, {name: torch.from_numpy(value) for name, value in tensors.items()}
    width, heads, patch = config["embed_dim"], config["num_heads"], config["patch_size"]

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = F.conv2d(torch.from_numpy(images), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"],
                 stride=patch)
    grid, x = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + hub_positions(torch, state["pos_embed"], grid, **how)
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for i in range(config["depth"]):
        block = f"blocks.{i}"
        query, key, value = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").reshape(
            len(x), x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        x = x + linear(seen, f"{block}.attn.proj") * state.get(f"{block}.ls1.gamma", 1)
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2") * state.get(f"{block}.ls2.gamma", 1)
    return norm(x, "norm")[:, 0]


def hub_case(positions):
    """(configuration, whether there are registers) of the kind of network whose positions are fitted so."""
    registers = positions == "dinov2_reg"
    more = {} if positions == "dino" else {"init_values": 1.0}
    return TINY | more | ({"reg_tokens": 4, "no_embed_class": True} if registers else {}), registers


def some(*cases, quick):
    """Parameters of a test of which only these run by default."""
    return [pytest.param(*case, marks=[pytest.mark.slow] * (case not in quick)) for case in cases]


@pytest.mark.parametrize("positions, trained_at, size", some(
    *((positions, *sizes) for positions in HUBS for sizes in ((40, 40), (72, 40), (40, (56, 32)))),
    quick=[("dinov2", 72, 40), ("dinov2_reg", 72, 40)]))
def test_the_hubs_class_token(torch, tmp_path, positions, trained_at, size):
    """At the grid of training, at a smaller one and at one that is longer and narrower."""
    config, registers = hub_case(positions)
    tensors, images = hub_state(config, trained_at=trained_at, registers=registers, scale=0.2), images_of(size)
    expected = hub_class_token(torch, tensors, images, config, **HUBS[positions])
    file = written(tensors, tmp_path / "model.safetensors")
    module, params = rc.load_vision_encoder(config | {"img_size": size}, file, positions=positions)
    assert_close(pooled(module, params, images), expected, 1e-5)
    if size == 40 and trained_at == 72 and not registers:
        # As timm's code does, it would be another network's number.
        module, params = rc.load_vision_encoder(config | {"img_size": size}, file)
        assert np.abs(pooled(module, params, images) - expected.numpy()).max() > 1e-3


@pytest.mark.parametrize("how", ["chunks", "teacher", "student", "backbone"])
def test_what_training_puts_around_the_hubs_names(tmp_path, how):
    config, _ = hub_case("dinov2")
    tensors = hub_state(config, trained_at=40)
    other = {name: value + 1 for name, value in tensors.items()}
    heads = {"dino_head.mlp.0.weight": np.ones((2, 2), np.float32), "head.last.bias": np.ones(2, np.float32)}
    in_chunks = {name.replace("blocks.", "blocks.0.") if name.startswith("blocks.0.") else
                 name.replace("blocks.", "blocks.1."): value for name, value in tensors.items()}
    named = {
        "chunks": in_chunks,
        "teacher": {f"student.module.backbone.{name}": value for name, value in other.items()}
        | {f"teacher.backbone.{name}": value for name, value in tensors.items()}
        | {f"teacher.{name}": value for name, value in heads.items()}
        | {"dino_loss.center": np.ones((1, 2), np.float32)},
        "student": {f"student.module.backbone.{name}": value for name, value in tensors.items()}
        | {f"student.module.{name}": value for name, value in heads.items()},
        "backbone": {f"backbone.{name}": value for name, value in tensors.items()} | heads,
    }[how]
    expected = rc.load_vision_encoder(config | {"img_size": 40}, written(tensors, tmp_path / "plain.safetensors"))
    loaded = rc.load_vision_encoder(config | {"img_size": 40}, written(named, tmp_path / "named.safetensors"))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded[1], expected[1])) and loaded[0] == expected[0]


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 40, "patch_size": 8}
MODELS = {
    "ViT": {"intermediate_size": 56, "layer_norm_eps": 1e-3}, "Dinov2": {"mlp_ratio": 3, "layer_norm_eps": 1e-3},
    "Dinov2WithRegisters": {"num_register_tokens": 3}, "gated": {"use_swiglu_ffn": True},
    "without biases": {"intermediate_size": 56, "qkv_bias": False, "hidden_act": "gelu_new"},
}
CLASSES = {"gated": "Dinov2", "without biases": "ViT"}


def transformers_model(torch, transformers, name, **changes):
    torch.manual_seed(0)
    kind = CLASSES.get(name, name)
    config = getattr(transformers, f"{kind}Config")(**VIT | MODELS[name] | changes)
    return disturbed(getattr(transformers, f"{kind}Model")(config))


@pytest.mark.parametrize("name, names", some(
    *((name, names) for name in MODELS for names in ("saved", "of the modules")),
    quick=[("ViT", "saved"), ("gated", "of the modules")]))
def test_transformers_class_token(torch, transformers, tmp_path, name, names):
    """From the names that published files have, and from those that the modules have since version 5."""
    model, images = transformers_model(torch, transformers, name), images_of(40)
    model.save_pretrained(tmp_path)
    if names != "saved":
        written({name: value.numpy() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    module, params = rc.load_vision_encoder(tmp_path / "config.json", tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).last_hidden_state[:, 0]
    assert_close(pooled(module, params, images), expected, 1e-5)


@pytest.mark.parametrize("name, positions, size", some(
    *((*case, size) for case in (("ViT", "transformers"), ("Dinov2", "transformers"),
                                 ("Dinov2WithRegisters", "transformers_reg")) for size in (24, (56, 32))),
    quick=[("Dinov2", "transformers", 24)]))
def test_transformers_positions_of_another_grid(torch, transformers, tmp_path, name, positions, size):
    model, images = transformers_model(torch, transformers, name), images_of(size)
    model.save_pretrained(tmp_path)
    arguments = timm_arguments(model.config.to_dict()) | {"img_size": size}
    module, params = rc.load_vision_encoder(arguments, tmp_path / "model.safetensors", positions=positions)
    with torch.no_grad():
        more = {"interpolate_pos_encoding": True} if name == "ViT" else {}
        expected = model(torch.from_numpy(images), **more).last_hidden_state[:, 0]
    assert_close(pooled(module, params, images), expected, 1e-5)


@pytest.mark.slow
def test_a_classifier_of_transformers(torch, transformers, tmp_path):
    config = transformers.ViTConfig(**VIT, intermediate_size=56, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    module, params = rc.load_vision_encoder(tmp_path / "config.json", tmp_path / "model.safetensors")
    assert module.config.norm_eps == 1e-12 and set(params) == {
        "cls_token", "pos_embed", "patch_embed", "blocks_0", "blocks_1", "norm"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}])
def test_timms_class_token(torch, vision_transformer, tmp_path, arguments):
    """Which timm calls its pooling by the token, without a head."""
    torch.manual_seed(0)
    theirs = vision_transformer.VisionTransformer(img_size=40, num_classes=0, **TINY, **arguments).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        images = images_of(40)
        expected = theirs(torch.from_numpy(images))
    file = written({name: value.numpy() for name, value in theirs.state_dict().items()}, tmp_path / "m.safetensors")
    module, params = rc.load_vision_encoder({"img_size": 40, **TINY, **arguments}, file)
    assert_close(pooled(module, params, images), expected, 1e-5)


def test_the_norm_is_loaded_where_it_is_there_and_asked_for(tmp_path):
    config, _ = hub_case("dino")
    config, tensors = config | {"img_size": 40}, hub_state(config, trained_at=40)
    whole = written(tensors, tmp_path / "whole.safetensors")
    without = written({name: value for name, value in tensors.items() if not name.startswith("norm.")},
                      tmp_path / "without.safetensors")
    full, params = rc.load_vision_encoder(config, whole)
    for given, file in ((config, without), (config | {"final_norm": False}, whole)):
        module, fewer = rc.load_vision_encoder(given, file)
        assert set(params) - set(fewer) == {"norm"} and module.config == full.config
        with pytest.raises(ValueError, match="was loaded without a final norm, of which pooled is the output"):
            module.apply({"params": fewer}, np.zeros((1, 40, 40, 3)), method="pooled")
    half = written({name: value for name, value in tensors.items() if name != "norm.bias"}, tmp_path / "h.safetensors")
    with pytest.raises(ValueError, match=r"missing keys: norm\.bias"):
        rc.load_vision_encoder(config, half)
    siglip, params = rc.load_vision_encoder(FIXTURES / "vit_siglip.json", FIXTURES / "vit_siglip.safetensors")
    assert "norm" not in params
    with pytest.raises(ValueError, match="this vision encoder has no class token"):
        siglip.apply({"params": params}, np.zeros((1, 70, 70, 3)), method="pooled")


def test_files_and_options_that_do_not_fit_are_one_sentence(torch, transformers, tmp_path):
    config, _ = hub_case("dino")
    file = written(hub_state(config, trained_at=40), tmp_path / "dino.safetensors")

    def refused(message, config, file, **options):
        with pytest.raises(ValueError, match=message) as error:
            rc.load_vision_encoder(config, file, **options)
        assert "\n" not in str(error.value)

    refused("Unknown positions 'dinov3': known are timm, .*did you mean", config, file, positions="dinov3")
    refused(r"wrong shapes: .*norm1\.bias \(32,\), expected \(64,\)", KNOWN["dino_vits16"] | TINY | {"embed_dim": 64},
            file)
    refused("model_type='clip' is not supported; expected transformers' vit", {"model_type": "clip"}, file)
    refused("model_type=None is not supported", {"hidden_size": 32}, file)
    refused("Unknown act_layer 'relu'", {"model_type": "vit", "hidden_act": "relu"}, file)
    clip = transformers.CLIPVisionConfig(**VIT, intermediate_size=48)
    for kind in ("CLIPVisionModel", "CLIPVisionModelWithProjection"):
        getattr(transformers, kind)(clip).save_pretrained(tmp_path)
        refused(r"the weights \(of a CLIP image encoder of transformers\) do not fit this vision encoder", config,
                tmp_path / "model.safetensors")
    siglip = transformers.SiglipVisionConfig(**VIT, intermediate_size=48)
    transformers.SiglipVisionModel(siglip).save_pretrained(tmp_path)
    refused(r"the weights \(of a transformers vision model\) do not fit this vision encoder", config,
            tmp_path / "model.safetensors")
    tensors = {name: value.numpy() for name, value in
               transformers_model(torch, transformers, "ViT").state_dict().items()}
    vit_json = {"model_type": "vit", **VIT, "intermediate_size": 56}
    tensors["layers.1.attention.k_proj.weight"] = np.ones((5, 32), np.float32)
    refused("are damaged: blocks.1.attn.query.weight and those beside it have shapes",
            vit_json, written(tensors, tmp_path / "d.safetensors"))
    del tensors["layers.1.attention.k_proj.weight"]
    refused(r"missing keys: blocks\.1\.attn\.qkv\.weight",
            vit_json, written(tensors, tmp_path / "d.safetensors"))


def test_configurations_that_were_there_before_are_called_as_they_were():
    """Features that lie on disk are found again by this text."""
    assert repr(VitConfig(patch_size=(8, 8))) == (
        "VitConfig(img_size=(224, 224), patch_size=(8, 8), embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0, "
        "qkv_bias=True, init_values=None, class_token=True, no_embed_class=False, reg_tokens=0, act_layer='gelu')")
    assert "norm_eps=1e-12" in repr(VitConfig(norm_eps=1e-12)) and VitConfig(norm_eps=1e-12) != VitConfig()


@pytest.mark.parametrize("width, hidden", [(384, 1536), (1152, 4304), (56, 232), (88, 200), (1536, 8192)])
def test_the_hidden_width_of_transformers_survives_timms_ratio(width, hidden):
    config = {"model_type": "vit", "hidden_size": width, "intermediate_size": hidden, "num_attention_heads": 8}
    assert int(width * VitConfig.from_config(config).mlp_ratio) == hidden


def test_known_networks():
    assert set(KNOWN) == set(POSITIONS) and set(POSITIONS.values()) == set(HUBS) and set(HUBS) <= set(vit.POSITIONS)
    for name, arguments in KNOWN.items():
        config = VitConfig.from_config(arguments)
        patch = int(re.fullmatch(r"dino(v2)?_vit[sblg](\d+)(_reg)?", name)[2])
        assert config.img_size == (224, 224) and config.patch_size == (patch, patch)
    assert KNOWN["dino_vits8"]["embed_dim"] == 384 and KNOWN["dinov2_vitl14"]["depth"] == 24
    giant = VitConfig.from_config(KNOWN["dinov2_vitg14"])
    assert int(giant.embed_dim * giant.mlp_ratio) == 8192 and giant.act_layer == "silu"


def test_what_timms_hub_says_of_its_files():
    dinov2 = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "num_features": 384,
              "pretrained_cfg": {"tag": "lvd142m", "input_size": [3, 518, 518], "mean": [0.485, 0.456, 0.406]}}
    assert VitConfig.from_config(arguments_of(dinov2)) == VitConfig.from_config(
        KNOWN["dinov2_vits14"] | {"img_size": 518})
    dino = {"architecture": "vit_base_patch8_224", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    assert VitConfig.from_config(arguments_of(dino)) == VitConfig.from_config(KNOWN["dino_vitb8"])
    assert arguments_of({"architecture": "vit_so400m_patch14_siglip_384"})["class_token"] is False
    assert arguments_of(KNOWN["dino_vits8"]) == KNOWN["dino_vits8"]
    with pytest.raises(ValueError, match="Unknown architecture of a vision transformer 'vit_small_patch16_dinov2': "):
        rc.load_vision_encoder({"architecture": "vit_small_patch16_dinov2"}, FIXTURES / "vit_siglip.safetensors")


FULL = {"dino_vits16": 224, "dino_vits8": 224, "dinov2_vits14": 518, "dinov2_vitl14": 518, "dinov2_vits14_reg": 518}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_networks_of_the_published_sizes_are_the_hubs(torch, tmp_path, name):
    config = KNOWN[name]
    tensors = hub_state(config, trained_at=FULL[name], registers=name.endswith("_reg"), scale=0.02)
    images = images_of(224, count=1)
    expected = hub_class_token(torch, tensors, images, config, **HUBS[POSITIONS[name]])
    file = written(tensors, tmp_path / "model.safetensors")
    module, params = rc.load_vision_encoder(config, file, positions=POSITIONS[name])
    file.unlink()
    assert_close(pooled(module, params, images), expected, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino_vits16", "dino_vits8", "dinov2_vits14", "dinov2_vitl14"])
def test_networks_of_the_published_sizes_are_transformers(torch, transformers, tmp_path, name):
    arguments = KNOWN[name]
    kind, positions = ("Dinov2", "transformers") if name.startswith("dinov2") else ("ViT", "timm")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=arguments["embed_dim"], num_hidden_layers=arguments["depth"], image_size=FULL[name],
        num_attention_heads=arguments["num_heads"], patch_size=arguments["patch_size"],
        **{"intermediate_size": 4 * arguments["embed_dim"]} if kind == "ViT" else {})
    model, images = getattr(transformers, f"{kind}Model")(config).eval(), images_of(224, count=1)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).last_hidden_state[:, 0]
    model.save_pretrained(tmp_path)
    module, params = rc.load_vision_encoder(timm_arguments(config.to_dict()) | {"img_size": 224},
                                            tmp_path / "model.safetensors", positions=positions)
    (tmp_path / "model.safetensors").unlink()
    assert_close(pooled(module, params, images), expected, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dino_vits16", "dino_vits8", "dinov2_vits14", "dinov2_vitl14"])
def test_networks_of_the_published_sizes_are_timms(torch, vision_transformer, tmp_path, name):
    torch.manual_seed(0)
    make, arguments = vision_transformer.VisionTransformer, KNOWN[name]
    trained = make(**arguments | {"img_size": FULL[name]}, num_classes=0)
    theirs, images = make(**arguments, num_classes=0).eval(), images_of(224, count=1)
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(trained.state_dict(), theirs))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images))
    file = written({name: value.numpy() for name, value in trained.state_dict().items()}, tmp_path / "m.safetensors")
    module, params = rc.load_vision_encoder(arguments, file)
    file.unlink()
    assert_close(pooled(module, params, images), expected, 2e-4)


@pytest.mark.slow
def test_headers_only_reads_no_numbers(torch, transformers, tmp_path):
    transformers_model(torch, transformers, "Dinov2WithRegisters").save_pretrained(tmp_path)
    files = tmp_path / "config.json", tmp_path / "model.safetensors"
    with headers_only():
        shapes = rc.load_vision_encoder(*files)[1]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, rc.load_vision_encoder(*files)[1])
