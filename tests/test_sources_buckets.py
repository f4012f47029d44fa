"""Every kind of source in a bucket gives what it gives on a disk."""

import pytest
from sources import every_kind, rows_of

from realcustom_jax.data.sources import open_source


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_sources_in_buckets_are_those_of_a_disk(scheme, new_bucket, tmp_path):
    kinds = every_kind(tmp_path / "local")
    bucket = new_bucket(scheme)
    import fsspec

    files = fsspec.filesystem(scheme)
    for file in (tmp_path / "local").rglob("*"):
        if file.is_file():
            files.pipe_file(f"{bucket}/in/{file.relative_to(tmp_path / 'local').as_posix()}", file.read_bytes())
    for kind, (path, options) in kinds.items():
        here, there = open_source(path, **options), open_source(f"{bucket}/in/{kind}", **options)
        (expected, _), (found, broken) = rows_of(here), rows_of(there)
        assert not broken and len(found) == 6, kind
        assert [row.pictures for row in found] == [row.pictures for row in expected]
        assert here.identity(tmp_path / f"{kind}-seen") == there.identity(tmp_path / f"{kind}-seen-there"), kind
    assert len(open_source(f"{bucket}/in/tars/train-{{000..001}}.tar").parts()) == 2
    assert len(open_source(f"{bucket}/in/parquet/*.parquet").parts()) == 3
    with pytest.raises(FileNotFoundError):
        open_source(f"{bucket}/in/nowhere").parts()
    files.pipe_file(f"{bucket}/in/tars/train-001.tar", b"changed")
    found, broken = rows_of(open_source(f"{bucket}/in/tars"))
    assert len(found) == 3 and len(broken) == 1 and broken[0].startswith("train-001.tar: is no plain tar")
