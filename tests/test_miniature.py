"""The bundled miniature, end to end: its size, its words, and that its mask finds the subject it paints."""

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.sprites import captions, world
from realcustom_jax.evaluation.miniature.judge import load_judge
from realcustom_jax.evaluation.miniature.measures import roc_area
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Pipeline

REFERENCES = ASSETS / "references"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load("mini")


def test_the_bundle_is_small_and_described():
    files = [file for file in (ASSETS / "mini").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert (ASSETS / "mini" / "README.md").is_file()


def test_its_form_for_four_steps_is_small_and_runs_no_negative_lane():
    lora, choices = ModelSource.open("mini").few_steps()
    assert lora.stat().st_size <= 4e6
    assert choices == {"steps": 4, "solver": "ddim", "freeze_mask_step": 2, "guidance_scale": 1.0,
                       "branches": "sequential"}


def test_it_knows_the_sprite_world(pipeline):
    assert set(pipeline.vocabulary.nouns) == set(world.NOUNS)
    assert set(pipeline.vocabulary.scenes) == set(world.SCENES)
    for word in captions.VOCABULARY:
        assert len(pipeline.tokenizer.tokenize(word)) == 1


def test_it_makes_pictures_of_the_painted_worlds_size(pipeline):
    assert pipeline.sizes.native == 128 and pipeline.latent_shape() == (16, 16, 12)
    assert {Image.open(path).size for path in REFERENCES.glob("*.png")} == {(128, 128)}


@pytest.mark.slow
def test_the_subject_goes_into_a_picture(pipeline):
    """What is outside of the box stays to the byte; in it, where nothing was, the judge finds the dog."""
    judge, dog = load_judge(ASSETS / "mini"), np.full((4, 1), world.NOUNS.index("dog"))
    empty = Image.fromarray(world.paint([], "beach", seed=1, size=128)[0])
    result = pipeline(REFERENCES / "dog.png", "a dog on the beach", "dog", init_image=empty, num_images=4,
                      mask_image=(16, 32, 112, 120))
    pictures = np.stack([np.asarray(image) for image in result.images])
    outside = np.ones((128, 128), bool)
    outside[32:120, 16:112] = False
    assert np.array_equal(pictures[:, outside], np.repeat(np.asarray(empty)[outside][None], 4, axis=0))
    assert not result.masks[..., 0, :2, :].any() and not result.masks[..., 0, :, [0, 7]].any()
    before = judge(np.repeat(np.asarray(empty)[None], 4, axis=0), dog)
    after = judge(pictures, dog)
    assert not before.found.any() and after.found.mean() >= 0.75
    places = after.places[after.found[:, 0], 0] > 0.5
    assert places[:, 16:60, 8:56].sum() > 0.9 * places.sum()


@pytest.mark.parametrize("few_steps, choices, steps", [
    (False, {"steps": 10, "freeze_mask_step": 5}, 10), (True, {}, 4)])
@pytest.mark.slow
def test_customised_pictures_and_their_masks(few_steps, choices, steps):
    pipeline = Pipeline.load("mini", few_steps=few_steps)
    result = pipeline(REFERENCES / "dog.png", "a dog on the beach", "dog", num_images=4, **choices)
    pictures = np.stack([np.asarray(image) for image in result.images])
    assert pictures.shape == (4, 128, 128, 3)
    assert result.masks.shape == (steps, 4, 1, 8, 8)
    # Noise changes from one pixel to the next as much as anywhere; painted pictures are mostly smooth.
    changes = np.abs(np.diff(pictures.astype(float), axis=2)).mean()
    assert changes < 0.3 * np.abs(pictures - pictures.mean((1, 2), keepdims=True)).mean()
    opinions = load_judge(ASSETS / "mini")(pictures, np.full((4, 1), world.NOUNS.index("dog")))
    assert opinions.found.mean() >= 0.75
    assert (opinions.scene == world.SCENES.index("beach")).mean() >= 0.75
    masks = result.masks[-1, :, 0].repeat(8, axis=1).repeat(8, axis=2)
    areas = [roc_area(mask, places > 0.5) for mask, places in zip(masks, opinions.places[:, 0], strict=True)]
    assert np.mean(areas) > 0.7, "chance is 0.5"
