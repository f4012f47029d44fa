"""Whole runs in buckets, with emulators: trained, killed, resumed; as the same run on a disk, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.commands import sample
from realcustom_jax.data.sprites.world import Placement, paint, random_identity
from realcustom_jax.files import png, write_file
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.paths import as_path, cache_folder, listing
from realcustom_jax.pipeline import Pipeline

from fresh_process import start

ROOT = Path(__file__).parents[1]
STEPS = 6


def pictures(folder) -> None:
    """Two pictures of one teapot, with their manifest."""
    teapot, place = random_identity(np.random.default_rng(0), noun="teapot"), Placement(
        x=0.5, y=0.55, size=0.7, facing="left", pose=0.0)
    for name, scene in (("a", "beach"), ("b", "room")):
        write_file(folder / f"{name}.png", as_png(paint([(teapot, place)], scene, seed=1)[0]))
    rows = [{"target": "a.png", "caption": "a teapot on the beach", "word": "teapot", "reference": "b.png"},
            {"target": "b.png", "caption": "a teapot in the room", "word": "teapot", "reference": "a.png"}]
    write_file(folder / "manifest.jsonl", "\n".join(map(json.dumps, rows)).encode())


def as_png(picture: np.ndarray) -> bytes:
    return png(Image.fromarray(picture))


def training(workdir, folder, *, told=subprocess.PIPE, **options) -> subprocess.Popen:
    """Starts train.py on one device; `told`: where its standard error goes."""
    given = {"steps": STEPS, "batch_size": 2, "save_every": 2, "log_every": 1, "sample_every": 0} | options
    precomputed = given.pop("precomputed", False)
    return subprocess.Popen(
        [sys.executable, "train.py", "--config=configs/finetune_mini.py", f"--workdir={workdir}",
         f"--config.train.data.folder={folder}", f"--config.train.precomputed={precomputed}",
         *(f"--config.train.optimization.{name}={value}" for name, value in given.items())],
        cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, stderr=told, text=True)


def finished(run: subprocess.Popen) -> str:
    _, told = run.communicate(timeout=900)
    assert run.returncode == 0, told
    return told


def losses(workdir) -> list[tuple[int, float]]:
    lines = (as_path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on_disk")
    pictures(folder / "pictures")
    finished(training(folder / "run", folder / "pictures"))
    return folder


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request, new_bucket):
    return new_bucket(request.param)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_lain_on_a_disk(bucket, on_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = as_path(f"{bucket}/runs/teapot")
    pictures(as_path(f"{bucket}/pictures"))
    killed = training(workdir, f"{bucket}/pictures", told=subprocess.DEVNULL)
    while not (workdir / "checkpoints" / "2" / "commit_success.txt").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (workdir / "adapter").exists()
    finished(training(workdir, f"{bucket}/pictures", sample_every=STEPS))
    assert losses(workdir) == losses(on_disk / "run")
    assert [step for step, _ in losses(workdir)] == list(range(STEPS))
    steps = [path.name for path in listing(workdir / "checkpoints") if path.name.isdigit()]
    assert sorted(map(int, steps)) == [STEPS - 2, STEPS]
    assert [path.name for path in listing(workdir / "samples")] == [f"{STEPS:06d}.png"]
    assert listing(workdir / "tensorboard")

    here, there = (find_adapter(place).tensors for place in (on_disk / "run" / "adapter", f"{workdir}/adapter"))
    assert sorted(here) == sorted(there)
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])
    reference = f"{bucket}/pictures/a.png"
    pipeline = Pipeline.load("mini", f"{workdir}/adapter")
    made = pipeline(reference, "a teapot in the snow", "teapot", steps=2).images[0]
    expected = Pipeline.load("mini", on_disk / "run" / "adapter")(
        on_disk / "pictures" / "a.png", "a teapot in the snow", "teapot", steps=2).images[0]
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))

    # Finished, it only reads its checkpoint; another run's data is refused by name.
    write_file(as_path(f"{bucket}/pictures/b.png"), as_png(np.zeros((128, 128, 3), np.uint8)))
    other = training(workdir, f"{bucket}/pictures")
    _, told = other.communicate(timeout=900)
    sentence = [line for line in told.splitlines() if line.startswith("error: ")]
    assert other.returncode == 2 and "belongs to another run" in sentence[0] and len(sentence) == 1, told
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_features_that_are_computed_before_are_kept_in_the_bucket(bucket):
    if bucket.startswith("gs"):
        pytest.skip("nothing in it is another scheme's")
    pictures(as_path(f"{bucket}/pictures"))
    told = finished(training(f"{bucket}/run", f"{bucket}/pictures", steps=2, precomputed=True))
    assert "computing features" in told
    (folder,) = listing(as_path(f"{bucket}/run/features"))
    assert {"part-000000", "shared.npz"} <= {file.name for file in listing(folder)}
    assert {"features.npy", "targets.npy", "whole.txt"} <= {file.name for file in listing(folder / "part-000000")}
    told = finished(training(f"{bucket}/run", f"{bucket}/pictures", steps=3, precomputed=True))
    assert "computing features" not in told
    assert [step for step, _ in losses(f"{bucket}/run")] == [0, 1, 2]


@pytest.mark.slow
def test_a_model_and_pictures_are_read_from_a_bucket_and_results_written_there(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scheme = bucket.partition(":")[0]
    pictures(as_path(f"{bucket}/pictures"))
    bundled = ModelSource.open("mini").root
    for file in bundled.rglob("*.*"):
        write_file(as_path(f"{bucket}/models/mini") / file.relative_to(bundled).as_posix(), file.read_bytes())
    # What is no part of a model is not copied to this host.
    write_file(as_path(f"{bucket}/models/mini/unet/diffusion_pytorch_model.bin"), b"the same in another form")
    write_file(as_path(f"{bucket}/models/mini/onnx/model.onnx"), b"")
    assert sample.main([
        "--model", f"{bucket}/models/mini", "--image", f"{bucket}/pictures/a.png", "--prompt", "a teapot in space",
        "--target", "teapot", "--steps", "4", "--out", f"{bucket}/out"]) == 0
    assert [file.name for file in listing(as_path(f"{bucket}/out"))] == [
        "contact_sheet.png", "image_0.png", "mask_0.png"]
    copies = [path for path in cache_folder().rglob("*") if "mini" in str(path)]
    assert copies and not [path for path in copies if path.suffix in (".bin", ".onnx")]

    rows = [{"prompt": f"a teapot in the {scene}", "image": "a.png", "target": "teapot"}
            for scene in ("snow", "room")]
    write_file(as_path(f"{bucket}/pictures/rows.jsonl"), "\n".join(map(json.dumps, rows)).encode())
    batch = ["--batch", f"{bucket}/pictures/rows.jsonl", "--steps", "2", "--out", f"{bucket}/batch"]
    for said in ("2 made, 0 there already", "0 made, 2 there already"):
        assert sample.main(batch) == 0
        assert said in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=f"{bucket}/none does not exist"):
        Pipeline.load(f"{bucket}/none")
    assert sample.main(["--out", f"{scheme}://no-such-bucket/out"]) == 2
    assert f"there is no bucket {scheme}://no-such-bucket" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


WITHOUT = """
import sys
sys.modules[{package!r}] = None
sys.argv = ["realcustom-train", "--config={root}/configs/finetune_mini.py", "--workdir={workdir}"]
from realcustom_jax.commands.train import main
main()
"""


@pytest.mark.parametrize("workdir, package, told", [
    ("gs://bucket/run", "gcsfs", "[gcs]"),
    *(pytest.param(*other, marks=pytest.mark.slow) for other in (
        ("s3://bucket/run", "s3fs", "[s3]"), ("gs:/bucket/run", "gcsfs", "two slashes"),
        ("http://bucket/run", "gcsfs", "is not supported")))])
def test_a_workdir_that_cannot_be_reached_is_one_sentence_at_once(workdir, package, told, tmp_path):
    script = WITHOUT.format(package=package, root=ROOT, workdir=workdir)
    process = start(f"import os; os.chdir({str(tmp_path)!r})\n{script}", stderr=subprocess.PIPE)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    (sentence,) = error.splitlines()
    assert sentence.startswith("error: ") and told in sentence
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("option", [["--out"], ["--image"], ["--adapter"], ["--model"], ["--batch"]])
def test_sampling_tells_it_too(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = sample.main([*option, "s3:bucket/x"])
    except SystemExit as error:  # argparse's
        code = error.code
    told = capsys.readouterr().err
    assert code == 2 and "write s3://bucket/folder" in told.splitlines()[-1]
    assert not os.listdir(tmp_path)
