"""SDXL's and SD-1.5's conditioning on tiny models, and what a model is loaded as: precision, presets, offload."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realcustom_jax.files import write_json
from realcustom_jax.model_files import bundle, single_file
from realcustom_jax.model_files.locate import ASSETS, read_config
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.presets import PRESETS, Preset, find_preset

from mini_bundle import SIDE, WIDTH, write_mini_bundle

DOG = ASSETS / "references" / "dog.png"
PROMPT = "a dog on the beach"
QUICK = {"steps": 2, "freeze_mask_step": 1}


@pytest.fixture(scope="module", params=["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def kind(request, tmp_path_factory):
    return request.param, write_mini_bundle(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return write_mini_bundle(tmp_path_factory.mktemp("sdxl"), "sdxl")


@pytest.mark.slow
def test_a_picture_with_every_kind_of_conditioning(kind):
    name, folder = kind
    pipeline = Pipeline.load(folder)
    result = pipeline(DOG, PROMPT, "dog", **QUICK)
    assert result.images[0].size == (SIDE, SIDE) and np.isfinite(result.latents).all()
    text = pipeline.encode_prompts(PROMPT)
    outputs = [encoder.network.module.apply({"params": encoder.network.params}, ids(pipeline))
               for encoder in pipeline.text_encoders]
    if name == "sd15":
        assert text.pooled is None and text.time_ids is None
        np.testing.assert_allclose(text.text, outputs[0].last, atol=1e-5)
    else:
        assert text.text.shape[-1] == 2 * WIDTH
        np.testing.assert_allclose(text.text, np.concatenate([x.penultimate for x in outputs], -1), atol=1e-5)
        np.testing.assert_allclose(text.pooled, outputs[1].pooled, atol=1e-5)


def ids(pipeline):
    return jnp.asarray(pipeline.tokenizer(PROMPT, padding="max_length")["input_ids"])[None]


@pytest.mark.slow
def test_the_preset_decides_the_pooled_text_the_sizes_and_the_local_views(sdxl):
    ours, paper = Pipeline.load(sdxl), Pipeline.load(sdxl, preset="paper")
    second = paper.text_encoders[1].network
    projected = second.module.apply({"params": second.params}, ids(paper)).projected
    size = (SIDE, SIDE + 8)
    np.testing.assert_allclose(paper.encode_prompts(PROMPT, size=size).pooled, projected, atol=1e-5)
    assert not np.allclose(ours.encode_prompts(PROMPT, size=size).pooled, projected, atol=1e-3)
    for pipeline, first in ((ours, SIDE), (paper, SIDE + 8)):
        assert pipeline.encode_prompts(PROMPT, size=size).time_ids[0, 0] == first
    assert Pipeline.load(sdxl, preset="released_pipeline").vision_settings.local == "phases"
    assert paper.vision_settings.local == "tiles"


def test_projected_text_needs_a_projection(mini_folder):
    pipeline = Pipeline.load(mini_folder)
    pipeline = dataclasses.replace(pipeline, preset=PRESETS["paper"])
    with pytest.raises(ValueError, match="no text_projection"):
        pipeline.encode_prompts(PROMPT)


@pytest.mark.slow
def test_without_a_negative_prompt_the_negative_lane_reads_what_the_model_says(tmp_path):
    folder = write_mini_bundle(tmp_path / "model", "sdxl")

    def is_zero(pipeline, prompt=None):
        positive = pipeline.encode_prompts([PROMPT, PROMPT])
        negative = pipeline.encode_negative(prompt, positive)
        assert negative.text.shape == positive.text.shape and negative.time_ids.any()
        assert negative.text.any() == negative.pooled.any()
        return not negative.text.any()

    pipeline = Pipeline.load(folder)
    assert is_zero(pipeline)
    assert not is_zero(pipeline, "") and not is_zero(pipeline, "snow")
    assert not is_zero(Pipeline.load(folder, preset={"no_negative": "encoded"}))
    assert not is_zero(Pipeline.load(folder, preset={"negative_prompt": "snow"}))
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    assert not is_zero(Pipeline.load(folder))
    assert is_zero(Pipeline.load(folder, preset={"no_negative": "zeros"}))


def test_the_released_presets_have_the_released_negative_prompt():
    """prompts/validation_negative.txt of bytedance/RealCustom 28a718e, by its SHA-256."""
    released = "b2f313d2dc863af240a661695a8404ba1a215d0e2e8b17076771222158da4ff0"
    for name in ("released_pipeline", "released_script"):
        assert hashlib.sha256(PRESETS[name].negative_prompt.encode()).hexdigest() == released


@pytest.mark.slow
def test_a_model_says_how_it_is_best_used(tmp_path):
    folder = write_mini_bundle(tmp_path / "model")
    assert Pipeline.load(folder).preset == Preset()
    (folder / "preset.json").write_text('{"scope": 0.5}')
    assert Pipeline.load(folder).preset == Preset(scope=0.5)
    assert Pipeline.load(folder, preset="default").preset == Preset()
    (folder / "preset.json").write_text('{"skope": 0.5}')
    with pytest.raises(ValueError, match="preset.json.*did you mean 'scope'"):
        Pipeline.load(folder)


def test_presets_are_found_by_name_by_choices_and_misspellings_are_named():
    assert find_preset({"scope": 0.5}) == Preset(scope=0.5)
    for wrong, message in (("papper", "did you mean 'paper'"), ({"scpoe": 1}, "did you mean 'scope'"),
                           ({"pooled": "projekted"}, "did you mean 'projected'"), ({"local": "tile"}, "'tiles'"),
                           ({"scope": "big"}, r"scope is 'big'; expected the share .* in \(0, 1\]"),
                           ({"scope": 5}, "scope is 5; expected the share"), ({"scope": 0}, "scope is 0"),
                           ({"scope": True}, "scope is True"), ({"scope": float("nan")}, "scope is nan"),
                           ({"normalize": "max"}, "Unknown normalize 'max': known are max_norm"),
                           ({"refine": -3}, "refine is -3; expected a whole number, 0"), ({"refine": 1.5}, "is 1.5"),
                           ({"freeze_mask_step": 0}, "freeze_mask_step is 0; expected a whole number, at least 1"),
                           ({"guidance_scale": float("inf")}, "guidance_scale is inf; expected a finite number"),
                           ({"binary": 1}, "binary is 1; expected true or false")):
        with pytest.raises(ValueError, match=message):
            find_preset(wrong)


@pytest.mark.parametrize("dtype, autoencoder", [("bfloat16", "bfloat16"), ("float16", "float32")])
@pytest.mark.slow
def test_parameters_are_stored_as_they_are_computed_with(sdxl, dtype, autoencoder):
    half = Pipeline.load(sdxl, dtype=dtype, platform="gpu")
    for part, expected in ((half.unet, dtype), (half.siglip, dtype), (half.vae, autoencoder)):
        assert jnp.dtype(part.module.dtype) == expected
        assert {x.dtype for x in jax.tree.leaves(part.params)} == {jnp.dtype(expected)}


def test_the_cpu_has_no_float16_and_says_so(sdxl):
    with pytest.raises(ValueError, match="no float16 attention on the CPU; choose bfloat16"):
        Pipeline.load(sdxl, dtype="float16", platform="cpu")


def test_another_dtype_is_named(sdxl):
    for dtype in ("int8", "double", jnp.int32):
        with pytest.raises(ValueError, match="Unknown dtype .*known are float32, bfloat16, float16"):
            Pipeline.load(sdxl, dtype=dtype)


@pytest.mark.slow
def test_bfloat16_draws_nearly_the_same_picture(sdxl):
    whole, half = (Pipeline.load(sdxl, dtype=dtype) for dtype in ("float32", "bfloat16"))
    # Two steps of one mask each: positions that tie within rounding may change places in a top-k mask.
    a, b = (pipeline(DOG, PROMPT, "dog", scope=1.0, **QUICK).latents for pipeline in (whole, half))
    assert b.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


@pytest.mark.slow
def test_offloaded_encoders_stay_on_the_host_and_change_nothing(sdxl):
    on_device, offloaded = (Pipeline.load(sdxl, offload=offload) for offload in (False, True))
    parts = [offloaded.siglip, offloaded.dino, *(encoder.network for encoder in offloaded.text_encoders)]
    assert all(isinstance(x, np.ndarray) for part in parts for x in jax.tree.leaves(part.params))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(offloaded.unet.params))
    a, b = (np.asarray(pipeline(DOG, PROMPT, "dog", **QUICK).images[0]) for pipeline in (on_device, offloaded))
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def single_tensors(sdxl, monkeypatch):
    """What a single file of the model holds. The names are tested in test_single_file; here a file of diffusers' own
    names is split by a stand-in."""
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    configs = {part: read_config(sdxl / part / "config.json") for part in parts}
    monkeypatch.setitem(single_file.CONFIGS, "tiny", configs)
    monkeypatch.setattr(single_file, "kind", lambda names: "tiny")
    monkeypatch.setattr(single_file, "split", lambda tensors: {
        part: tensors.rename(lambda name, part=part: name.removeprefix(f"{part}/") if name.startswith(f"{part}/")
                             else None) for part in parts})
    return {f"{part}/{name}": value for part in parts
            for name, value in read_tensors(sdxl / part / bundle.WEIGHT_FILES[part]).items()}


@pytest.mark.slow
def test_a_single_file_is_the_same_model_as_its_folder(sdxl, single_tensors, tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(single_tensors, file)
    given = {"adapter": sdxl / "adapter", "vision": sdxl, "tokenizer": sdxl}
    from_file = Pipeline.load(file, **given)
    a, b = (np.asarray(p(DOG, PROMPT, "dog", **QUICK).images[0]) for p in (Pipeline.load(sdxl), from_file))
    np.testing.assert_array_equal(a, b)
    for option, message in (("vision", "a single file, which holds no image encoders"),
                            ("tokenizer", "a single file, which holds no tokenizer")):
        weights = sdxl / "unet/diffusion_pytorch_model.safetensors"
        with pytest.raises(FileNotFoundError, match=message):
            Pipeline.load(file, **given | {option: weights})
    for missing, message in (("tokenizer", "holds no tokenizer"), ("vision", "holds no image encoders"),
                             ("adapter", "needs an adapter")):
        with pytest.raises(FileNotFoundError, match=message):
            Pipeline.load(file, **{name: value for name, value in given.items() if name != missing})


def test_a_legacy_checkpoint_is_read_once(sdxl, single_tensors, tmp_path, monkeypatch):
    """From before torch 1.6: such a file cannot be mapped, so that each opening reads all of it."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in single_tensors.items()}
    file, opened, load = tmp_path / "model.ckpt", [], torch.load
    torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=False)
    monkeypatch.setattr(torch, "load", lambda path, **options: opened.append(path) or load(path, **options))
    pipeline = Pipeline.load(file, sdxl / "adapter", vision=sdxl, tokenizer=sdxl)
    assert opened == [file]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, pipeline.unet.params, Pipeline.load(sdxl).unet.params)))


def test_a_file_that_is_no_checkpoint_is_named(sdxl, tmp_path):
    file = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file({"unet.lora_up.weight": np.zeros(1, np.float32)}, file)
    with pytest.raises(ValueError, match="lora.safetensors: it holds a LoRA; expected a whole"):
        Pipeline.load(file, sdxl / "adapter", vision=sdxl, tokenizer=sdxl)
