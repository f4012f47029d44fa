"""The command train.py, as a user meets it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("wrong, message", [
    (["--config.stagee=base", "--workdir=x"], "no key 'stagee'; did you mean 'stage'?"),
    (["--config.optimisation.base.steps=1", "--workdir=x"], "no key 'optimisation'"),
    ([], "--workdir is missing"),
    (["--workdir=x", "--profile_steps=7:5"], "profile_steps is '7:5'; expected FIRST:LAST"),
    (["--config=nosuch.py"], "No such file or directory: 'nosuch.py'); give one such as configs/mini.py."),
    (["--config", "nosuch.py"], "No such file or directory: 'nosuch.py'); give one such as configs/mini.py."),
    (["--config=nosuch.py", "--config.stage=base"], "'nosuch.py'); give one such as configs/mini.py."),
])
def test_a_mistake_is_one_sentence(tmp_path, wrong, message):
    done = subprocess.run([sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/mini.py", *wrong], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("line, message", [
    ("return ml_collections.nothing", "AttributeError: module 'ml_collections' has no attribute 'nothing'."),
    ("return nothing", "NameError: name 'nothing' is not defined."), ("return (", "SyntaxError: "),
    ("return {}['stage']", "KeyError: 'stage'."),
])
def test_a_broken_file_of_the_user_is_told_from_a_missing_key(tmp_path, line, message):
    (tmp_path / "mine.py").write_text(f"import ml_collections\n\n\ndef get_config():\n    {line}\n")
    done = subprocess.run([sys.executable, ROOT / "train.py", "--config=mine.py", "--workdir=x"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"error: the file of --config cannot be used: {message}" in done.stderr


# The command with the trainings replaced by one that says what it was asked for.
ASKED = """
import runpy, sys
from realcustom_jax.training.miniature import stages as miniature
from realcustom_jax.training.published import run as published
miniature.run = lambda config, workdir: print("asked", config.get("train", config).on_existing)
published.train_adapter = miniature.run
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("config, options, wanted", [
    ("mini", [], "resume"), ("mini", ["--resume"], "resume"), ("mini", ["--overwrite"], "overwrite"),
    ("sdxl", ["--overwrite"], "overwrite"), ("sdxl", ["--config.train.on_existing=refuse"], "refuse"),
])
@pytest.mark.slow
def test_what_to_do_with_checkpoints(tmp_path, config, options, wanted):
    command = [ROOT / "train.py", f"--config={ROOT}/configs/{config}.py", "--workdir=x", *options]
    done = subprocess.run([sys.executable, "-c", ASKED, *command], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1:] == [f"asked {wanted}"], done.stderr


def test_a_bug_of_ours_is_admitted_and_debug_shows_where(tmp_path):
    broken = ASKED.replace('print("asked"', 'None + print("asked"')
    command = [ROOT / "train.py", f"--config={ROOT}/configs/mini.py", "--workdir=x", "--debug"]
    done = subprocess.run([sys.executable, "-c", broken, *command], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "Traceback" in done.stderr and "in <lambda>" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: this is a bug in realcustom_jax, not a mistake in your input (TypeError: unsupported operand")


@pytest.mark.slow
def test_resume_and_overwrite_exclude_each_other(tmp_path):
    options = f"--config={ROOT}/configs/mini.py", "--workdir=x", "--resume", "--overwrite"
    done = subprocess.run([sys.executable, ROOT / "train.py", *options], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode and "(resume, overwrite)" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes, cores, devices", [
    ([16], 2, 2), ([1], 2, 1), ([16, 6], 8, 2), ([12], 6, 2), ([64], 64, 8)])
def test_a_cpu_is_so_many_devices_as_divide_every_batch(monkeypatch, sizes, cores, devices):
    from realcustom_jax.commands import train

    monkeypatch.setattr(train.os, "cpu_count", lambda: cores)
    config = ConfigDict({"optimization": {str(i): {"batch_size": x, "accumulate": 1} for i, x in enumerate(sizes)}})
    assert train._cpu_devices(config) == devices
    published = ConfigDict({"train": {"optimization": {"batch_size": 4 * sizes[0], "accumulate": 4}}})
    assert train._cpu_devices(published) == math.gcd(cores, 8, sizes[0])
