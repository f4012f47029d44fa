"""LoRA files of every naming against diffusers with peft, and against the formula; what cannot be used is told."""

import dataclasses
import json
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import realcustom_jax as rc
from realcustom_jax.model_files import weights
from realcustom_jax.model_files.lora import merge_loras, open_lora
from realcustom_jax.model_files.single_file import original_modules
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.model_files.tensors import headers_only, read_tensors

from mini_bundle import write_mini_bundle

RANK = 3
PARTS = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
ATTENTION = re.compile(r"attn[12]\.(to_[qkv]|to_out\.0)$|self_attn\.(q|k|v|out)_proj$")


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    return write_mini_bundle(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return write_mini_bundle(tmp_path_factory.mktemp("only_sdxl"), "sdxl")


def modules(folder):
    """part → module → shape of its weight, of all linear layers and convolutions."""
    source = FolderSource(folder)
    found = {}
    for part in ("unet", *source.text_encoders):
        tensors = {name: x for name, x in source.tensors(part).items() if "_vision" not in name}
        found[part] = {name.removesuffix(".weight"): x.shape for name, x in tensors.items()
                       if name.endswith(".weight") and x.ndim in (2, 4) and "embedding" not in name.rpartition(".")[0]
                       and name != "text_projection.weight"}
    return found


def draw(folder, seed=0, chosen=lambda part, module: True):
    """(part, module) → (down, up) of random changes."""
    rng, drawn = np.random.default_rng(seed), {}
    for part, names in modules(folder).items():
        for module, shape in names.items():
            if chosen(part, module):
                down = rng.normal(size=(RANK, *shape[1:])) * 0.3
                up = rng.normal(size=(shape[0], RANK, *(1,) * (len(shape) - 2))) * 0.3
                drawn[part, module] = np.float32(down), np.float32(up)
    return drawn


def changes(drawn, factor=1.0):
    """(part, module) → the change of the weight."""
    return {key: factor * (up.reshape(up.shape[0], -1) @ down.reshape(RANK, -1)).reshape(up.shape[0], *down.shape[1:])
            for key, (down, up) in drawn.items()}


def peft(drawn, folder, alpha=None):
    tensors = {}
    for (part, module), (down, up) in drawn.items():
        tensors |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
    settings = {f"{part}.{key}": value for part in {part for part, _ in drawn} for key, value in {
        "r": RANK, "lora_alpha": alpha, "target_modules": sorted({module for p, module in drawn if p == part})}.items()}
    return tensors, {} if alpha is None else {"lora_adapter_metadata": json.dumps(settings)}


def kohya(drawn, folder, alpha=None, rename=lambda part, module: module):
    single = not (folder / "text_encoder_2").is_dir()
    tensors = {}
    for (part, module), (down, up) in drawn.items():
        prefix = "lora_te" if single and part == "text_encoder" else PARTS[part]
        name = f"{prefix}_{rename(part, module).replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.float32(alpha)
    return tensors, {}


def original(drawn, folder, alpha=None):
    """Kohya's, with the modules of the UNet in Stable Diffusion's original names."""
    theirs = original_modules("unet", FolderSource(folder).config("unet"))

    def rename(part, module):
        if part != "unet":
            return module
        known = [(ours, name) for name, ours in theirs.items() if module == ours or module.startswith(ours + ".")]
        ours, name = max(known, key=lambda pair: len(pair[0]))
        return name + module[len(ours):]

    return kohya(drawn, folder, alpha, rename)


def processors(drawn, folder, alpha=None):
    """diffusers', before PEFT: attention only."""
    tensors = {}
    for (part, module), (down, up) in drawn.items():
        layer, _, name = module.removesuffix(".0").rpartition(".")
        stem = f"{part}.{layer}.processor.{name}_lora" if part == "unet" else f"{part}.{module}.lora_linear_layer"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors, {}


def write(path, tensors, metadata=None):
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path, metadata)
    return path


def loaded(folder, *loras, **options):
    """part → torch names → weights of the model with LoRAs."""
    source = FolderSource(folder)
    with_loras = {"unet": source.load("unet", loras=loras, **options)}
    for i, part in enumerate(source.text_encoders, 1):
        with_loras[part] = source.load(part, loras=loras, prefix=f"te{i}", **options)
    return {part: weights.to_torch(params) for part, (_, params) in with_loras.items()}


def assert_changed(folder, ours, expected):
    """The weights are the model's with these changes, and the others are as they were."""
    for part, tensors in loaded(folder).items():
        for name, value in tensors.items():
            change = expected.get((part, name.removesuffix(".weight")), 0)
            np.testing.assert_allclose(ours[part][name], value + change, atol=2e-6 * (1 + np.abs(change).max()))


@pytest.mark.parametrize("alpha, factor", [pytest.param(None, 1.0, marks=pytest.mark.slow), (2.0, 2 / RANK)])
@pytest.mark.parametrize("naming", [peft, kohya, original])
def test_every_naming_changes_every_layer(folder, tmp_path, naming, alpha, factor):
    drawn = draw(folder)
    file = write(tmp_path / "lora.safetensors", *naming(drawn, folder, alpha))
    assert len(drawn) > 30 and any(len(down.shape) == 4 and down.shape[-1] == 3 for down, _ in drawn.values())
    assert_changed(folder, loaded(folder, (file, 0.7)), changes(drawn, 0.7 * factor))


def test_the_old_names_of_diffusers(folder, tmp_path):
    drawn = draw(folder, chosen=lambda part, module: ATTENTION.search(module))
    file = write(tmp_path / "lora.safetensors", *processors(drawn, folder))
    assert_changed(folder, loaded(folder, file), changes(drawn))


def test_several_with_their_scales_and_half_precision(folder, tmp_path):
    first, second = draw(folder), draw(folder, 1, lambda part, module: ATTENTION.search(module))
    halves = {key: tuple(x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in pair) for key, pair in first.items()}
    tensors, _ = kohya(first, folder)
    files = (write(tmp_path / "a.safetensors", {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}),
             write(tmp_path / "b.safetensors", *peft(second, folder)))
    expected = changes(halves, 0.8)
    for key, change in changes(second, -0.5).items():
        expected[key] = expected[key] + change
    assert_changed(folder, loaded(folder, (files[0], 0.8), (files[1], -0.5)), expected)
    assert_changed(folder, loaded(folder, *((file, 0) for file in files)), {})


def test_what_peft_saves_itself(folder, tmp_path):
    """A folder with adapter_model.safetensors, its alpha in adapter_config.json, by rank-stabilised scaling."""
    drawn = draw(folder, chosen=lambda part, module: part == "unet" and ATTENTION.search(module))
    tensors = {f"base_model.model.{name.removeprefix('unet.')}": x for name, x in peft(drawn, folder)[0].items()}
    write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": RANK, "use_rslora": True,
                                                              "alpha_pattern": {"to_q": 9}}))
    expected = {(part, module): (9 if module.endswith("to_q") else 6) / RANK**0.5 * change
                for (part, module), change in changes(drawn).items()}
    assert_changed(folder, loaded(folder, tmp_path), expected)


def test_tuckers_form_of_a_convolution(folder, tmp_path):
    rng = np.random.default_rng(2)
    module, shape = "down_blocks.0.resnets.0.conv1", modules(folder)["unet"]["down_blocks.0.resnets.0.conv1"]
    down, mid, up = (np.float32(rng.normal(size=size)) for size in (
        (4, shape[1], 1, 1), (RANK, 4, 3, 3), (shape[0], RANK, 1, 1)))
    name = f"lora_unet_{module.replace('.', '_')}"
    file = write(tmp_path / "lora.safetensors", {
        f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up})
    change = np.einsum("oa,abhw,bi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    assert_changed(folder, loaded(folder, file), {("unet", module): change})


@pytest.mark.slow
@pytest.mark.parametrize("naming", [peft, kohya, processors, original])
def test_weights_are_those_that_diffusers_fuses(folder, tmp_path, naming):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from test_live_pictures import originals

    if naming is original and not (folder / "text_encoder_2").is_dir():
        pytest.skip("diffusers reads the original names for SDXL only")
    names = ATTENTION if naming in (processors, original) else re.compile("")
    alphas = (None, None) if naming is processors else (4.0, 2.0)
    drawn = [draw(folder, i, lambda part, module: names.search(module)) for i in range(2)]
    pipe = originals(folder, diffusers.DDIMScheduler())
    if naming is peft and not hasattr(pipe.text_encoder, "text_model"):  # as transformers 5 names its modules
        drawn = [{(part, module.removeprefix("text_model.")): x for (part, module), x in each.items()}
                 for each in drawn]
    files = [write(tmp_path / f"{i}.safetensors", *naming(each, folder, alpha))
             for i, (each, alpha) in enumerate(zip(drawn, alphas, strict=True))]
    for i, file in enumerate(files):
        pipe.load_lora_weights(file, adapter_name=f"n{i}")
    pipe.set_adapters(["n0", "n1"], [0.8, -0.5])
    pipe.fuse_lora(components=["unet", "text_encoder"] + ["text_encoder_2"] * hasattr(pipe, "text_encoder_2"))
    pipe.unload_lora_weights()
    ours = loaded(folder, (files[0], 0.8), (files[1], -0.5))
    for part, tensors in ours.items():
        theirs = {name.removeprefix("text_model."): x.numpy() for name, x in getattr(pipe, part).state_dict().items()}
        for name, value in tensors.items():
            if "_vision" not in name:
                expected = theirs[name.removeprefix("text_model.")]
                np.testing.assert_allclose(value, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)


# -------------------- the pipeline


@pytest.mark.slow
def test_a_pipeline_is_loaded_with_loras(folder, tmp_path):
    drawn = draw(folder)
    file = write(tmp_path / "lora.safetensors", *kohya(drawn, folder))
    plain, changed = rc.Pipeline.load(folder), rc.Pipeline.load(folder, loras=[(file, 0.5)])
    before, after = plain.fingerprints(), changed.fingerprints()
    assert {part for part in before if before[part] != after[part]} == {"UNet", "text encoders"}
    ours = {"unet": weights.to_torch(changed.unet.params)} | {
        f"text_encoder{'_2' * i}": weights.to_torch(encoder.network.params)
        for i, encoder in enumerate(changed.text_encoders)}
    for (part, module), change in changes(drawn, 0.5).items():
        name = f"{module}.weight"
        value = FolderSource(folder).tensors(part)[name]
        np.testing.assert_allclose(ours[part][name].reshape(value.shape), value + change, atol=2e-5)


def test_shapes_alone_are_read_without_numbers(folder, tmp_path):
    file = write(tmp_path / "lora.safetensors", *kohya(draw(folder), folder, 2.0))
    with headers_only():
        _, params = FolderSource(folder).load("unet", loras=[file], dtype=jnp.bfloat16)
    assert all(not hasattr(x, "addressable_data") and x.dtype == jnp.bfloat16 for x in params["conv_in"].values())


# -------------------- what cannot be used


def one(role="lora_down", layer="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", shape=(RANK, 8)):
    return {f"{layer}.{role}.weight": np.ones(shape, np.float32)}


@pytest.mark.parametrize("tensors, message", [
    (one() | {"lora_unet_x.dora_scale": np.ones(8)}, "of the kind DoRA, by its tensor lora_unet_x.dora_scale"),
    ({"lora_unet_x.hada_w1_a": np.ones((8, 8))}, "of the kind LoHa, by its tensor lora_unet_x.hada_w1_a"),
    ({"lora_unet_x.lokr_w1": np.ones((8, 8))}, "of the kind LoKr"),
    ({"lora_unet_x.oft_blocks": np.ones((8, 8))}, "of the kind OFT"),
    ({"lora_unet_x.on_input": np.ones(8)}, "of the kind IA3"),
    ({"lora_unet_x.diff": np.ones((8, 8))}, "a difference of whole weights"),
    ({"unet.x.lora_B.bias": np.ones(8)}, "LoRA with biases"),
    (one(), "not complete: the layer .*attn1_to_q lacks its up factor"),
    (one("lora_up", shape=(8, RANK)), "lacks its down factor"),
    ({"transformer.single_blocks.0.attn.to_q.lora_A.weight": np.ones((RANK, 8))}, "another kind of model .as Flux"),
    ({"lora_transformer_x.lora_down.weight": np.ones((RANK, 8))}, "another kind of model .as Flux"),
    (one(layer="lora_unet_down_blocks_2_proj_in") | one("lora_up", "lora_unet_down_blocks_2_proj_in", (8, RANK)),
     "changes the layer lora_unet_down_blocks_2_proj_in.lora_down.weight, which this model's UNet does not have"),
    (one() | one("lora_up", shape=(16, RANK)), r"changes a weight of shape \(16, 8\), and this model's has \(8, 8\)"),
    (one() | one("lora_up", shape=(8, RANK + 1)), "made for another kind of model"),
    (one(shape=(RANK,)) | one("lora_up", shape=(8, RANK)), "no factors of a weight"),
    ({"down_blocks.0.resnets.0.time_emb_proj.weight": np.ones((8, 8))}, "it is a diffusers UNet"),
    ({"x": np.ones(3)}, "it is no model that we know"),
    (one() | one("lora_up", shape=(8, RANK)) | {"epsilon": np.ones(3)}, "no part of a LoRA: epsilon"),
    ({}, "it holds no tensors"),
])
def test_loras_that_cannot_be_used_are_told(sdxl, tmp_path, tensors, message):
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(ValueError, match=f"lora.safetensors.*{message}"):
        merge_loras(FolderSource(sdxl).tensors("unet"), [(file, 1.0)], "unet")


def test_numbers_that_are_none_and_files_that_are_not_there(sdxl, tmp_path):
    tensors = one() | one("lora_up", shape=(8, RANK))
    tensors = {name: x * np.nan for name, x in tensors.items()}
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        FolderSource(sdxl).load("unet", loras=[file])
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors does not exist"):
        rc.Pipeline.load(sdxl, loras=["nowhere.safetensors"])
    with pytest.raises(FileNotFoundError, match="holds no LoRA files"):
        open_lora(tmp_path.parent / "empty" if (tmp_path.parent / "empty").mkdir() else tmp_path.parent / "empty")
    for scale in (float("nan"), "0.5", True, None):
        with pytest.raises(ValueError, match="the scale of the LoRA .* expected a finite number"):
            open_lora((file, scale))
    with pytest.raises(ValueError, match="Unknown prefix 'te3'"):
        FolderSource(sdxl).load("text_encoder", loras=[file], prefix="te3")


@pytest.mark.slow
def test_a_lora_of_sdxl_on_a_model_with_one_text_encoder(sdxl, tmp_path):
    drawn = draw(sdxl, chosen=lambda part, module: part == "text_encoder_2")
    file = write(tmp_path / "lora.safetensors", *kohya(drawn, sdxl))
    with pytest.raises(ValueError, match="second text encoder, which this model does not have: it was made for SDXL"):
        rc.Pipeline.load(write_mini_bundle(tmp_path / "sd15", "sd15"), loras=[file])
    assert loaded(sdxl, file)["text_encoder_2"].keys() == loaded(sdxl)["text_encoder_2"].keys()


def test_a_lora_in_place_of_a_model_says_which_option_takes_it(tmp_path, sdxl):
    file = write(tmp_path / "lora.safetensors", *kohya(draw(sdxl), sdxl))
    with pytest.raises(ValueError, match=r"a LoRA.*--lora"):
        rc.Pipeline.load(file)
    assert len(read_tensors(file)) and dataclasses.is_dataclass(open_lora(file))
