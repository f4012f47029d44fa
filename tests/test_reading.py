"""The order of rows, their examples and batches, and reading them ahead."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.conditioning.images import load_image, load_rgb
from realcustom_jax.conditioning.references import square_pixels, square_reference
from realcustom_jax.data import examples as examples_module
from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.cutouts import cut_out_subject, recontextualised
from realcustom_jax.data.examples import Drawn, read_example
from realcustom_jax.data.index import Index
from realcustom_jax.data.order import Order
from realcustom_jax.data.reading import Prefetched
from realcustom_jax.data.records import CUT_OUT, PLACED_ANEW, read_record, write_record
from realcustom_jax.data.rows import MaskPicture, Row, Subject
from realcustom_jax.data.shapes import bucket_of, buckets, buckets_of, cover, nearest
from realcustom_jax.training.curriculum import Curriculum


class InMemory:
    """A stored picture that is there already."""

    def __init__(self, content, name="here"):
        self.content, self.name = content, name

    def read(self):
        return self.content


class Rows:
    """A dataset in memory."""

    def __init__(self, *rows):
        written = [write_record(row) for row in rows]
        self.contents, self.index = [content for content, _ in written], Index.of([entry for _, entry in written])

    def __len__(self):
        return len(self.contents)

    def record(self, row):
        return read_record(self.contents[row])


def stored(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return InMemory(buffer.getvalue())


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask_of(width, height, left, top, right, bottom):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def index_of(sizes, targets=None):
    """An index of rows with a target or `targets` of these (width, height) each."""
    targets = np.ones(len(sizes), np.int32) if targets is None else np.array(targets, np.int32)
    pictures, rows = np.concatenate([[0], np.cumsum(targets)]), np.arange(len(targets))
    return Index(pictures=pictures, sizes=np.array(sizes, np.int32)[:, ::-1], targets=targets,
                 captions=np.ones(len(rows), np.int32), choices=np.arange(len(rows) + 1),
                 choice=np.zeros((len(rows), 2), np.int32), identity=rows.astype(np.uint64), score=rows * 0.0)


SIZES = buckets(1024)
SQUARE, WIDE, TALL = (500, 500), (500, 250), (250, 500)


def counts(order, epoch=0):
    return np.bincount(order.epoch(epoch).rows.ravel())


def test_shapes_have_about_the_area_and_the_nearest_is_taken():
    assert (1024, 1024) in SIZES and (1152, 896) in SIZES and (896, 1152) in SIZES
    assert all(w % 64 == h % 64 == 0 and 0.8 * 1024**2 < w * h <= 1024**2 for w, h in SIZES)
    assert SIZES[bucket_of(500, 500, SIZES)] == (1024, 1024)
    width, height = SIZES[bucket_of(1000, 10, SIZES)]
    assert width / height == max(w / h for w, h in SIZES)
    with pytest.raises(ValueError, match="multiple of 64"):
        buckets(1000)
    pictures = np.random.default_rng(0).integers(1, 4000, (500, 2))
    one_by_one = [np.argmin([abs(np.log(w / h) - np.log(a / b)) for a, b in SIZES]) for h, w in pictures]
    assert buckets_of(pictures, SIZES).tolist() == one_by_one
    kept = np.array([size in ((1024, 1024), (1408, 704)) for size in SIZES])
    assert {SIZES[i] for i in nearest(SIZES, kept)} == {(1024, 1024), (1408, 704)}
    assert SIZES[nearest(SIZES, kept)[SIZES.index((1152, 896))]] == (1024, 1024)


def test_crops_keep_the_focus_and_are_made_before_a_picture_is_enlarged():
    picture = Image.new("RGB", (400, 100), "black")
    picture.paste("white", (360, 40, 380, 60))
    cropped, (top, left) = cover(picture, (128, 128), focus=(370, 50))
    assert cropped.size == (128, 128) and top == 0 and left == 512 - 128
    assert np.asarray(cropped).max() == 255
    cropped, corner = cover(picture, (128, 128), focus=(200, 50))
    assert corner == (0, 192) and np.asarray(cropped).max() == 0
    cropped, (top, left) = cover(Image.new("RGB", (60000, 2), "red"), (128, 128), focus=(30000, 1))
    assert cropped.size == (128, 128) and top == 0 and left == 64 * 30000 - 64


@pytest.mark.parametrize(("rows", "batch_size"), [
    ([SQUARE] * 31 + [WIDE], 16), ([SQUARE] * 100 + [WIDE] * 9 + [TALL] * 3, 16), ([SQUARE] * 15 + [WIDE] * 2, 16),
    ([SQUARE] * 4 + [TALL] * 4, 16), ([SQUARE], 16), ([SQUARE, WIDE, TALL], 1), ([SQUARE] * 7, 2),
    ([WIDE] * 200 + [TALL] * 150 + [SQUARE] * 129, 128), ([(w, h) for w, h in SIZES for _ in range(w % 7 + 1)], 8)])
def test_no_row_is_shown_more_than_twice_as_often_as_another(rows, batch_size):
    order = Order(index_of(rows), SIZES, batch_size, seed=0)
    for epoch in range(3):
        shown = counts(order, epoch)
        assert len(shown) == len(rows) and 1 <= shown.min() and shown.max() <= 2 * shown.min()
        assert order.epoch(epoch).rows.shape == (len(order), batch_size)
    own = np.array([bucket_of(*size, SIZES) for size in rows])
    assert (order.shapes != own).mean() <= 0.1, "few rows are cropped to another shape than theirs"
    assert set(order.epoch(0).shapes.tolist()) == set(order.kept)


def test_a_lonely_row_joins_the_nearest_shape_and_an_epoch_is_one_pass():
    order = Order(index_of([SQUARE] * 31 + [(500, 400)] * 32 + [(500, 350)]), SIZES, 16, seed=0)
    assert order.passes == 1 and len(order) == 2 + 3
    assert SIZES[order.shapes[-1]] == SIZES[bucket_of(500, 400, SIZES)]
    shown = counts(order)
    assert shown.sum() == 5 * 16 and shown.max() == 2 and (shown[:31] == 2).sum() == 1


def test_the_order_is_a_function_of_seed_and_epoch():
    rows = [SQUARE] * 40 + [WIDE] * 40
    orders = [Order(index_of(rows), SIZES, 8, seed) for seed in (0, 0, 1)]
    first, again, other = (order.epoch(5) for order in orders)
    orders[1].epoch(0)
    for name in ("rows", "targets", "shapes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.rows != other.rows).any() and (first.rows != orders[0].epoch(4).rows).any()
    for batch, shape in zip(first.rows, first.shapes, strict=True):
        assert {SIZES[bucket_of(*rows[row], SIZES)] for row in batch} == {SIZES[shape]}
        assert len(set(batch.tolist())) == 8


def test_weights_say_how_often_rows_are_shown():
    order = Order(index_of([SQUARE] * 64), SIZES, 8, 0, weights=np.repeat([0, 1, 3], [16, 24, 24]))
    shown = np.sum([counts(order, epoch) for epoch in range(50)], axis=0)
    assert not shown[:16].any() and order.rows == 48
    assert shown[40:].sum() == pytest.approx(3 * shown[16:40].sum(), rel=0.05)
    for wrong, words in ((np.ones(3), "not 64 numbers"), (-np.ones(64), "0 or more"), (np.zeros(64), "no row to show")):
        with pytest.raises(ValueError, match=words):
            Order(index_of([SQUARE] * 64), SIZES, 8, 0, weights=wrong)
    with pytest.raises(ValueError, match="no row to show"):
        Order(Index.of([]), SIZES, 8, 0)


def test_a_group_has_the_shape_of_most_of_its_views_and_all_are_targets():
    order = Order(index_of([SQUARE] * 3 + [WIDE, TALL, SQUARE, SQUARE] + [WIDE], [3, 4, 1]), SIZES, 1, seed=0)
    assert [SIZES[i] for i in order.shapes] == [(1024, 1024)] * 2 + [SIZES[bucket_of(*WIDE, SIZES)]]
    shown = [order.epoch(epoch) for epoch in range(100)]
    targets = [sorted({int(e.targets[e.rows == row][0]) for e in shown}) for row in range(3)]
    assert targets == [[0, 1, 2], [0, 1, 2, 3], [0]]


@pytest.mark.slow
def test_a_million_rows_are_ordered_in_two_seconds():
    """On a core of its own some 0.3 s; processor time, because a test machine has other work."""
    sizes = np.exp(np.random.default_rng(0).normal(6.9, 0.3, (10**6, 2))).astype(int)
    order = Order(index_of(sizes), SIZES, 2048, seed=0)
    start = time.thread_time()
    order.epoch(3)
    assert time.thread_time() - start < 2
    shown = counts(order, 3)
    assert shown.min() == 1 and shown.max() == 2 and shown.mean() < 1.05


@pytest.mark.parametrize("size", [(768, 768), (500, 750), (767, 901), (1, 1), (2, 5), (1800, 700)])
def test_squares_of_bytes_are_those_of_sampling_rounded(size):
    pixels = noise(*size)
    for side in (768, 192, 64, 1):
        expected = np.uint8(np.round(square_reference(pixels.astype(np.float32) / 255, side) * 255))
        np.testing.assert_array_equal(square_pixels(pixels, side), expected)


@pytest.mark.parametrize("picture", [
    Image.fromarray(noise(9, 7)), Image.fromarray(np.uint16(noise(9, 7)[..., 0]) * 200),
    Image.fromarray(noise(9, 7)[..., 0]), Image.fromarray(np.dstack([noise(9, 7), noise(9, 7, 1)[..., 0]]))])
def test_pixels_are_the_picture_in_bytes(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    found = load_rgb(buffer.getvalue())
    np.testing.assert_array_equal(np.asarray(found), np.round(load_image(buffer.getvalue()) * 255))
    assert found.mode == "RGB"


def test_an_example_is_what_its_row_says():
    """The target is cropped round the subject; references are made as they were when they were kept as pictures."""
    target, view = noise(200, 100), noise(50, 60, 1)
    mask = mask_of(200, 100, 130, 20, 190, 70)
    row = Row("line 1", (stored(target), stored(view, "JPEG")), ("a dog", "a dog and a cat"),
              (Subject("dog", views=(1,), mask=MaskPicture(stored(mask))),))
    record = read_record(write_record(row)[0])
    picture = Image.fromarray(target)
    expected, corner = cover(picture, (128, 128), focus=(160, 45))
    references = {
        1: load_image(row.pictures[1].read()), CUT_OUT: load_image(cut_out_subject(picture, mask > 0)),
        PLACED_ANEW: load_image(recontextualised(picture, mask > 0, np.random.default_rng((3,)), 64))}
    for reference, expected_reference in references.items():
        made = read_example(record, Drawn(0, 0, reference, 1), (128, 128), 64, (3,))
        np.testing.assert_array_equal(made.target, np.asarray(expected))
        np.testing.assert_array_equal(made.reference, np.round(square_reference(expected_reference, 64) * 255))
        assert made.original_size.tolist() == [100, 200] and made.crop_top_left.tolist() == list(corner)
        assert (made.caption, made.word) == ("a dog and a cat", "dog")


def test_a_box_is_cut_to_its_picture():
    row = Row("line 1", (stored(noise(200, 100)),), ("a dog",), (Subject("dog", box=(-5.5, 10.2, 80, 300)),))
    made = read_example(read_record(write_record(row)[0]), Drawn(0, 0, CUT_OUT, 0), (64, 64), 64, (0,))
    mask = mask_of(200, 100, 0, 10, 80, 100) > 0
    cut_out = np.asarray(cut_out_subject(Image.fromarray(noise(200, 100)), mask))
    np.testing.assert_array_equal(made.reference, square_pixels(cut_out, 64))


def row_of_views(number, views):
    pictures = [stored(noise(64, 64, 100 * number + i)) for i in range(views + 1)]
    return Row(f"line {number}", tuple(pictures), ("a dog",), (Subject("dog", views=tuple(range(1, views + 1))),))


def batches_of(rows, **options):
    return BucketBatches(rows, side=64, reference_side=32, batch_size=4, seed=0, curriculum=Curriculum(), steps=20,
                         **options)


@pytest.fixture(scope="module")
def many():
    """Rows of every kind."""
    group = Row("dog/1", tuple(stored(noise(30 + 9 * i, 40, i)) for i in range(4)), ("a dog", "the dog"),
                (Subject("dog", views=(0, 1, 2, 3)),), targets=4)
    two = Row("line 9", (stored(noise(60, 40)), stored(noise(20, 20, 1))), ("a dog and a red car",),
              (Subject("dog", views=(1,)), Subject("red car", mask=MaskPicture(stored(mask_of(60, 40, 5, 5, 20, 30))))))
    return Rows(*(row_of_views(number, 1 + number % 3) for number in range(7)), group, two)


def test_only_the_pictures_that_are_used_are_decoded(monkeypatch):
    decoded = []

    def load(content):
        decoded.append(len(content))
        return load_rgb(content)

    monkeypatch.setattr(examples_module, "load_rgb", load)
    sizes = []
    for views in (1, 8):
        decoded.clear()
        batches = batches_of(Rows(*(row_of_views(number, views) for number in range(4))))
        batches[0]
        assert len(decoded) == 2 * 4, "the target and one view"
        sizes.append(sum(decoded))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_what_is_shown_is_what_can_be_shown(many):
    """A view is never its own target; each subject, each caption and each reference has its turn."""
    batches, seen = batches_of(many), {7: set(), 8: set()}
    for step in range(300):
        chosen = batches.chosen(step)
        for part in range(4):
            shape, row, target, choice, caption = batches.choose(step, part)
            assert (shape, row, target) == (chosen.shape, chosen.rows[part], chosen.targets[part])
            subject, reference = many.index.choice[many.index.choices[row] + choice]
            assert reference != target
            if row in seen:
                seen[row].add((subject, reference, caption) if row == 8 else (target, reference, caption))
    assert seen[8] == {(0, 1, 0), (1, CUT_OUT, 0), (1, PLACED_ANEW, 0)}
    assert len(seen[7]) == 4 * 3 * 2
    assert batches.epoch(9) == pytest.approx(4)
    wide = BucketBatches(Rows(Row("1", (stored(noise(200, 100)),), ("a dog",), (Subject("dog", box=(0, 0, 9, 9)),))),
                         side=256, reference_side=16, batch_size=2, seed=0, curriculum=Curriculum(), steps=2)
    assert wide.shapes == [wide[0]["target"].shape[1:3]] == [(192, 320)]


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_every_number_of_workers_gives_the_same_batches_in_order(many, workers):
    batches = batches_of(many)
    expected = [batches[step] for step in range(9)]
    threads = threading.active_count()
    with Prefetched(batches, 9, workers=workers, prefetch=2) as ahead:
        for step in (2, 3, 3, 4, 0, 5, 8, 7, 9):  # a resumed run, a step again, earlier, later, the last, past the end
            equal(ahead.batch(step), batches[step] if step == 9 else expected[step])
    time.sleep(0.1)
    assert threading.active_count() == threads, "no thread is left"


def test_a_part_of_the_examples_is_that_of_the_whole(many):
    whole = batches_of(many)
    part = batches_of(many, examples=np.array([1, 3]))
    with Prefetched(part, 20, workers=2, prefetch=1) as ahead:
        for step in range(4):
            equal(ahead.batch(step), {name: np.asarray(value)[[1, 3]] for name, value in whole[step].items()})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_the_same_sentence_from_a_worker(workers):
    rows = Rows(*(row_of_views(number, 1) for number in range(4)))
    damaged = read_record(rows.contents[2])
    damaged.pictures[1] = b"\x89PNG but not really"
    rows.record = lambda row: damaged if row == 2 else read_record(rows.contents[row])
    with Prefetched(batches_of(rows), 20, workers=workers, prefetch=2) as ahead, pytest.raises(ValueError) as caught:
        for step in range(4):
            ahead.batch(step)
    assert str(caught.value) == (
        "The image 1 of the row 'line 2' in the dataset cannot be read (Pillow finds no picture in it); give an "
        "undamaged PNG or JPEG file of it.")


def test_workers_leave_the_filters_of_warnings_alone(many):
    with warnings.catch_warnings():
        with Prefetched(batches_of(many), 20, workers=4, prefetch=2) as ahead:
            ahead.batch(0)
            before = list(warnings.filters)
            for step in range(1, 6):
                ahead.batch(step)
            assert warnings.filters == before
        with pytest.warns(UserWarning, match="still shown"):
            warnings.warn("still shown", stacklevel=1)


ENDLESS = """
import sys, time
from realcustom_jax.data.reading import Prefetched

class Slow:
    parts = 4
    def read(self, step, part):
        time.sleep(0.02)
        return step
    def join(self, parts):
        return parts[0]

with Prefetched(Slow(), 10**6, workers=4, prefetch=4) as ahead:
    for step in range(10**6):
        ahead.batch(step)
        if step == 3:
            print("reading", flush=True)
            if sys.argv[1] == "exception":
                raise ValueError("as the training's own")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("exception", 1), (signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_nothing_hangs_and_nothing_is_said_when_reading_ends(end, code):
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(end)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout.readline() == "reading\n"
    if end != "exception":
        process.send_signal(end)
    _, errors = process.communicate(timeout=20)
    last = {"exception": "ValueError: as the training's own", signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: ""}
    assert process.returncode in (code, -signal.SIGINT) and errors.strip().rpartition("\n")[2] == last[end]


def test_cutouts_show_the_subject_and_only_the_changed_ones_lose_the_background():
    picture = Image.new("RGB", (100, 80), "blue")
    picture.paste("red", (5, 20, 45, 60))
    mask = mask_of(100, 80, 5, 20, 45, 60) > 0
    plain = np.asarray(cut_out_subject(picture, mask))
    assert plain.shape[0] == plain.shape[1] and (plain == [255, 0, 0]).all(-1).mean() > 0.6
    assert (plain == [0, 0, 255]).all(-1).any()
    changed = [np.asarray(recontextualised(picture, mask, np.random.default_rng(i), 64)) for i in range(4)]
    for view in changed:
        assert view.shape == (64, 64, 3) and (view == [255, 0, 0]).all(-1).sum() > 100
        assert not (view == [0, 0, 255]).all(-1).any()
    assert len({view.tobytes() for view in changed}) == 4
