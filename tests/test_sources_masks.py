"""Run lengths and polygons against masks made pixel by pixel, and against COCO's tools where they are installed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realcustom_jax.data.sources.masks import Polygons, mask_of_numbers, packed

BOUNDED = settings(derandomize=True, max_examples=40, deadline=None, database=None)


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.reshape(pixels, (height, width))
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask


def counts_of(mask):
    """By the definition: down the columns, beginning with what is outside."""
    counts, last = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


@BOUNDED
@given(masks())
def test_run_lengths_come_back_as_their_mask_from_a_list_and_from_a_text(mask):
    counts = counts_of(mask)
    for written in (counts, packed(counts), packed(counts).encode()):
        found = mask_of_numbers({"size": list(mask.shape), "counts": written}).pixels(mask.shape)
        np.testing.assert_array_equal(found, mask)


@BOUNDED
@given(st.lists(st.integers(0, 10**7), max_size=12))
def test_cocos_text_holds_any_counts(counts):
    size = max(sum(counts), 1)
    if size > 2**16:
        return
    found = mask_of_numbers({"size": [1, size], "counts": packed(counts)}) if sum(counts) else None
    assert found is None or list(found.counts) == counts


def test_a_text_that_cocos_own_tools_wrote():
    """By pycocotools 2.0.11, whose `encode` was given this mask."""
    mask = np.zeros((400, 6), bool)
    mask[50:300, 1:4] = True
    mask[100:220, 2] = False
    text = "R>j7f4hIROn0n0Z5^g0"
    assert packed(counts_of(mask)) == text
    np.testing.assert_array_equal(mask_of_numbers({"size": [400, 6], "counts": text}).pixels((400, 6)), mask)


@BOUNDED
@given(masks())
def test_cocos_tools_say_the_same(mask):
    coco = pytest.importorskip("pycocotools.mask")
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(mask_of_numbers(encoded).pixels(mask.shape), mask)
    assert packed(counts_of(mask)).encode() == encoded["counts"]


@BOUNDED
@given(st.text(max_size=8), st.integers(1, 5), st.integers(1, 5))
def test_any_text_for_counts_is_a_mask_or_a_sentence(text, height, width):
    try:
        found = mask_of_numbers({"size": [height, width], "counts": text}).pixels((height, width))
    except ValueError as error:
        assert "mask" in str(error)
    else:
        assert found.shape == (height, width)


@BOUNDED
@given(masks())
def test_the_outlines_of_all_pixels_are_their_mask(mask):
    squares = [[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y, x in np.argwhere(mask).tolist()]
    np.testing.assert_array_equal(mask_of_numbers(squares).pixels(mask.shape), mask)


@BOUNDED
@given(st.lists(st.tuples(st.floats(-5, 35), st.floats(-5, 25)), min_size=3, max_size=3))
def test_a_triangle_is_the_pixels_whose_middles_lie_on_one_side_of_all_its_edges(points):
    y, x = np.mgrid[:20, :30] + 0.5
    sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
             for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True)]
    inside = np.all(np.greater(sides, 0), axis=0) | np.all(np.less(sides, 0), axis=0)
    clear = np.all(np.abs(sides) > 1e-6, axis=0)  # rounding may say either of middles on an edge
    try:
        found = Polygons((tuple(np.ravel(points).tolist()),)).pixels((20, 30))
    except ValueError:
        found = np.zeros((20, 30), bool)
    np.testing.assert_array_equal(found[clear], inside[clear])


def test_several_polygons_are_one_mask_and_what_sticks_out_is_cut():
    found = mask_of_numbers([[-9, -9, 3, -9, 3, 2, -9, 2], [4, 1, 99, 1, 99, 3, 4, 3]]).pixels((4, 6))
    expected = np.zeros((4, 6), bool)
    expected[:2, :3] = expected[1:3, 4:] = True
    np.testing.assert_array_equal(found, expected)
