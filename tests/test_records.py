"""Rows as records and as entries of the index."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.index import Index
from realcustom_jax.data.records import CUT_OUT, FEATURES, PLACED_ANEW, read_record, write_record
from realcustom_jax.data.rows import MaskPicture, Row, Subject
from realcustom_jax.files import read_npz


class InMemory:
    """A stored picture that is there already."""

    def __init__(self, content, name="here"):
        self.content, self.name = content, name

    def read(self):
        return self.content


def picture(size, colour="red", kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return InMemory(buffer.getvalue())


def mask(size, box):
    buffer = io.BytesIO()
    image = Image.new("L", size, 0)
    image.paste(255, box)
    image.save(buffer, "PNG")
    return MaskPicture(InMemory(buffer.getvalue(), "mask.png"))


TURNED = Image.Exif()
TURNED[0x0112] = 6
TWO = Row(
    "line 1", (picture((40, 30), exif=TURNED), picture((20, 10), "blue", "WEBP"), picture((9, 9), "green", "PNG")),
    ("a dog and a red car", "the red car beside a dog"),
    (Subject("dog", views=(1, 2)), Subject("red car", mask=mask((30, 40), (5, 5, 20, 30)))), identity="Rex", score=0.5)
GROUP = Row("dog/1", tuple(picture((10 + i, 20)) for i in range(5)), ("a dog",),
            (Subject("dog", views=tuple(range(5))),), targets=5)
BOX = Row("line 3", (picture((40, 30)),), ("a dog",), (Subject("dog", box=(5, 5, 90, 20)),))


@pytest.mark.parametrize("kind, numbers", [
    ("png", np.uint16([26000, 40000])), ("tiff", np.uint16([26000, 40000])), ("tiff", np.int32([26000, 40000])),
    ("tiff", np.float32([0.4, 0.6])), ("tiff", np.float32([100, 150])), ("png", np.uint8([100, 150])),
    ("png", np.bool([False, True]))])
def test_half_is_the_threshold_of_masks_of_every_depth(kind, numbers):
    marked = np.zeros((18, 9), int)
    marked[3:9, 2:8] = 1
    buffer = io.BytesIO()
    Image.fromarray(numbers[marked]).save(buffer, kind)
    np.testing.assert_array_equal(MaskPicture(InMemory(buffer.getvalue())).pixels((18, 9)), marked)


def test_a_record_holds_the_row_and_the_bytes_of_its_pictures():
    content, entry = write_record(TWO)
    found = read_record(content)
    assert found.pictures == [stored.content for stored in TWO.pictures]
    assert found.captions == list(TWO.captions) and found.words == ["dog", "red car"] and found.where == "line 1"
    assert found.views.tolist() == [[0, 1], [0, 2]] and found.targets == 1 and found.score == 0.5
    assert found.identity == "Rex"
    marked = np.asarray(Image.open(io.BytesIO(found.masks[1])))
    np.testing.assert_array_equal(marked, TWO.subjects[1].mask.pixels((40, 30)))
    assert entry.sizes == [(40, 30), (10, 20), (9, 9)]  # the first as its EXIF turns it
    assert entry.choices == [(0, 1), (0, 2), (1, CUT_OUT), (1, PLACED_ANEW)]
    found = read_record(write_record(BOX)[0])
    assert found.boxes[0].tolist() == [5, 5, 40, 20] and math.isnan(found.score) and not found.masks


def test_subjects_of_one_name_are_one_and_others_are_their_own():
    same = Row("line 9", BOX.pictures, BOX.captions, BOX.subjects, identity="Rex")
    identities = [write_record(row)[1].identity for row in (TWO, same, BOX, GROUP)]
    assert identities[0] == identities[1] and len(set(identities)) == 3


def test_an_index_is_that_of_its_rows_whole_or_in_parts():
    entries = [write_record(row)[1] for row in (TWO, GROUP, BOX)]
    whole = Index.of(entries)
    parts = Index.concatenate([Index.of(entries[:1]), Index.of([]), Index.of(entries[1:])])
    again = Index.of_arrays(read_npz(io.BytesIO(parts.to_bytes())))
    for name, expected in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), expected, err_msg=name)
        assert getattr(again, name).dtype == expected.dtype
    assert len(again) == 3 and again.pictures.tolist() == [0, 3, 8, 9] and again.targets.tolist() == [1, 5, 1]
    assert again.captions.tolist() == [2, 1, 1]
    assert again.choice[again.choices[1]:again.choices[2]].tolist() == [[0, i] for i in range(5)]


@pytest.mark.parametrize("bits", [1, 0x41, 0xFF])  # 0x41: of a flag, it asks for a password
def test_a_damaged_index_is_a_value_error_or_harmless(bits):
    """For every other of its bytes; zipfile, zlib and NumPy raise many kinds."""
    whole = Index.of([write_record(BOX)[1]])
    content = whole.to_bytes()
    refused = 0
    for at in range(bits % 2, len(content), 2):
        damaged = bytearray(content)
        damaged[at] ^= bits
        try:
            found = read_npz(io.BytesIO(damaged))
        except ValueError as error:
            assert str(error).startswith("it is no whole .npz file (")
            refused += 1
            continue
        for name, array in found.items():
            if name in vars(whole):
                np.testing.assert_array_equal(array, getattr(whole, name))
    assert refused > len(content) / 4


@pytest.mark.parametrize("change, words", [
    ({"captions": ("a cat",)}, "the word 'dog' is not in the caption 'a cat'"),
    ({"subjects": (Subject("dog"),)}, "none of 'reference', 'mask' and 'box'"),
    ({"subjects": (Subject("dog", views=(7,)),)}, "no pictures of it"),
    ({"subjects": (Subject("dog", box=(500, 5, 600, 9)),)}, r"\[500, 5, 600, 9\] lies outside its target of 40 x 30"),
    ({"subjects": (Subject("dog", mask=mask((4, 3), (0, 0, 2, 2))),)}, "mask.png is 4 x 3, its target 40 x 30"),
    ({"subjects": (Subject("dog", mask=mask((40, 30), (0, 0, 0, 0))),)}, "mask.png is empty"),
    ({"pictures": (InMemory(BOX.pictures[0].content[:300], "cut.jpg"),)}, "cut.jpg cannot be read"),
    ({"subjects": ()}, "no subject"), ({"targets": 2}, "no target"),
])
def test_a_row_that_makes_no_sense_says_why(change, words):
    with pytest.raises(ValueError, match=words):
        write_record(Row(**{**vars(BOX), **change}))


def test_tfds_reads_the_records_of_its_features():
    """As its own `data_source` does, pictures decoded."""
    found = FEATURES.deserialize_example_np(write_record(TWO)[0])
    assert [x.shape for x in found["pictures"]] == [(30, 40, 3), (10, 20, 3), (9, 9, 3)]
    assert [x.shape for x in found["masks"]] == [(40, 30, 1)]
