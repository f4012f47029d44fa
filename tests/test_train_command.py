"""The command train.py, as a user meets it."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from realcustom_jax.stages import miniature, published

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("wrong, message", [
    (["--config.stagee=base", "--workdir=x"], "no key 'stagee'; did you mean 'stage'?"),
    (["--config.optimisation.base.steps=1", "--workdir=x"], "no key 'optimisation'"),
    ([], "--workdir is missing"),
    (["--config=configs/nosuch.py"], "--config=configs/nosuch.py does not exist; give a file such as configs/mini.py."),
])
def test_a_mistake_is_one_sentence(tmp_path, wrong, message):
    done = subprocess.run([sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/mini.py", *wrong], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config, options, wanted", [
    ("mini", [], "resume"), ("mini", ["--resume"], "resume"), ("mini", ["--overwrite"], "overwrite"),
    ("sdxl", ["--overwrite"], "overwrite"),
])
def test_what_to_do_with_checkpoints(config, options, wanted, monkeypatch):
    found = []
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")  # the devices of this process stay

    def run(config, workdir):
        found.append(config.get("train", config).on_existing)

    for stages in (miniature, published):
        monkeypatch.setattr(stages, "run", run)
    command = runpy.run_path(str(ROOT / "train.py"))
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["train.py", f"--config={ROOT}/configs/{config}.py", "--workdir=x", *options])
        command["main"]([])
    assert found == [wanted]


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    options = f"--config={ROOT}/configs/mini.py", "--workdir=x", "--resume", "--overwrite"
    done = subprocess.run([sys.executable, ROOT / "train.py", *options], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode and "(resume, overwrite)" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
