"""The written dataset is what was painted, and its batches come in a reproducible, resumable order."""

import subprocess
import sys

import numpy as np
import pytest

from realcustom_jax.data.loader import Split, batches, load_arrays, rows_without
from realcustom_jax.data.sprites import builder
from realcustom_jax.data.sprites.pairs import KINDS, paint_example
from realcustom_jax.data.sprites.world import HELD_OUT_NOUNS, NOUNS, SCENES

COUNTS = {"num_train": 30, "num_test": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return builder.write(tmp_path_factory.mktemp("data"), **COUNTS, seed=4)


@pytest.fixture(scope="module")
def arrays(folder):
    return load_arrays(folder, "train")


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[field], b[field]) for field in a)


def _assert_row_is_painted(row, split, index):
    painted = paint_example(seed=4, split=split, index=index)
    painted["scene"] = SCENES.index(painted["scene"])
    painted["kind"] = [KINDS.index(kind) for kind in painted["kind"]]
    assert row.keys() == painted.keys()
    for field, value in painted.items():
        assert np.array_equal(row[field], value), field


@pytest.mark.parametrize(("split", "count"), [("train", 30), ("test", 6)])
def test_rows_are_what_was_painted(folder, split, count):
    rows = Split(folder, split)
    assert len(rows) == count
    for index in (0, 3, count - 1):
        _assert_row_is_painted(rows[index], split, index)


def test_arrays_are_the_rows(folder, arrays):
    assert arrays["target"].shape == (30, 64, 64, 3) and arrays["references"].shape == (30, 4, 64, 64, 3)
    assert arrays["masks"].shape == (30, 2, 64, 64) and arrays["masks"].dtype == bool
    assert _same({field: column[11] for field, column in arrays.items()}, Split(folder, "train")[11])
    some = load_arrays(folder, "train", fields=["nouns", "caption"])
    assert set(some) == {"nouns", "caption"}
    assert np.array_equal(some["caption"], arrays["caption"])


@pytest.mark.slow
def test_writing_and_reading_need_no_tensorflow(tmp_path):
    code = f"""
import sys
from realcustom_jax.data import loader
from realcustom_jax.data.sprites import builder
folder = builder.write({str(tmp_path)!r}, num_train=2, num_test=1, seed=0)
loader.batches(loader.Split(folder, "train"), batch_size=2, seed=0)[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_finished_dataset_is_reused(folder, monkeypatch):
    monkeypatch.setattr(builder, "paint_example", lambda **_: pytest.fail("painted again"))
    assert builder.write(folder.parents[2], **COUNTS, seed=4) == folder


@pytest.mark.parametrize("damage", ["no info", "no shard", "cut shard", "temporary folder only"])
def test_a_half_written_dataset_is_rebuilt(tmp_path, damage):
    folder = builder.write(tmp_path, num_train=3, num_test=2, seed=4)
    shard = next(folder.glob("*train.array_record*"))
    if damage == "no info":
        (folder / "dataset_info.json").unlink()
    elif damage == "no shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        folder.rename(folder.with_name("incomplete.XYZ_1.0.0"))
    assert builder.write(tmp_path, num_train=3, num_test=2, seed=4) == folder
    rows = Split(folder, "train")
    for index in range(3):
        _assert_row_is_painted(rows[index], "train", index)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_other_numbers_are_another_dataset(folder):
    other = builder.write(folder.parents[2], num_train=2, num_test=1, seed=4)
    assert other != folder and len(Split(other, "train")) == 2 and len(Split(folder, "train")) == 30


@pytest.mark.slow
def test_several_processes_write_the_same_rows(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(builder, "_ROWS_WORTH_A_PROCESS", 15)
    monkeypatch.setattr(builder.os, "cpu_count", lambda: 2)
    folder = builder.write(tmp_path, **COUNTS, seed=4)
    assert _same(load_arrays(folder, "train"), arrays)


def test_batch_order_follows_the_seed_alone(folder, arrays):
    first = batches(arrays, batch_size=8, seed=1)
    again = batches(Split(folder, "train"), batch_size=8, seed=1)
    other = batches(arrays, batch_size=8, seed=2)
    for step in (0, 5, 3):
        assert _same(first[step], again[step])
    assert not np.array_equal(first[0]["caption"], other[0]["caption"])


def test_a_run_resumes_at_any_step(arrays):
    whole = batches(arrays, batch_size=8, seed=1)
    iterator = iter(whole)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    fresh = iter(batches(arrays, batch_size=8, seed=1))
    fresh.set_state(state)
    assert _same(next(fresh), whole[3])


def test_an_epoch_serves_every_row_once_and_epochs_differ():
    rows = {"index": np.arange(30)}
    epochs = batches(rows, batch_size=10, seed=0)
    order = np.concatenate([epochs[step]["index"] for step in range(6)]).reshape(2, 30)
    assert np.array_equal(np.sort(order), np.tile(np.arange(30), (2, 1)))
    assert not np.array_equal(order[0], order[1])


def test_held_out_nouns_stay_out_of_filtered_batches(arrays):
    held_out = [NOUNS.index(noun) for noun in HELD_OUT_NOUNS]
    rows = rows_without(arrays["nouns"], held_out)
    assert 0 < len(rows) < 30
    served = batches(arrays, batch_size=len(rows), seed=0, rows=rows)[0]
    assert not np.isin(served["nouns"], held_out).any()
    assert set(served["words"].ravel()).isdisjoint(HELD_OUT_NOUNS)
    assert sorted(served["caption"]) == sorted(arrays["caption"][rows])


def test_mistakes_are_named(folder, arrays, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished dataset"):
        Split(tmp_path, "train")
    with pytest.raises(ValueError, match="validation.*train"):
        Split(folder, "validation")
    with pytest.raises(ValueError, match="mask'.*masks"):
        Split(folder, "train", fields=["mask"])
    with pytest.raises(ValueError, match="no rows"):
        batches(arrays, batch_size=8, seed=0, rows=np.array([], int))
    with pytest.raises(ValueError, match="num_test"):
        builder.write(tmp_path, num_train=1, num_test=0)
