"""Features that are computed once: shared out over processes and devices, and kept where a run was killed."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.batches import Chosen
from realcustom_jax.data.build import build
from realcustom_jax.data.sources import open_source
from realcustom_jax.training.published import features, precompute

import fresh_process
from mini_bundle import write_mini_bundle

ROWS = 11
COMPUTE = """
import sys
import jax
from pathlib import Path
if len(sys.argv) > 5:
    jax.distributed.initialize(sys.argv[4], num_processes=2, process_id=int(sys.argv[5]))
from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.dataset import Dataset
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.published import precompute
from realcustom_jax.training.published.encoders import Encoders
precompute._AT_ONCE, precompute._ROWS = 2, 4
model, data, parent = map(Path, sys.argv[1:4])
batches = BucketBatches(Dataset(data), side=64, reference_side=32, batch_size=1, seed=0, curriculum=Curriculum(),
                        steps=1)
print(precompute.compute_features(Encoders(Pipeline.load(model)), "rows", batches, parent).folder)
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """(model, dataset, folder of features that one process computed on one device)."""
    workdir, rng = tmp_path_factory.mktemp("computed"), np.random.default_rng(0)
    path = workdir / "pictures"
    path.mkdir()
    lines = []
    for i in range(ROWS):
        size = ((96, 96), (200, 100))[i % 3 == 0]
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path / f"{i}.png")
        lines.append({"target": f"{i}.png", "caption": f"a {'dog cat'.split()[i % 2]} on the beach",
                      "word": "dog cat".split()[i % 2], "reference": f"{i}.png"} | (
                          {"box": [10, 10, 80, 80]} if i % 4 else {}))
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = write_mini_bundle(workdir / "model", "sdxl")
    data = build(open_source(path), workdir / "data", workers=1).folder
    fresh_process.run(COMPUTE, model, data, workdir / "one")
    return model, data, workdir / "one"


def files(parent: Path) -> dict[str, bytes]:
    return {str(file.relative_to(parent)): file.read_bytes() for file in sorted(parent.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_four_devices_compute_the_bytes_of_one(computed, tmp_path):
    model, data, one = computed
    assert len([name for name in files(one) if name.endswith("features.npy")]) == 3  # 7 and 4 rows, 4 a part
    fresh_process.run(COMPUTE, model, data, tmp_path, devices=4)
    assert files(tmp_path) == files(one)


@pytest.mark.slow
def test_two_processes_share_the_parts(computed, tmp_path):
    """Of two devices each; what both write together are the bytes of one process."""
    model, data, one = computed
    address = f"127.0.0.1:{fresh_process.free_port()}"
    both = [fresh_process.start(COMPUTE, model, data, tmp_path, address, i, devices=2, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE) for i in range(2)]
    said = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert files(tmp_path) == files(one)
    assert "process 1 of 2" in said[0][1] and "row/s" in said[0][1] and "computing" not in said[1][1]


@pytest.mark.slow
def test_a_kill_keeps_the_parts_that_are_finished(computed, tmp_path):
    """Stopped in its second part, a run computes that and the next, and not the first again."""
    model, data, one = computed
    killed = COMPUTE.replace("print(", """
import os, signal
whole, begun = precompute._fill_part, []
def fill(*args):
    begun.append(1)
    if len(begun) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(*args)
precompute._fill_part = fill
print(""", 1)
    process = fresh_process.start(killed, model, data, tmp_path)
    assert process.wait(timeout=300) == -9
    [written] = tmp_path.iterdir()
    assert sorted(path.name for path in written.glob("part-*")) == ["part-000000", "part-000001.partial"]
    time = (written / "part-000000").stat().st_mtime_ns
    fresh_process.run(COMPUTE, model, data, tmp_path)
    assert files(tmp_path) == files(one) and (written / "part-000000").stat().st_mtime_ns == time


def test_what_a_device_computes_is_padded_and_put_back_in_order(monkeypatch):
    """Groups of 3, 1 and 4 items in chunks of 2, for three devices, of which this process has one."""
    devices = object.__new__(precompute._Devices)
    seen = []

    def double(items):
        seen.append(np.asarray(items).tolist())
        return {"x": np.asarray(items) * 2.0}

    devices.count, devices._divided, devices._functions = 3, None, {"texts": (double, 2)}
    groups = [[np.float32(x) for x in group] for group in ((1, 2, 3), (4,), (5, 6, 7, 8))]
    made = devices("texts", groups)
    assert made["x"].tolist() == [2, 4, 6, 8, 10, 12, 14, 16] and made["x"].dtype == np.float16
    assert seen == [[1, 2, 3, 3, 4, 4], [5, 6, 7, 8, 5, 6]]


def test_a_feature_too_large_for_float16_is_named():
    with pytest.raises(ValueError, match="The texts of some rows do not fit float16"):
        precompute._half("texts", np.float32([1e6]))


def test_a_damaged_file_of_features_is_named_with_what_to_do(tmp_path):
    """Which were computed by an earlier run."""
    one, part = np.zeros(1, int), tmp_path / "part-000000"
    part.mkdir()
    np.savez(tmp_path / features.SHARED, index=np.zeros((1, 4), np.int64), lengths=np.array([2]),
             **{"no_image": np.zeros((2, 3)), "empty-text": np.zeros((5, 3))})
    for name, shape in (("targets", (1, 2, 8, 8, 4)), ("text", (1, 5, 3)), ("features", (1, 2, 3))):
        np.save(part / f"{name}.npy", np.ones(shape, np.float16))
    chosen = Chosen(0, one, one, one, one)
    assert features.StoredFeatures(tmp_path).batch(chosen)["text"].shape == (1, 5, 3)
    for file, damage in ((part / "text.npy", lambda x: x[:-8]), (part / "targets.npy", lambda x: b""),
                         (tmp_path / features.SHARED, lambda x: x[:200])):
        content = file.read_bytes()
        file.write_bytes(damage(content))
        features._opened.cache_clear()
        with pytest.raises(ValueError, match=rf"^{file} is damaged \(.*\): delete the folder {file.parent}, and its"):
            features.StoredFeatures(tmp_path).batch(chosen)
        file.write_bytes(content)
