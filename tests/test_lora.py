"""LoRAs: what a layer's weight becomes under every naming, and what is said of files that are none or do not fit."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from test_fuzz_files import assert_loaded_or_refused

import realcustom_jax as rc
from realcustom_jax.model_files.lora import merge_loras
from realcustom_jax.model_files.lora_files import read_loras
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.model_files.tensors import LazyTensors, headers_only

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
    return dict(merge_loras(lazy(base), loras, part, config))


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
    base = {name: value.astype(np.float16) for name, value in BASE.items()}
    found = merged((file, 0), (file, 0.0), base=base)
    assert all(found[name] is base[name] for name in base)


def test_scales_may_be_scalars_of_numpy_and_jax(tmp_path):
    file = saved(tmp_path, kohya())
    scales = [0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5)]
    assert [lora.scale for lora in read_loras([(file, scale) for scale in scales])] == [0.5] * 4


def test_merging_reads_a_tensor_when_it_is_asked_for_and_once(tmp_path):
    read = []
    base = LazyTensors({name: lambda name=name: read.append(name) or BASE[name] for name in BASE})
    file = saved(tmp_path, kohya())
    found = merge_loras(base, [(file, 1), (file, 2)], "unet", CONFIG)
    assert not read
    np.testing.assert_allclose(found[f"{LINEAR}.weight"], BASE[f"{LINEAR}.weight"] + 3 * UP @ DOWN, rtol=1e-5)
    assert read == [f"{LINEAR}.weight"]


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


DAMAGED = "do not fit each other; get the file anew"
ANOTHER = "another model, give one that was made for this one"


@pytest.mark.parametrize(("tensors", "message"), [
    ({}, "is empty: it holds no tensors"),
    (kohya() | {f"{KOHYA[OUT]}.dora_scale": drawn(6)}, "is a DoRA, by its tensor lora_unet_down.*dora_scale, which is"),
    (kohya("unet.x.lora_magnitude_vector"), "is a DoRA"),
    ({"lora_unet_x.hada_w1_a": DOWN, "lora_unet_x.hada_w1_b": UP}, "is a LoHa, by its tensor lora_unet_x.hada_w1_a"),
    ({"lora_unet_x.lokr_w1": DOWN, "lora_unet_x.alpha": UP}, "is a LoKr"),
    ({"lora_unet_x.oft_blocks": DOWN}, "is an OFT"), ({"lora_unet_x.oft_diag": DOWN}, "is an OFT"),
    ({"base_model.model.x.oft_R.weight": DOWN}, "is an OFT"),
    ({"lora_unet_x.weight": DOWN, "lora_unet_x.on_input": np.zeros(1)}, "is an IA3"),
    ({"base_model.model.x.ia3_l": DOWN}, "is an IA3"),
    ({f"lora_unet_x.{part}.weight": DOWN for part in ("a1", "a2", "b1", "b2")}, "is a GLoRA"),
    (kohya() | {"lora_unet_x_norm1.w_norm": DOWN}, "is a LoRA that also changes norms"),
    (kohya() | {"lora_unet_x.diff": DOWN}, "is a LoRA that also adds whole tensors"),
    (kohya() | {"lora_unet_x.diff_b": DOWN}, "is a LoRA that also adds whole tensors"),
    (kohya() | {f"{KOHYA[LINEAR]}.lora_up.bias": drawn(6)}, "is a LoRA with biases"),
    ({"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.bias": drawn(6)}, "is a LoRA with biases"),
    ({"text_encoder.x.lora_embedding_A": DOWN}, "is a LoRA of embeddings"),
    (kohya("lora_unet_double_blocks_0_img_attn_proj"), "is a LoRA of Flux, Stable Diffusion 3 or another"),
    (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv"), "is a LoRA of Flux, Stable Diffusion 3"),
    (kohya("transformer.single_transformer_blocks.0.attn.to_q"), "is a LoRA of Flux"),
    (kohya("transformer.transformer_blocks.0.attn.to_q"), "is a LoRA of Flux"),
    ({"lora_controlnet": np.zeros(1), "input_blocks.0.0.up": UP}, "is a ControlNet's LoRA"),
    ({f"{LINEAR}.weight": UP, "down_blocks.0.resnets.0.time_emb_proj.weight": UP},
     r"is no LoRA but a diffusers UNet; give it as the unet \(--unet\)"),
    ({"encoder_hidden_states_vision_projection.x": UP}, r"no LoRA but a RealCustom adapter; give it as .*--adapter"),
    ({"image_proj.x": UP, "ip_adapter.0.to_k_lora.down.weight": DOWN}, "is no LoRA but an IP-Adapter"),
    ({"mystery.weight": UP}, "is no LoRA but no model that we know; expected tensors named …lora_down.weight"),
    (kohya() | {"mystery.weight": UP}, "holds mystery.weight, which is nothing that we know of a LoRA"),
    ({f"{KOHYA[LINEAR]}.lora_down.weight": DOWN}, "is not complete: .*lora_down.weight is there, but not lora_up of"),
    ({f"{KOHYA[LINEAR]}.lora_up.weight": UP}, "is not complete: .*lora_up.weight is there, but not lora_down of"),
    (kohya() | {f"{KOHYA[OUT]}.alpha": np.float32(1)}, "but not lora_down and lora_up of its layer"),
    (kohya() | kohya(f"unet.{LINEAR}"), "says twice what it does to one layer"),
    (kohya() | kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"),
     f"says twice what it does to {LINEAR}"),
    (kohya(down=np.full((2, 5), np.nan)), "makes numbers that are not finite, of lora_unet_down.*lora_down.weight, "),
    (kohya(up=np.full((6, 2), np.inf)), "makes numbers that are not finite"),
    (kohya(alpha=np.nan), "makes numbers that are not finite"),
    (kohya(down=np.full((2, 5), 1e30), up=np.full((6, 2), 1e30)), "makes numbers that are not finite"),
    (kohya() | {f"{KOHYA[LINEAR]}.alpha": np.ones(2, np.float32)},
     r"alpha of shape \(2,\) and type float32; expected one"),
    (kohya(down=np.ones((2, 5), np.int32)), "lora_down.weight as int32; expected floating-point"),
    (kohya(down=drawn(3, 5)), DAMAGED), (kohya(down=drawn(2, 5)[0]), DAMAGED), (kohya(up=drawn(6, 2, 3, 3)), DAMAGED),
    (kohya(down=drawn(0, 5), up=drawn(6, 0)), DAMAGED), (kohya(up=np.float32(1)), DAMAGED),
    (kohya() | {f"{KOHYA[LINEAR]}.lora_mid.weight": drawn(2, 2)}, DAMAGED),
    (kohya(down=drawn(2, 7)),
     rf"lora_down.weight belongs to a weight of shape \(6, 7\), and .*to_k.weight has \(6, 5\).*{ANOTHER}"),
    (kohya(up=drawn(7, 2)), ANOTHER), (kohya(down=drawn(2, 5, 3, 3)), ANOTHER),
    (kohya(KOHYA[CONV], drawn(2, 4), UP), ANOTHER),
    (kohya("lora_unet_x"), f"1 of 1 layers .* the first is lora_unet_x.*{ANOTHER}"),
    (kohya() | kohya("lora_unet_down_blocks_7_proj_in"), "1 of 2 layers of .*lora.safetensors are none of this UNet"),
    (kohya("lora_unet_down_blocks_1_attentions_0_norm", drawn(2, 1)), "belongs to a weight"),
    (kohya(KOHYA[LINEAR] + "_vision"), "are none of this UNet"),
])
def test_what_is_no_lora_that_fits_is_told_in_a_sentence(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message) as raised:
        merged((saved(tmp_path, tensors), 1))
    said = str(raised.value)
    assert "lora.safetensors" in said and said[-1] == "." and "\n" not in said


@pytest.mark.parametrize(("layer", "width", "ours", "message"), [
    ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, 2048,
     "made for Stable Diffusion 1.5, and this model is SDXL: give one"),
    ("down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768, 2048,
     "made for Stable Diffusion 1.5, and this model is SDXL: give one"),
    ("down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 1024, 768,
     "made for Stable Diffusion 2, and this model is Stable Diffusion 1.5: give one"),
    ("input_blocks_7_1_transformer_blocks_9_attn2_to_k", 2048, 768,
     "made for SDXL, and this model is Stable Diffusion 1.5: give one"),
    ("input_blocks_1_1_proj_in", 320, 2048, "made for Stable Diffusion 1.5, and this model is SDXL"),
    ("input_blocks_7_1_transformer_blocks_9_attn1_to_k", 1280, 768, "made for SDXL, and this model is"),
    ("up_blocks_3_attentions_1_proj_in", 8, 5, "made for Stable Diffusion 1.5, and this model is another"),
])
def test_a_lora_of_another_model_is_told_whose_it_is(tmp_path, layer, width, ours, message):
    up_layer = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    base = BASE | {f"{LINEAR}.weight": np.zeros((6, ours), np.float32), up_layer: np.zeros((6, ours), np.float32)}
    file = saved(tmp_path, kohya(f"lora_unet_{layer}", drawn(2, width), UP))
    with pytest.raises(ValueError, match=message):
        merged((file, 1), base=base)


@pytest.mark.parametrize(("metadata", "message"), [
    ("{", "is not valid JSON"), ("[]", "is no JSON object"), ('{"unet.lora_alpha": "4"}', "not made of numbers"),
    ('{"unet.lora_alpha": NaN}', "not made of numbers"), ('{"unet.alpha_pattern": [1]}', "not made of numbers"),
    (f'{{"lora_alpha": 1{"0" * 400}}}', "not made of numbers"), ('{"use_dora": true}', "says use_dora: a DoRA"),
])
def test_settings_that_cannot_be_used(tmp_path, metadata, message):
    file = saved(tmp_path, kohya(), metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(ValueError, match=f"lora.safetensors.*{message}"):
        read_loras([file])


@pytest.mark.parametrize(("given", "error", "message"), [
    ([("missing.safetensors", 1)], FileNotFoundError, "^the LoRA missing.safetensors does not exist.$"),
    ("missing.safetensors", FileNotFoundError, "^the LoRA missing.safetensors does not exist.$"),
    (["owner/style"], FileNotFoundError, "owner/style does not exist here, and the hub is not asked for LoRAs"),
    (["folder"], FileNotFoundError, "the LoRA folder is a folder without a weight file; give the file"),
    (["lora.txt"], ValueError, "unknown kind '.txt'"),
    *(([("missing.safetensors", scale)], ValueError, "scale of the LoRA missing.safetensors is .*; expected a finite")
      for scale in (float("nan"), float("inf"), "0.8", None, True, 1j, [1], 10**400)),
    (("missing.safetensors", 0.8), ValueError, r"loras holds 0.8; expected a file or a pair \(file, scale\)"),
    ([("a", 1, 2)], ValueError, "expected a file or a pair"), ([3], ValueError, "expected a file or a pair"),
    ([(1, "a")], ValueError, "expected a file or a pair"), ([None], ValueError, "expected a file or a pair"),
    ([""], ValueError, "expected a file or a pair"), ("", ValueError, "expected a file or a pair"),
    (["several"], ValueError, r"several is a folder of several weight files \(a.safetensors, b.pt\); give the one"),
    (0.8, ValueError, "loras is 0.8; expected a sequence"), ({"a": 1}, ValueError, "loras is {'a': 1}; expected a seq"),
])
def test_what_is_no_sequence_of_files_and_scales(tmp_path, monkeypatch, given, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "lora.txt").write_text("x")
    (tmp_path / "several").mkdir()
    for name in ("a.safetensors", "b.pt"):
        (tmp_path / "several" / name).touch()
    for load in (read_loras, lambda loras: rc.Pipeline.load("no model here", loras=loras),
                 lambda loras: merge_loras(lazy(BASE), loras, "unet", CONFIG)):
        with pytest.raises(error, match=message):
            load(given)


def test_none_one_and_a_folder(tmp_path):
    file = saved(tmp_path, kohya())
    assert read_loras(()) == read_loras(None) == ()
    for loras in (file, str(file), [file], [str(file)], [(file, 1)], [[file, np.float32(1)]], iter([file]), tmp_path):
        lora, = read_loras(loras)
        assert lora.scale == 1 and lora.tensors.keys() == kohya().keys()
        assert read_loras([lora])[0] is lora
    saved(tmp_path, kohya("lora_unet_x"), "other.safetensors")
    file.rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert read_loras([tmp_path])[0].tensors.keys() == kohya().keys()


def test_original_names_where_levels_have_their_own_numbers_of_layers(tmp_path):
    file = saved(tmp_path, kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"))
    weight = f"{LINEAR}.weight"
    found = merged((file, 1), config={"block_out_channels": [8, 16], "layers_per_block": [2, 2]})
    assert_only(found, weight, BASE[weight] + UP @ DOWN)
    with pytest.raises(ValueError, match="are none of this UNet"):
        merged((file, 1), config={"block_out_channels": [8, 16], "layers_per_block": [1, 2]})


def test_damaged_loras_merge_their_own_numbers_or_are_refused_in_a_sentence(tmp_path):
    original = kohya(alpha=3) | kohya(KOHYA[CONV], drawn(2, 4, 3, 3), drawn(6, 2, 1, 1)) | kohya("lora_te_x")

    def load(file):
        try:
            return merged((file, 0.5))
        except (ValueError, OSError) as error:
            assert "file" in str(error)
            raise

    def check(made, file, whole):
        assert all(made[name].shape == BASE[name].shape and np.isfinite(made[name]).all() for name in BASE)

    assert_loaded_or_refused(tmp_path, original, load, check, lambda problem, of_headers: problem or not of_headers)


# The miniature's layout: attention at a single level.
LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT_LAYER = "text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path, kohya(f"lora_unet_{LAYER}", drawn(2, 16), drawn(8, 2))
                 | kohya(f"lora_te_{TEXT_LAYER}", drawn(2, 16), drawn(32, 2)))


def test_unet_and_text_encoder_take_their_own(mini_folder, file):
    source = ModelSource.open(mini_folder)
    adapter = source.adapter()
    before, after = (flatten_dict(source.load_unet(adapter, loras=loras)[1]) for loras in ((), ((file, 0.5),)))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    path = ("down_blocks_0", "attentions_0", "transformer_blocks", "attn2", "to_k", "kernel")
    assert changed == {path}
    np.testing.assert_allclose(after[path][0], before[path][0] + 0.5 * (drawn(8, 2) @ drawn(2, 16)).T, atol=1e-5)
    before, after = (flatten_dict(source.load("text_encoder", loras=loras)[1]) for loras in ((), [(file, -2)]))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    path = ("text_model", "encoder", "layers_0", "mlp", "fc1", "kernel")
    assert changed == {path}
    np.testing.assert_allclose(after[path], before[path] - 2 * (drawn(32, 2) @ drawn(2, 16)).T, atol=1e-5)
    zero = flatten_dict(source.load("text_encoder", loras=[(file, 0)])[1])
    assert all(np.array_equal(zero[path], before[path]) for path in before)


@pytest.mark.slow
def test_a_pipeline_takes_both_and_a_text_encoders_alone(mini_folder, tmp_path, file):
    text = saved(tmp_path, kohya(f"lora_te_{TEXT_LAYER}", drawn(2, 16), drawn(32, 2)), "text.safetensors")
    prints = [rc.Pipeline.load(mini_folder, loras=loras).fingerprints() for loras in ((), [(file, 0.8)], [text])]
    changed = [{part for part in made if made[part] != prints[0][part]} for made in prints]
    assert changed == [set(), {"UNet", "text encoders"}, {"text encoders"}]
    with headers_only():
        rc.Pipeline.load(mini_folder, loras=[(file, 0.8), text])


def test_a_pipeline_refuses_what_does_not_fit_before_it_loads(mini_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("loaded"))
    for layer, message in ((f"lora_te2_{TEXT_LAYER}", "second text encoder, .* made for SDXL"),
                           ("lora_unet_up_blocks_3_attentions_2_proj_in", "1 of 1 layers .* none of this UNet")):
        with pytest.raises(ValueError, match=message):
            rc.Pipeline.load(mini_folder, loras=[saved(tmp_path, kohya(layer))])


def test_a_prefix_that_is_none(mini_folder, file):
    with pytest.raises(ValueError, match="Unknown prefix 'te3': known are te1, te2"):
        rc.load_text_encoder(mini_folder / "text_encoder/config.json", mini_folder / "text_encoder/model.safetensors",
                             loras=[(file, 1)], prefix="te3")
