"""The pipeline on a tiny model of random weights: what goes in and comes out, not how it looks."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

import realcustom_jax as rc
from realcustom_jax.conditioning.prompts import build_tokenizer
from realcustom_jax.files import write_json
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.locate import ASSETS, read_config
from realcustom_jax.model_files.network import TextEncoder
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.model_files.tensors import read_tensors

from mini_bundle import SIDE, WORDS

DOG, CAR = ASSETS / "references" / "dog.png", ASSETS / "references" / "car.png"
PROMPT = "a dog on the beach"
# One shape for most calls, so that the sampler is compiled once.
QUICK = {"steps": 2, "freeze_mask_step": 2}


def pixels(result) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images])


@pytest.fixture(scope="module")
def result(mini_pipeline):
    return mini_pipeline(DOG, PROMPT, "dog", num_images=2, **QUICK)


def test_a_call_makes_pictures_and_masks(result):
    assert pixels(result).shape == (2, SIDE, SIDE, 3)
    assert result.masks.shape == (2, 2, 1, 4, 4)
    assert np.array_equal((result.masks > 0).sum((-1, -2)), np.full((2, 2, 1), 4))  # a quarter of 4 × 4
    assert result.latents.shape == (2, 8, 8, 4) and np.isfinite(result.latents).all()
    assert (result.prompt, result.targets, result.seed) == (PROMPT, ("dog",), 0)
    np.testing.assert_array_equal(result.references[0], Image.open(DOG).convert("RGB"))


def test_seeds_decide_the_noise(mini_pipeline, result):
    again = mini_pipeline(DOG, PROMPT, "dog", num_images=2, **QUICK)
    np.testing.assert_array_equal(pixels(again), pixels(result))
    other = mini_pipeline(DOG, PROMPT, "dog", num_images=2, seed=1, **QUICK)
    for a, b in ((pixels(result)[0], pixels(result)[1]), (pixels(result), pixels(other))):
        assert not np.array_equal(a, b)


@pytest.mark.slow
def test_solvers_strengths_and_no_guidance(mini_pipeline, result):
    """A stochastic solver draws from the seed, each image its own; without guidance no negative prompt matters."""
    drawn = mini_pipeline(DOG, PROMPT, "dog", num_images=2, solver="euler_ancestral", **QUICK)
    alone = mini_pipeline(DOG, PROMPT, "dog", solver="euler_ancestral", **QUICK)
    np.testing.assert_allclose(alone.latents[0], drawn.latents[0], atol=1e-4)
    weaker, text_only, other = (mini_pipeline(DOG, PROMPT, "dog", vision_scale=scale, **QUICK).latents
                                for scale in (0.5, 0.0, 0.0))
    assert np.abs(weaker - result.latents[:1]).max() > 1e-3
    np.testing.assert_array_equal(text_only, other)
    np.testing.assert_allclose(
        text_only, mini_pipeline(CAR, PROMPT, "dog", vision_scale=[0.0], **QUICK).latents, atol=1e-5)
    without, same = (mini_pipeline(DOG, PROMPT, "dog", guidance_scale=scale, negative_prompt=negative, **QUICK).latents
                     for scale, negative in ((np.float32(1), ""), (None, "cat")))
    np.testing.assert_array_equal(without, same)
    with_lane = mini_pipeline(DOG, PROMPT, "dog", guidance_scale=1 + 1e-6, **QUICK).latents
    np.testing.assert_allclose(without, with_lane, atol=1e-3)


@pytest.mark.slow
def test_noise_can_be_given(mini_pipeline, result):
    noise = np.stack([jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (8, 8, 4)) for i in range(2)])
    given = mini_pipeline(DOG, PROMPT, "dog", num_images=2, seed=7, latents=noise, **QUICK)
    np.testing.assert_array_equal(pixels(given), pixels(result))
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\).*\(2, 8, 8, 4\)"):
        mini_pipeline(DOG, PROMPT, "dog", num_images=2, latents=noise[:, ::2, ::2], **QUICK)


def test_reference_prompt_and_scale_all_matter(mini_pipeline, result):
    for change in (
        {"image": CAR}, {"prompt": "a dog in the snow"}, {"guidance_scale": 1.0}, {"negative_prompt": "cat"},
    ):
        call = {"image": DOG, "prompt": PROMPT, "target": "dog", "num_images": 2, **QUICK} | change
        assert np.abs(mini_pipeline(**call).latents - result.latents).max() > 1e-3, change


def test_an_output_is_the_next_reference(mini_pipeline, result):
    following = mini_pipeline(result.images[0], "a dog in the snow", "dog", num_images=2, **QUICK)
    np.testing.assert_array_equal(following.references[0], result.images[0])


@pytest.mark.slow
def test_the_sequential_order_starts_like_the_fused_one(mini_pipeline, result):
    sequential = mini_pipeline(DOG, PROMPT, "dog", num_images=2, branches="sequential", **QUICK)
    np.testing.assert_allclose(sequential.masks[0], result.masks[0], atol=1e-5)
    assert not np.allclose(sequential.masks[1], result.masks[1], atol=1e-5)  # fused uses step 0's there
    np.testing.assert_allclose(result.masks[1], result.masks[0], atol=1e-6)


def test_two_subjects_have_masks_that_do_not_overlap(mini_pipeline):
    prompt, options = "a dog and a car on the beach", {"num_images": 2, **QUICK}
    both = mini_pipeline([DOG, CAR], prompt, ["dog", "car"], **options)
    assert both.masks.shape == (2, 2, 2, 4, 4)
    assert not ((both.masks > 0).sum(axis=2) > 1).any()
    swapped = mini_pipeline([CAR, DOG], prompt, ["car", "dog"], **options)
    np.testing.assert_allclose(swapped.latents, both.latents, atol=1e-3 * np.abs(both.latents).max())
    one_for_two = mini_pipeline(DOG, prompt, ["dog", "car"], **options)
    assert np.abs(one_for_two.latents - both.latents).max() > 1e-3


@pytest.mark.slow
def test_steps_are_reported(mini_pipeline):
    seen = []
    result = mini_pipeline(DOG, PROMPT, "dog", steps=2, freeze_mask_step=1, on_step=seen.append)
    assert sorted(seen) == [0, 1] and result.masks.shape == (2, 1, 1, 4, 4)


@pytest.mark.parametrize("change, message", [
    ({"steps": 0}, "steps.*0"),
    ({"steps": 1001}, "1001"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
    ({"scope": 0.0}, "scope is 0.0"),
    ({"scope": 1.5}, "scope is 1.5"),
    ({"scope": float("nan")}, "scope is nan"),
    ({"num_images": 0}, "num_images is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"width": -8}, "width is -8; .*the nearest is 8"),
    ({"height": 1000}, "height is 1000; .*the nearest is 32"),
    ({"width": 16.0}, "width is 16.0; expected a whole number"),
    ({"freeze_mask_step": 0}, "freeze_mask_step is 0"),
    ({"solver": "euller"}, "did you mean 'euler'"),
    ({"vision_scale": float("nan")}, "vision_scale is nan"),
    ({"vision_scale": [1.0, 0.5]}, "one for each of the 1 reference"),
    ({"branches": "both"}, "both.*fused"),
    ({"normalize": "max"}, "max.*max_norm"),
    ({"prompt": "  "}, "prompt is empty"),
    ({"target": ""}, "phrase is empty"),
    ({"target": "cat"}, "'cat'.*'a dog on the beach'.*a, dog, on, the, beach"),
    ({"prompt": "a zebra on the beach", "target": "zebra"}, "'zebra'.*dog, cat, car, teapot.*beach, snow"),
    ({"prompt": "a dog " * 7 + "car", "target": "car"}, "cut off"),
    ({"image": [DOG, CAR]}, r"2 reference\(s\) and 1 target\(s\)"),
    ({"image": [], "target": []}, r"0 reference\(s\)"),
])
@pytest.mark.filterwarnings("ignore:The prompt exceeds")
def test_impossible_inputs_are_errors(mini_pipeline, change, message):
    call = {"image": DOG, "prompt": PROMPT, "target": "dog"} | change
    with pytest.raises(ValueError, match=message):
        mini_pipeline(**call)


def test_pictures_of_numbers_that_are_none_are_not_given(mini_pipeline):
    params = jax.tree.map(lambda x: x * np.nan, mini_pipeline.vae.params)
    broken = dataclasses.replace(mini_pipeline, vae=dataclasses.replace(mini_pipeline.vae, params=params))
    with pytest.raises(ValueError, match="not made of finite numbers"):
        broken.decode(np.zeros((1, 8, 8, 4), np.float32))


def test_words_that_were_never_learnt_are_told(mini_pipeline):
    with pytest.warns(UserWarning, match=r"'big', 'jungle'.*dog, cat, car, teapot.*beach, snow"):
        mini_pipeline(DOG, "a big dog in the jungle", "dog", num_images=2, **QUICK)


def test_a_model_of_open_vocabulary_takes_any_word(mini_folder):
    assert FolderSource(mini_folder).vocabulary() is not None
    assert FolderSource(mini_folder / "vae").vocabulary() is None


def test_another_adapter_can_be_given(mini_folder, tmp_path):
    adapter = shutil.copytree(mini_folder / "adapter", tmp_path / "mine")
    tensors = read_tensors(adapter / "realcustom.safetensors")
    config = read_config(adapter / "config.json")
    (tmp_path / "adapter").mkdir()
    bundle.save_part(tmp_path, "adapter", config, {name: 2 * value for name, value in tensors.items()})
    ours, theirs = (rc.Pipeline.load(mini_folder, adapter=folder) for folder in (adapter, tmp_path / "adapter"))
    for part in ("projector", "unet"):
        changed = jax.tree.map(np.array_equal, getattr(ours, part).params, getattr(theirs, part).params)
        assert not all(jax.tree.leaves(changed))


def test_layers_are_loaded_as_the_platform_samples_fastest(mini_folder):
    """A GPU's apart, unless they are wanted together, as training wants them."""
    def scans(**options):
        return "transformer_blocks" in rc.Pipeline.load(mini_folder, **options).unet.params["mid_block"]["attentions_0"]

    assert scans(platform="cpu") and scans(platform="tpu")
    assert not scans(platform="gpu") and scans(platform="gpu", scan_layers=True)


def test_parts_that_do_not_fit_each_other_are_named(mini_folder, tmp_path):
    broken = shutil.copytree(mini_folder, tmp_path / "broken")
    tokenizer = broken / "tokenizer" / "tokenizer_config.json"
    write_json(tokenizer, read_config(tokenizer) | {"model_max_length": 77})
    with pytest.raises(ValueError, match="77 tokens of a prompt, the text encoder takes 16"):
        rc.Pipeline.load(broken)


@pytest.mark.parametrize("folder, threshold, expected", [
    ("mine", 1.0, 1.0), ("mine", 3.0, 3.0), (None, 3.0, 3.0), (None, 1.0, 0.05)])
def test_loading_leaves_the_users_settings_of_the_cache_and_of_warnings(
        mini_folder, tmp_path, folder, threshold, expected):
    """JAX's own threshold is lowered only together with our own folder."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before, shown, filters = {name: getattr(jax.config, name) for name in names}, warnings.showwarning, warnings.filters
    try:
        for name, value in zip(names, (folder and str(tmp_path / folder), threshold), strict=True):
            jax.config.update(name, value)
        rc.Pipeline.load(mini_folder)
        kept = jax.config.jax_compilation_cache_dir
        assert kept == str(tmp_path / folder) if folder else kept.endswith("realcustom_jax")
        assert jax.config.jax_persistent_cache_min_compile_time_secs == expected
        assert warnings.showwarning is shown and warnings.filters is filters
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_parts_of_different_widths_say_that_a_second_text_encoder_may_be_missing(mini_pipeline, tmp_path):
    module = mini_pipeline.unet.module
    wide = module.clone(config=dataclasses.replace(module.config, cross_attention_dim=48))
    pipeline = dataclasses.replace(mini_pipeline, unet=dataclasses.replace(mini_pipeline.unet, module=wide))
    with pytest.raises(ValueError, match="takes text of width 48, the text encoder makes 16 \\(a second one, text_enc"):
        pipeline._check_fit(tmp_path)


def test_a_tokenizer_without_a_length_takes_the_text_encoders(mini_folder, tmp_path):
    other = shutil.copytree(mini_folder / "tokenizer", tmp_path / "words/tokenizer").parent
    config = read_config(other / "tokenizer/tokenizer_config.json")
    del config["model_max_length"]
    write_json(other / "tokenizer/tokenizer_config.json", config)
    assert rc.Pipeline.load(mini_folder, tokenizer=other).tokenizer.model_max_length == 16


def call(pipeline, prompt, targets, count=2, **options):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")][:count]
    return pipeline(pictures, prompt, targets, num_images=2, **QUICK, **options)


def test_two_subjects_of_one_word_have_a_mask_each(mini_pipeline):
    result = call(mini_pipeline, "a dog and a dog on the beach", ["dog", "dog"])
    assert (result.masks[:, 0].reshape(2, 2, -1).max(-1) > 0).all() and result.targets == ("dog", "dog")
    numbered = call(mini_pipeline, "a dog and a dog on the beach", ["dog#1", "dog#2"])
    np.testing.assert_array_equal(numbered.masks, result.masks)
    assert numbered.targets == ("dog#1", "dog#2")
    for targets, message in ((["dog", "dog"], "occurs once"), (["dog", "a dog"], "All words")):
        with pytest.raises(ValueError, match=message):
            call(mini_pipeline, "a dog", targets)
    assert mini_pipeline.mark_targets("a dog", ["dog", "dog"], overlapping=True)[:, 2].all()


def test_messages_say_which_text_they_mean(mini_pipeline):
    with pytest.warns(UserWarning, match="^The negative prompt exceeds 16 tokens") as said:
        call(mini_pipeline, "a dog", "dog", 1, negative_prompt="dog " * 40)
    assert len(said) == 1
    for words, message in (({"prompt": "a dog \ud83d"}, "The prompt holds half"), ({"prompt": 7}, "The prompt is 7"),
                           ({"targets": "\ud83d"}, "target phrase holds half"),
                           ({"targets": None}, "target phrase is None"),
                           ({"negative_prompt": "\ud83d"}, "negative prompt holds half")):
        with pytest.raises(ValueError, match=message):
            call(mini_pipeline, **{"prompt": "a dog", "targets": "dog", "count": 1} | words)


@pytest.mark.parametrize("prompt, cut", [
    ("!!! " * 6 + "dog", "! !!! dog"), ("dog " * 20, "dog dog dog dog dog dog ")])
def test_what_any_tokenizer_cuts_is_told_once(mini_pipeline, prompt, cut):
    """SDXL's second tokenizer makes three tokens of "!!!", so that its text may end before the first one's."""
    first = build_tokenizer([*WORDS, "!!!"], max_length=16)
    rules = json.loads(first.backend_tokenizer.to_str())["model"]
    second = CLIPTokenizer(vocab=rules["vocab"], merges=list(map(tuple, rules["merges"])), model_max_length=16,
                           pad_token="!")
    network = mini_pipeline.text_encoders[0].network
    pipeline = dataclasses.replace(
        mini_pipeline, text_encoders=tuple(TextEncoder(tokenizer, network) for tokenizer in (first, second)))
    with pytest.warns(UserWarning) as said:
        pipeline.encode_prompts(prompt)
    assert [str(warning.message) for warning in said] == [f"The prompt exceeds 16 tokens; its end is ignored: {cut!r}."]
