"""LoRAs: what a layer's weight becomes under every naming, and what is said of files that are none or do not fit."""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

import realcustom_jax as rc
from realcustom_jax.model_files.lora import merge
from realcustom_jax.model_files.lora_files import read_loras
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import LazyTensors, headers_only, read_tensors

from goldens import FIXTURES
from test_fuzz_files import changed, changes, cuts, fuzzing
from test_fuzz_files import written as damaged_file

BLOCK = "down_blocks.1.attentions.0"
LINEAR, CONV, POINT = f"{BLOCK}.transformer_blocks.0.attn2.to_k", "down_blocks.1.resnets.0.conv1", f"{BLOCK}.proj_in"
OUT = f"{BLOCK}.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
KOHYA = {name: "lora_unet_" + name.replace(".", "_") for name in (LINEAR, CONV, POINT, OUT)}
CONFIG = {"block_out_channels": [8, 16], "layers_per_block": 2}
SHAPES = {LINEAR: (6, 5), CONV: (6, 4, 3, 3), POINT: (6, 4, 1, 1), OUT: (6, 6),
          f"{BLOCK}.transformer_blocks.0.attn2.to_k_vision": (6, 5), f"{BLOCK}.norm": (6,)}


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def lazy(tensors):
    return LazyTensors({name: lambda value=value: value for name, value in tensors.items()})


BASE = {f"{name}.weight": drawn(*shape, seed=9) for name, shape in SHAPES.items()}
DOWN, UP = drawn(2, 5), drawn(6, 2)  # of LINEAR


def saved(tmp_path, tensors, name="lora.safetensors", metadata=None):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / name, metadata)
    return tmp_path / name


def kohya(layer=KOHYA[LINEAR], down=DOWN, up=UP, **more):
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up,
            **{f"{layer}.{name}": np.asarray(value, np.float32) for name, value in more.items()}}


def merged(*loras, part="unet", base=BASE, config=CONFIG):
    return dict(merge(lazy(base), loras, part, config))


def assert_only(found, name, expected, base=BASE):
    """The named weight is as expected, and all others are as they were, to the bit."""
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    assert found[name].dtype == np.float32 and np.abs(found[name] - base[name]).max() > 0.1
    assert set(found) == set(base)
    for other in set(base) - {name}:
        assert found[other] is base[other]


@pytest.mark.parametrize("name", [
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_{down,up}.weight",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_{down,up}.weight",
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_{A,B}.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.default.weight",
    "unet.base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.weight",
    "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.weight",
    "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.default_0.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora.{down,up}.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_linear_layer.{down,up}.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{down,up}.weight",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.{down,up}.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.{down,up}.weight",
    "module.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_{A,B}.weight",
])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_name_of_a_unets_layer(tmp_path, name, suffix):
    start, roles, end = name.replace("{", "|").replace("}", "|").split("|")
    down, up = (start + role + end for role in roles.split(","))
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        file = tmp_path / "lora.pt"
        torch.save({down: torch.nn.Parameter(torch.from_numpy(DOWN)), up: torch.from_numpy(UP)}, file)
    else:
        file = saved(tmp_path, {down: DOWN, up: UP})
    weight = f"{LINEAR}.weight"
    assert_only(merged((file, 0.5)), weight, BASE[weight] + 0.5 * UP @ DOWN)
    assert merged((file, 0.5), part="te1") == BASE  # the UNet's layers are the other loader's
    assert merged((file, 0.5), part="te2") == BASE


@pytest.mark.parametrize(("name", "part"), [
    ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "te1"),
    ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "te1"),
    ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "te2"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "te1"),
    ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", "te1"),
    ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "te2"),
    ("text_encoder_2.base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "te2"),
    ("base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "te1"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", "te1"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", "te1"),
    ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_down.weight", "te2"),
])
def test_every_name_of_a_text_encoders_layer(tmp_path, name, part):
    base = {f"{TEXT}.weight": drawn(6, 5, seed=9), "text_projection.weight": drawn(3, 6)}
    up = name.replace("down.", "up.").replace("lora_A", "lora_B")
    file = saved(tmp_path, {name: DOWN, up: UP})
    assert_only(merged((file, 0.5), part=part, base=base), f"{TEXT}.weight",
                base[f"{TEXT}.weight"] + 0.5 * UP @ DOWN, base)
    for other in {"unet", "te1", "te2"} - {part}:
        assert merged((file, 0.5), part=other, base=base) == base


def test_alpha_divides_by_the_rank(tmp_path):
    weight = f"{LINEAR}.weight"
    for alpha in (1, 4):
        file = saved(tmp_path, kohya(alpha=alpha))
        assert_only(merged((file, 0.5)), weight, BASE[weight] + 0.5 * alpha / 2 * UP @ DOWN)
    shaped = kohya() | {f"{KOHYA[LINEAR]}.alpha": np.int64([4])}
    assert_only(merged((saved(tmp_path, shaped), 1)), weight, BASE[weight] + 2 * UP @ DOWN)


@pytest.mark.parametrize("alpha", [4, 4.0])
def test_alpha_as_a_number_in_a_torch_file(tmp_path, alpha):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in kohya().items()}
    torch.save(tensors | {f"{KOHYA[LINEAR]}.alpha": alpha}, tmp_path / "lora.pt")
    assert_only(merged((tmp_path / "lora.pt", 1)), f"{LINEAR}.weight", BASE[f"{LINEAR}.weight"] + 2 * UP @ DOWN)


def test_alphas_of_pefts_settings(tmp_path):
    """In the metadata, for each part, and in the JSON beside PEFT's file."""
    weight, end = f"{LINEAR}.weight", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"unet.{end}.lora_A.weight": DOWN, f"unet.{end}.lora_B.weight": UP}
    for settings, factor in (({"lora_alpha": 6}, 3), ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
                             ({"lora_alpha": 6, "alpha_pattern": {"to_q": 1, "attn2.to_k": 8}}, 4),
                             ({"lora_alpha": None}, 1), ({"r": 2}, 1)):
        written = {f"unet.{key}": value for key, value in settings.items()} | {"text_encoder.lora_alpha": 99}
        file = saved(tmp_path, tensors, metadata={"lora_adapter_metadata": json.dumps(written)})
        assert_only(merged((file, 1)), weight, BASE[weight] + factor * UP @ DOWN)
        file = saved(tmp_path, tensors, "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        assert_only(merged((file, 1)), weight, BASE[weight] + factor * UP @ DOWN)
    file = saved(tmp_path, tensors | {f"unet.{end}.alpha": np.float32(4)}, "adapter_model.safetensors")
    assert_only(merged((file, 1)), weight, BASE[weight] + 2 * UP @ DOWN)
    beside = saved(tmp_path, tensors, "other.safetensors")
    assert_only(merged((beside, 1)), weight, BASE[weight] + UP @ DOWN)


@pytest.mark.parametrize("name", [CONV, POINT])
@pytest.mark.parametrize("in_three", [False, True])
def test_convolutions(tmp_path, name, in_three):
    out, into, *kernel = SHAPES[name]
    down, up = drawn(2, into, *([1, 1] if in_three else kernel)), drawn(out, 3 if in_three else 2, 1, 1)
    mid = drawn(3, 2, *kernel) if in_three else None
    expected = BASE[f"{name}.weight"].copy()
    for place in np.ndindex(*kernel):
        inner = mid[:, :, *place] @ down[:, :, 0, 0] if in_three else down[:, :, *place]
        expected[:, :, *place] += 0.5 * 4 / 2 * up[:, :, 0, 0] @ inner
    more = {"lora_mid.weight": mid} if in_three else {}
    file = saved(tmp_path, kohya(KOHYA[name], down, up, alpha=4, **more))
    assert_only(merged((file, 0.5)), f"{name}.weight", expected)


def test_a_convolution_of_one_pixel_is_a_linear_layer(tmp_path):
    """As the projections of SD-1.5 and SDXL: one is stored as the other."""
    flat, weight = (drawn(2, 4), drawn(6, 2)), f"{POINT}.weight"
    expected = BASE[weight] + (flat[1] @ flat[0])[:, :, None, None]
    assert_only(merged((saved(tmp_path, kohya(KOHYA[POINT], *flat)), 1)), weight, expected)
    deep = kohya(down=DOWN[:, :, None, None], up=UP[:, :, None, None])
    assert_only(merged((saved(tmp_path, deep), 1)), f"{LINEAR}.weight", BASE[f"{LINEAR}.weight"] + UP @ DOWN)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_sum_is_float32_whatever_the_files_are(tmp_path, dtype):
    weight = f"{LINEAR}.weight"
    base = {name: value.astype(dtype) for name, value in BASE.items()}
    down, up = DOWN.astype(dtype), UP.astype(dtype)
    if dtype is ml_dtypes.bfloat16:  # safetensors' writer for numpy has no such type
        down, up = np.float16(DOWN), np.float16(UP)
    found = merged((saved(tmp_path, kohya(down=down, up=up)), 0.5), base=base)
    expected = np.float32(base[weight]) + 0.5 * np.float32(up) @ np.float32(down)
    assert found[weight].dtype == np.float32
    np.testing.assert_allclose(found[weight], expected, rtol=1e-6, atol=1e-6)


def test_several_loras_add_up(tmp_path):
    first, weight = saved(tmp_path, kohya(alpha=1), "first.safetensors"), f"{LINEAR}.weight"
    second = saved(tmp_path, {"unet." + LINEAR + ".lora_A.weight": drawn(3, 5), "unet." + LINEAR + ".lora_B.weight":
                              drawn(6, 3)}, "second.safetensors")
    expected = BASE[weight] + 0.4 * UP @ DOWN - 0.5 * drawn(6, 3) @ drawn(3, 5)
    assert_only(merged((first, 0.8), (second, -0.5)), weight, expected)


def test_a_scale_of_zero_is_no_lora_to_the_bit(tmp_path):
    file = saved(tmp_path, kohya() | kohya(KOHYA[CONV], drawn(2, 4, 3, 3), drawn(6, 2, 1, 1)))
    config, base = FIXTURES / "unet_sd15.json", FIXTURES / "unet_sd15.safetensors"
    found = merged((file, 0))
    assert all(found[name] is BASE[name] for name in BASE)
    zero = merged((file, 0), (file, 0.0), base={name: value.astype(np.float16) for name, value in BASE.items()})
    assert all(zero[name].dtype == np.float16 for name in zero)
    assert config and base


def test_headers_only_reads_no_numbers(tmp_path):
    """The shapes are looked at, and weights take no memory."""
    file = saved(tmp_path, kohya(down=np.full_like(DOWN, np.nan), alpha=3))
    with headers_only():
        found = merged((file, 1))[f"{LINEAR}.weight"]
        assert found.shape == (6, 5) and not any(found.strides)
        wrong = saved(tmp_path, kohya(down=drawn(2, 7)), "wrong.safetensors")
        with pytest.raises(ValueError, match="does not fit this UNet"):
            merged((wrong, 1))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        merged((file, 1))
