"""configs/finetune_mini.py: the miniature's adapter on own pictures, by the command of the README's kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.data.sprites.world import Placement, paint, random_identity
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.tensors import read_tensors
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.published.config import PublishedConfig

from test_config import load

ROOT = Path(__file__).parents[1]


def train(workdir: Path, folder: Path, **optimization) -> subprocess.CompletedProcess:
    """Runs train.py on one device."""
    options = [f"--config.train.optimization.{name}={value}" for name, value in optimization.items()]
    return subprocess.run(
        [sys.executable, "train.py", "--config=configs/finetune_mini.py", f"--workdir={workdir}",
         f"--config.train.data.folder={folder}", *options],
        cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, capture_output=True, text=True, timeout=600)


def test_its_values_are_the_miniatures():
    config = PublishedConfig.from_config(load("finetune_mini")["train"])
    assert config.side == 128 and config.dtype == "float32" and config.vision == ""
    assert (config.preset.refine, config.preset.guidance_scale, config.preset.binary) == (2, 5.0, True)
    assert find_adapter(config.adapter).vision.size == 128
    assert config.optimization.steps % config.optimization.save_every == 0


@pytest.mark.slow
def test_a_few_steps_make_an_adapter_that_draws_and_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    pictures, rng = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    teapot = random_identity(rng, noun="teapot")
    for name, scene in (("a", "beach"), ("b", "room")):
        place = Placement(x=0.5, y=0.55, size=0.7, facing="left", pose=0.0)
        Image.fromarray(paint([(teapot, place)], scene, seed=1)[0]).save(pictures / f"{name}.png")
    rows = [{"target": "a.png", "caption": "a teapot on the beach", "word": "teapot", "reference": "b.png"},
            {"target": "b.png", "caption": "a teapot in the room", "word": "teapot", "reference": "a.png"}]
    (pictures / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))

    missing = train(tmp_path / "none", tmp_path / "nowhere", steps=2)
    told = [line for line in missing.stderr.splitlines() if line.startswith("error: ")]
    assert missing.returncode == 2 and len(told) == 1 and "nowhere" in told[0], missing.stderr
    assert "Traceback" not in missing.stderr

    done = train(tmp_path / "run", pictures, steps=3, batch_size=2, save_every=2)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([entry["loss"] for entry in log]).all()
    before, after = (read_tensors(adapter / "realcustom.safetensors")
                     for adapter in (ASSETS / "mini" / "adapter", tmp_path / "run" / "adapter"))
    assert sorted(before) == sorted(after)
    assert max(np.abs(np.float32(before[name]) - np.float32(after[name])).max() for name in before) > 1e-4
    pipeline = Pipeline.load("mini", tmp_path / "run" / "adapter")
    assert pipeline.preset == Pipeline.load("mini").preset
    result = pipeline(pictures / "a.png", "a teapot in the snow", "teapot", steps=2)
    assert result.images[0].size == (128, 128) and np.asarray(result.images[0]).std() > 10
