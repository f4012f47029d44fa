"""Which part of a reference a word means."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.sprites.world import NOUNS
from realcustom_jax.evaluation.miniature.cases import make_cases
from realcustom_jax.evaluation.miniature.judge import load_judge
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.presets import Preset
from realcustom_jax.sampling.locating import box_around


def places(*found: tuple[int, int], size: tuple[int, int] = (8, 8)) -> np.ndarray:
    grid = np.zeros(size, np.float32)
    for place in found:
        grid[place] = 1
    return grid


@pytest.mark.parametrize("found, size, box", [
    # Two by two places of 16 pixels, from 32 to 64: a margin of 5 % of 128 on either side, less 4 % of the thing's.
    (places((2, 2), (2, 3), (3, 2), (3, 3)), (128, 128), (27, 27, 69, 69)),
    # At a corner the box keeps its size and stays within the picture.
    (places((0, 0), (0, 1), (1, 0), (1, 1)), (128, 128), (0, 0, 42, 42)),
    (places((7, 7), (7, 6), (6, 7), (6, 6)), (128, 128), (86, 86, 128, 128)),
    # Low and wide: a square in pixels, whatever the picture's shape.
    (places((4, 2), (4, 3), (4, 4), (4, 5)), (256, 128), (56, 0, 199, 128)),
    # A picture of a few pixels still has one to show.
    (places((0, 0)), (2, 1), (0, 0, 1, 1)),
    # Nothing is found: all of it.
    (places(), (100, 60), (0, 0, 100, 60)),
    (places(*np.ndindex(8, 8)), (90, 40), (0, 0, 90, 40)),
])
def test_a_box_holds_what_is_found_and_is_a_square_where_it_can_be(found, size, box):
    assert box_around(found, *size) == box


def test_a_stray_place_does_not_widen_the_box():
    found = 30 * places((2, 2), (2, 3), (3, 2), (3, 3)) + places((7, 7))
    left, top, right, bottom = box_around(found, 128, 128)
    assert right <= 72 and bottom <= 72


@pytest.fixture(scope="module")
def miniature():
    return Pipeline.load("mini")


@pytest.mark.slow
def test_each_word_finds_its_own_thing(miniature):
    judge = load_judge(ASSETS / "mini")
    right = []
    for case in make_cases("one2many", 8, 5)[::2]:
        phrases = [thing.noun for thing in case.things]
        crops = miniature.given_to_targets([case.references[0] / np.float32(255)], str(case.prompt), phrases)
        pictures = np.stack([Image.fromarray(np.uint8(crop * 255)).resize((128, 128)) for crop in crops])
        shown = judge(pictures, np.array([[NOUNS.index(phrase) for phrase in phrases]] * 2)).places.mean((2, 3))
        right += [shown[0, 0] > 2 * shown[0, 1], shown[1, 1] > 2 * shown[1, 0]]
    assert np.mean(right) >= 0.75, right  # 0.5 of whole pictures at most, in which both things have a size


@pytest.mark.slow
def test_a_call_shows_what_each_phrase_was_given(miniature):
    both = ASSETS / "references" / "cat_and_car.png"
    call = {"prompt": "a cat and a car in space", "target": ["cat", "car"], "steps": 2}
    cropped = miniature(both, **call)
    whole = dataclasses.replace(
        miniature, preset=dataclasses.replace(miniature.preset, shared_reference="whole"))(both, **call)
    original = Image.open(both)
    assert [x.size for x in whole.references] == [original.size]
    assert len(cropped.references) == 2
    assert all(max(x.size) < max(original.size) for x in cropped.references)
    assert (np.asarray(cropped.images[0]) != np.asarray(whole.images[0])).any()
    # One word, or a reference for each, is given the whole.
    assert miniature(both, "a cat in space", "cat", steps=1).references[0].size == original.size


def test_only_the_miniature_crops_by_itself():
    assert Preset().shared_reference == "whole"
    with pytest.raises(ValueError, match="shared_reference"):
        Preset(shared_reference="half")
