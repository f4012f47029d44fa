"""Filters and the held-out split, on an index alone."""

import numpy as np
import pytest

from realcustom_jax.data.index import Index
from realcustom_jax.data.records import Entry
from realcustom_jax.data.selection import is_held_out, select

ROWS = Index.of([
    Entry([(100, 100), (10, 10)], 1, 1, [(0, 1)], 0, 0.5),
    Entry([(200, 50)], 1, 1, [(0, -1)], 2**63, np.nan),
    Entry([(100, 120), (100, 90), (30, 100)], 2, 1, [(0, 0), (0, 1)], 2**64 - 1, 0.9),
    Entry([(100, 120), (50, 60)], 2, 1, [(0, 0), (0, 1)], 2**62, 0.1),
])


@pytest.mark.parametrize("filters, rows", [
    ({}, [0, 1, 2, 3]),
    ({"min_side": 60}, [0, 2]),  # of what may be a target, not of references
    ({"min_side": 90}, [0, 2]), ({"min_side": 91}, [0]),
    ({"max_aspect": 1.0}, [0]), ({"max_aspect": 1.2}, [0, 2, 3]), ({"max_aspect": 4.0}, [0, 1, 2, 3]),
    ({"min_score": 0.5}, [0, 2]), ({"min_score": -5.0}, [0, 2, 3]),
    ({"held_out": 0.3}, [1, 2]), ({"held_out": 0.3, "split": "held_out"}, [0, 3]),
    ({"held_out": 0.51, "split": "held_out"}, [0, 1, 3]),
    ({"held_out": 0.3, "min_score": 0.2, "max_aspect": 2.0, "min_side": 10}, [2]),
])
def test_filters(filters, rows):
    found = select(ROWS, **filters)
    assert found.tolist() == rows and found.dtype == np.int64


@pytest.mark.parametrize("filters, words", [
    ({"min_side": 101}, "4 rows, 0 after min_side=101"),
    ({"min_score": 1.0, "max_aspect": 2}, "3 after max_aspect=2, 0 after min_score=1"),
    ({"split": "held_out"}, "0 after held_out=0 and the split held_out"), ({"split": "test"}, "train, held_out"),
    ({"min_side": -1}, "min_side is -1"), ({"max_aspect": 0.5}, "max_aspect is 0.5"),
    ({"max_aspect": float("nan")}, "max_aspect is nan"), ({"min_score": float("nan")}, "min_score is nan"),
    ({"held_out": 1.0}, "held_out is 1.0"), ({"held_out": float("nan")}, "held_out is nan"),
])
def test_filters_that_leave_nothing_or_cannot_be_used(filters, words):
    with pytest.raises(ValueError, match=words):
        select(ROWS, **filters)


def test_an_empty_index_has_no_rows():
    with pytest.raises(ValueError, match="No row is left to be shown: 0 rows"):
        select(Index.of([]))


def test_subjects_are_held_out_whole_about_as_many_as_asked_for_and_more_only_add():
    identities = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)
    rows = Index.of([Entry([(9, 9)], 1, 1, [(0, -1)], int(identities[i % 2000]), np.nan) for i in range(4000)])
    held = is_held_out(rows, 0.1)
    assert 0.08 < held.mean() < 0.12
    np.testing.assert_array_equal(held[:2000], held[2000:])
    assert (is_held_out(rows, 0.2) >= held).all() and not is_held_out(rows, 0.0).any()
    assert not set(select(rows, held_out=0.1)) & set(select(rows, held_out=0.1, split="held_out"))
