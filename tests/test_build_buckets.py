"""Datasets in buckets: built there, read from the copies that a host keeps, mended shard by shard."""

import time

import pytest
from fake_source import LINES, FakeSource, wheres

from realcustom_jax.data.__main__ import main
from realcustom_jax.data.build import build
from realcustom_jax.data.dataset import Dataset, read_about
from realcustom_jax.paths import as_path, file_system, listing


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_dataset_in_a_bucket(scheme, new_bucket, tmp_path, capsys):
    bucket = new_bucket(scheme)
    folder = as_path(f"{bucket}/made")
    files = file_system(folder)
    assert read_about(folder) is None
    with pytest.raises(FileNotFoundError, match="no dataset"):
        Dataset(folder)
    with pytest.raises(ValueError, match="1 broken row.*line 3"):
        build(FakeSource(broken=(2,)), folder, workers=1)

    def written():
        names = [path.name for path in listing(folder) if "array_record" in path.name]
        return {name: str(files.info(f"{folder}/{name}").get("etag") or files.info(f"{folder}/{name}").get("ETag"))
                + str(files.modified(f"{folder}/{name}")) for name in names}

    before = written()
    assert len(before) == 4
    dataset = build(FakeSource(broken=(2,)), folder, workers=2, max_broken=1)
    assert wheres(dataset) == LINES[:2] + LINES[3:] and written() == before
    time.sleep(1.1)  # S3 tells times in whole seconds
    files.rm(f"{folder}/{sorted(before)[1]}")
    with pytest.raises(FileNotFoundError, match="1 of the 4 shards"):
        Dataset(folder)
    files.pipe_file(f"{folder}/{sorted(before)[2]}", b"something else")
    assert wheres(build(FakeSource(broken=(2,)), folder, workers=1, max_broken=1)) == LINES[:2] + LINES[3:]
    after = written()
    assert {name for name in before if after[name] != before[name]} == set(sorted(before)[1:3])
    with pytest.raises(ValueError, match="other content"):
        build(FakeSource(name="another"), folder, workers=1)
    assert main(["show", str(folder)]) == 0
    assert "7 rows in 4 shards" in capsys.readouterr().out
