"""Checkpoints that cannot lie: damage of every file, numbers that are not finite, other layouts, other runs."""

import dataclasses
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from realcustom_jax.training import checksums
from realcustom_jax.training.checkpoints import Checkpoints
from realcustom_jax.training.identity import RunIdentity
from realcustom_jax.training.loop import TrainSettings

from fresh_process import run


def a_state(step):
    rng = np.random.default_rng(step)
    return {"step": jnp.int32(step), "params": {
        "kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32), "zeros": jnp.zeros((40, 40)),
        "half": jnp.asarray(rng.normal(size=17), jnp.bfloat16)}}


def wanted():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), a_state(0))


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, a_state(step))
    return folder


def flipped(share):
    """Changes 16 bytes of a file, at this share of its length; all of a shorter one."""
    def damage(path):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        start = int(share * max(len(content) - 16, 0))
        content[start:start + 16] ^= np.random.default_rng(int(share * 1000)).integers(
            1, 256, len(content[start:start + 16]), dtype=np.uint8)
        path.write_bytes(content.tobytes())
    return damage


def halved(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


DAMAGES = {"of some": flipped(0.5), "flipped in the middle": flipped(0.5), "deleted": lambda path: path.unlink(),
           "halved": halved, **{f"flipped at {at}": flipped(at) for at in (0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 1)}}


@pytest.mark.parametrize("damage", [
    pytest.param(name, marks=() if name == "of some" else pytest.mark.slow) for name in DAMAGES])
def test_damage_of_any_file_is_harmless_or_its_checkpoint_is_set_aside(two, tmp_path, damage, capfd):
    """Never other numbers than those that were saved, and never an older step without a word."""
    files = [path.relative_to(two) for path in sorted((two / "2").rglob("*")) if path.is_file()]
    assert len(files) >= 10
    if damage == "of some":
        files = [max(files, key=lambda file: (two / file).stat().st_size), Path("2/checksums/metadata"),
                 Path("2/default/_METADATA"), Path("2/default/manifest.ocdbt"), Path("2/commit_success.txt")]
    aside = 0
    for number, file in enumerate(files):
        folder = shutil.copytree(two, tmp_path / str(number))
        DAMAGES[damage](folder / file)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with Checkpoints(folder) as checkpoints:
                found = checkpoints.restore(wanted())
        assert not capfd.readouterr().err
        said = [str(warning.message) for warning in warned if "kept as damaged-2, and the one before" in str(
            warning.message)]
        assert bits(found) == bits(a_state(1 if said else 2)), file
        assert (folder / "damaged-2").is_dir() == bool(said) and len(said) < 2
        aside += bool(said)
    assert aside


def test_what_no_file_format_notices_is_seen(two, tmp_path, monkeypatch, capsys):
    """As of a bit that flipped in memory, between the sum and the disk."""
    save = ocp.CheckpointManager.save

    def damaged(self, step, *, args, **options):
        state = args["default"].item
        kernel = np.asarray(state["params"]["kernel"]).copy()
        kernel.view(np.uint32)[63, 31] ^= 1
        args["default"].item = state | {"params": state["params"] | {"kernel": jnp.asarray(kernel)}}
        return save(self, step, args=args, **options)

    folder = shutil.copytree(two, tmp_path / "c")
    with monkeypatch.context() as patched, Checkpoints(folder) as checkpoints:
        patched.setattr(ocp.CheckpointManager, "save", damaged)
        checkpoints.save(3, a_state(3))
    with Checkpoints(folder) as checkpoints, pytest.warns(
            UserWarning, match="/3 is damaged: params/kernel is not what was saved; it is kept as damaged-3"):
        assert bits(checkpoints.restore(wanted())) == bits(a_state(2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_a_checksum_sees_every_element_and_every_place(dtype):
    values = np.random.default_rng(0).integers(0, 2, (6, 5, 4)).astype(jnp.dtype(dtype))
    values[0, 0, 0] = 0
    sums = {checksums.record({"x": values})["x"][2]}
    for place in np.ndindex(values.shape):
        changed = values.copy()
        changed[place] = 1 - changed[place]
        sums.add(checksums.record({"x": changed})["x"][2])
    assert len(sums) == 1 + values.size
    moved = np.roll(values, 1)
    assert checksums.record({"x": moved})["x"][2] not in sums
    assert all(len(text) == 16 for text in sums)


def test_a_checksum_tells_zeros_that_a_comparison_does_not():
    found = checksums.record({"x": np.float32([0, 1]), "y": np.float32([-0.0, 1]), "none": np.zeros((0, 3), "f4")})
    assert found["x"][2] != found["y"][2] and found["none"] == ("float32", (0, 3), "0" * 16, True)


def test_what_is_not_finite_is_found():
    found = checksums.record({"a": np.float32([1, np.inf]), "b": {"c": jnp.full(3, jnp.nan, jnp.bfloat16)},
                              "d": np.ones(2, np.float32), "e": np.int32([2**31 - 1])})
    assert checksums.not_finite(found) == ["a", "b/c"]


@pytest.mark.slow
def test_a_checksum_is_the_same_on_every_mesh():
    printed = run("""
import itertools, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from realcustom_jax.training import checksums
x = np.random.default_rng(0).normal(size=(8, 12, 4)).astype("f4")
found = {checksums.record({"x": x})["x"]}
for shape in ((4, 1), (2, 2), (1, 4)):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("a", "b"))
    for parts in (P(), P("a", "b"), P(None, ("a", "b")), P("b", None, "a")):
        found.add(checksums.record({"x": jax.device_put(x, NamedSharding(mesh, parts))})["x"])
print(found)
""", devices=4)
    assert printed.strip() == str({checksums.record({"x": np.random.default_rng(0).normal(size=(8, 12, 4)).astype(
        "f4")})["x"]})


def test_a_state_that_is_not_finite_is_not_saved(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "c")
    broken = a_state(3)
    broken["params"]["half"] = broken["params"]["half"].at[3].set(jnp.nan)
    with Checkpoints(folder) as checkpoints, pytest.raises(
            FloatingPointError, match="after step 3, params/half is not finite: .* the checkpoint of step 2 is intact"):
        checkpoints.save(3, broken)
    assert not (folder / "3").exists()


def test_a_checkpoint_of_a_run_that_saved_nan_is_set_aside(two, tmp_path, capsys):
    """As versions before checksums did."""
    folder = shutil.copytree(two, tmp_path / "c")
    broken = a_state(3)
    broken["params"]["half"] = broken["params"]["half"].at[3].set(jnp.inf)
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(broken))
        manager.wait_until_finished()
    with Checkpoints(folder) as checkpoints, pytest.warns(
            UserWarning, match="/3 was saved by a run that had failed: params/half is not finite; it is kept as"):
        assert bits(checkpoints.restore(wanted())) == bits(a_state(2))


def test_a_checkpoint_of_before_checksums_is_read_and_this_is_said(tmp_path, capsys):
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        manager.save(7, args=ocp.args.StandardSave(a_state(7)))
        manager.wait_until_finished()
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert bits(checkpoints.restore(wanted())) == bits(a_state(7))
        checkpoints.save(8, a_state(8))
    assert capsys.readouterr().err.splitlines() == [
        "The checkpoint of step 7 has no checksums, as an older version wrote it: it is not verified."]
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert bits(checkpoints.restore(wanted())) == bits(a_state(8))
    assert capsys.readouterr().err == ""


SETTINGS = TrainSettings(steps=12, batch_size=4)


def note_a_run(folder, run, settings=SETTINGS):
    with Checkpoints(folder, run=RunIdentity.of(run, settings)) as checkpoints:
        checkpoints.save(1, a_state(1))


def go_on(folder, run, settings=SETTINGS):
    with Checkpoints(folder, run=RunIdentity.of(run, settings)) as checkpoints:
        return checkpoints.restore(wanted())


@pytest.mark.parametrize("change, words", [
    ({"seed": 1}, "seed is 0 there and 1 here"), ({"batch_size": 8}, "batch_size is 4 there and 8 here"),
    ({"optimizer": "muon"}, "optimizer is 'adamw' there and 'muon' here")])
def test_what_cannot_change_while_a_run_goes_on(tmp_path, change, words):
    note_a_run(tmp_path, {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"belongs to another run: {words}"):
        go_on(tmp_path, {}, dataclasses.replace(SETTINGS, **change))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_may_change_is_said_noted_and_taken(tmp_path, capsys):
    note_a_run(tmp_path, {"data": "toys"})
    changed = dataclasses.replace(SETTINGS, learning_rate=2e-5, steps=20, save_every=5)
    assert bits(go_on(tmp_path, {"data": "toys"}, changed)) == bits(a_state(1))
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "learning_rate: 0.001 -> 2e-05 from step 1 on", "save_every: 250 -> 5 from step 1 on",
        "steps: 12 -> 20 from step 1 on"]
    go_on(tmp_path, {"data": "toys"}, changed)
    assert capsys.readouterr().err == "", "said once"
    noted = json.loads((tmp_path / "run.json").read_text())
    assert noted["data"] == "toys" and noted["settings"]["learning_rate"] == 2e-5
    assert noted["changes"] == [
        {"step": 1, "steps": [12, 20], "learning_rate": [0.001, 2e-5], "save_every": [250, 5]}]


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"settings": 3}', '{"changes": {}}', "[" * 100_000, b"\xff\xfe"])
def test_a_damaged_note_is_one_sentence(tmp_path, content):
    note_a_run(tmp_path, {})
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="run.json, which says whose checkpoints these are, is damaged; delete it"):
        go_on(tmp_path, {})


def test_a_folder_in_the_place_of_the_note_is_one_sentence(tmp_path):
    note_a_run(tmp_path, {})
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ValueError, match="run.json.* is damaged; delete it"):
        go_on(tmp_path, {})


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with Checkpoints(tmp_path / "c"), pytest.raises(BlockingIOError, match="in use by another run"):
        Checkpoints(tmp_path / "c")
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(wanted()) is None


def test_overwriting_deletes_what_was_there(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "c")
    with Checkpoints(folder, on_existing="overwrite") as checkpoints:
        assert checkpoints.restore(wanted()) is None
    assert [path.name for path in folder.iterdir()] == ["run.json"]


FULL = """
import pathlib, sys
import jax.numpy as jnp
from realcustom_jax.training.checkpoints import Checkpoints
import numpy as np
state = lambda step: {"x": jnp.asarray(np.random.default_rng(step).normal(size=300_000), jnp.float32)}
try:
    with Checkpoints(pathlib.Path(sys.argv[1]) / "c", keep=9) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, state(step))
except OSError as error:
    print(error)
(pathlib.Path(sys.argv[1]) / "filling").unlink(missing_ok=True)
import shutil
with Checkpoints(pathlib.Path(sys.argv[1]) / "c", keep=9) as checkpoints:
    print(float(checkpoints.restore(state(0))["x"][0]) == float(state(max(checkpoints._written()))["x"][0]))
# Orbax removes beside other work what an earlier process has begun.
for path in pathlib.Path(sys.argv[1]).glob("c/*tmp*"):
    print("left over", path)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_what_was_whole(tmp_path):
    """A real one, of 4 MB, where this may be mounted."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        said = run(FULL, tmp_path).splitlines()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert re.search(r"is full: training stopped; the checkpoint of step \d is intact. Make room", said[0]), said
    assert said[1:] == ["True"]
