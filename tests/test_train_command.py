"""The command train.py, as a user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("wrong, message", [
    (["--config.stagee=base", "--workdir=x"], "no key 'stagee'; did you mean 'stage'?"),
    (["--config.optimisation.base.steps=1", "--workdir=x"], "no key 'optimisation'"),
    ([], "--workdir is missing"),
])
def test_a_mistake_is_one_sentence(tmp_path, wrong, message):
    done = subprocess.run([sys.executable, ROOT / "train.py", f"--config={ROOT}/configs/mini.py", *wrong], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())
