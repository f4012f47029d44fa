"""Every kind of source trains the miniature's adapter."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from sources import KINDS, every_kind

from realcustom_jax.training.published.run import train_adapter

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return every_kind(tmp_path_factory.mktemp("kinds"))


def trained(workdir, **data) -> list[float]:
    """The losses of 20 steps of configs/finetune_mini.py."""
    spec = importlib.util.spec_from_file_location("finetune_mini", CONFIGS / "finetune_mini.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.optimization.update(steps=20, batch_size=1, log_every=5, save_every=20, sample_every=0)
    config.train.data.update(data)
    train_adapter(config, workdir)
    assert (workdir / "adapter" / "config.json").is_file()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_trains_the_miniatures_adapter(kinds, tmp_path, kind):
    path, options = kinds[kind]
    losses = trained(tmp_path, folder=str(path), **options)
    assert len(losses) == 4 and all(map(math.isfinite, losses))


@pytest.mark.slow
def test_a_mixture_of_all_kinds_trains_it_too(kinds, tmp_path):
    sources = [{"path": str(path), "weight": 1 + number, **options}
               for number, (path, options) in enumerate(kinds.values())]
    (tmp_path / "mixture.json").write_text(json.dumps(sources))
    losses = trained(tmp_path / "run", folder=str(tmp_path / "mixture.json"), held_out=0.2, min_side=32)
    assert len(losses) == 4 and all(map(math.isfinite, losses))
