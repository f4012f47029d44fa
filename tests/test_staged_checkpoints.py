"""Checkpoints of one process in a bucket: whole ones are found again, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax import paths
from realcustom_jax.training import staged_checkpoints
from realcustom_jax.training.staged_checkpoints import StagedCheckpoints, open_checkpoints


@pytest.fixture
def folder(memory_bucket, monkeypatch):
    monkeypatch.setattr(staged_checkpoints, "file_system", paths.file_system)
    return memory_bucket / "checkpoints"


def state(value: float):
    return {"kernel": jnp.full((8, 8), value, jnp.float32), "step": jnp.asarray(int(value))}


WANTED = jax.eval_shape(lambda: state(0.0))
MARK = "commit_success.txt"


def wanted():
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), WANTED)


def saved(folder, *steps, **options):
    with open_checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def steps_in(folder):
    return [int(path.name) for path in paths.listing(folder, "[0-9]*")]


def restored(folder, **options):
    with open_checkpoints(folder, **options) as checkpoints:
        found = checkpoints.restore(wanted())
    return found and int(found["step"])


def test_the_newest_stay_and_are_found_again_without_a_folder_of_this_host(folder):
    saved(folder, 1, 2, 3, keep=2)
    assert steps_in(folder) == [2, 3]
    assert not list((paths.cache_folder() / "staging").iterdir())
    with open_checkpoints(folder) as checkpoints:
        assert isinstance(checkpoints, StagedCheckpoints)
        np.testing.assert_array_equal(checkpoints.restore(wanted())["kernel"], np.full((8, 8), 3.0))
        checkpoints.save(4, state(4))
    assert steps_in(folder) == [3, 4]


def test_those_that_are_kept_for_good_stay_where_they_are(folder):
    saved(folder, 2, 3, 4, keep=1, keep_every=2)
    assert steps_in(folder) == [2, 4]
    saved(folder, 5, 6, keep=1, keep_every=2)
    assert steps_in(folder) == [2, 4, 6]


def test_an_interrupted_copy_is_no_checkpoint_and_is_written_anew(folder):
    saved(folder, 1, 2)
    paths.file_system(folder).rm(f"{folder}/2/{MARK}")
    with pytest.warns(UserWarning, match=r"checkpoints/2 is not whole"):
        assert restored(folder) == 1
    with pytest.warns(UserWarning):
        saved(folder, 2)
    assert restored(folder) == 2


def test_a_kill_while_the_copy_is_made_leaves_the_one_before(folder, monkeypatch):
    saved(folder, 1)
    real = staged_checkpoints.write_file
    monkeypatch.setattr(staged_checkpoints, "write_file", lambda *rest: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(OSError, match="no network"):
        saved(folder, 2)
    monkeypatch.setattr(staged_checkpoints, "write_file", real)
    with pytest.warns(UserWarning, match="is not whole"):
        assert restored(folder) == 1


def test_a_damaged_one_is_set_aside_in_the_bucket_too(folder):
    saved(folder, 1, 2)
    files = paths.file_system(folder)
    for name in files.find(f"{folder}/2"):
        if name.endswith("manifest.ocdbt"):
            files.pipe_file(f"s3://{name}", b"not a manifest")
    with pytest.warns(UserWarning, match="damaged-2"):
        assert restored(folder) == 1
    assert [path.name for path in paths.listing(folder)] == ["1", "damaged-2", "run.json"]


def test_what_the_run_is_about_lies_beside_them(folder):
    saved(folder, 1)
    noted = paths.file_system(folder).cat_file(f"{folder}/run.json")
    assert restored(folder) == 1
    assert paths.file_system(folder).cat_file(f"{folder}/run.json") == noted


def test_overwriting_leaves_nothing_of_the_run_before(folder):
    saved(folder, 7, 8)
    saved(folder, 1, on_existing="overwrite")
    assert steps_in(folder) == [1]


def test_several_processes_are_told_where_they_can_write(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes cannot write checkpoints to s3://.*; give a workdir on a disk"):
        open_checkpoints(folder)
