"""Commands that wait for a machine: rehearsed, so that they run when it is there."""

import json

import pytest

from benchmarks.compiling.training_cost import operations_of_example

import fresh_process


@pytest.mark.slow
def test_the_training_step_is_timed(tmp_path):
    fresh_process.run(
        "import sys; sys.argv[1:] = '--tiny --steps 1 --batch 2 --json'.split() + sys.argv[1:]\n"
        "from benchmarks.speed.train_step import main; main()", tmp_path / "step.json")
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["images_per_second"] == pytest.approx(2 / found["step_seconds"]) and found["flop"] > 10**9


@pytest.mark.slow
def test_a_training_costs_what_the_recipe_says():
    assert operations_of_example("sdxl", 512, precomputed=True) / 1e12 == pytest.approx(10.2, abs=0.05)
