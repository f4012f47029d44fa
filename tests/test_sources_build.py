"""Every kind of source is built, and what was built is a source again."""

import pytest
from sources import KINDS, every_kind, opened, rows_of

from realcustom_jax.data.sources import open_source

build = pytest.importorskip("realcustom_jax.data.build")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return every_kind(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_built_dataset_holds_the_rows_of_its_source(kinds, tmp_path, kind):
    path, options = kinds[kind]
    source = open_source(path, **options)
    built = build.build(source, tmp_path / "out", workers=1)
    (expected, _), (found, broken) = rows_of(source), opened(tmp_path / "out")
    assert not broken and len(built) == len(found) == 6
    for one, other in zip(expected, found, strict=True):
        assert (one.pictures, one.captions, one.words, one.masks, one.identity, one.targets, one.where) == (
            other.pictures, other.captions, other.words, other.masks, other.identity, other.targets, other.where)
