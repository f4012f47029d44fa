"""The bundled miniature, end to end: its size, its words, and that its mask finds the subject it paints."""

import numpy as np
import pytest

from realcustom_jax.data.sprites import world
from realcustom_jax.evaluation.judge import load_judge
from realcustom_jax.evaluation.metrics import roc_area
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.pipeline import Pipeline

REFERENCES = ASSETS / "references"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load("mini")


def test_the_bundle_is_small_and_described():
    files = [file for file in (ASSETS / "mini").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert (ASSETS / "mini" / "README.md").is_file()


def test_it_knows_the_sprite_world(pipeline):
    assert set(pipeline.vocabulary.nouns) == set(world.NOUNS)
    assert set(pipeline.vocabulary.scenes) == set(world.SCENES)
    for word in world.VOCABULARY:
        assert len(pipeline.tokenizer.tokenize(word)) == 1


@pytest.mark.slow
def test_customised_pictures_and_their_masks(pipeline):
    result = pipeline(REFERENCES / "dog.png", "a dog on the beach", "dog", num_images=4, steps=10, freeze_mask_step=5)
    pictures = np.stack([np.asarray(image) for image in result.images])
    assert pictures.shape == (4, 64, 64, 3)
    assert result.masks.shape == (10, 4, 1, 8, 8)
    opinions = load_judge(ASSETS / "mini")(pictures)
    assert (opinions.labels["scene"] == world.SCENES.index("beach")).mean() >= 0.75
    masks = result.masks[-1, :, 0].repeat(8, axis=1).repeat(8, axis=2)
    areas = [roc_area(mask, subject > 0.5) for mask, subject in zip(masks, opinions.subject, strict=True)]
    assert np.mean(areas) > 0.7, "chance is 0.5"
