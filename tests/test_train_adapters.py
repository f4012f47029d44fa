"""The adapters of the study's rows: what is trained, what is kept, and how it stops."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments import train_adapters
from benchmarks.experiments.study import settings
from configs.mini import get_config
from realcustom_jax.model_files.adapter import find_adapter
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.weights import PROJECTOR_PREFIX
from realcustom_jax.models.projector import ProjectorConfig
from realcustom_jax.training.miniature.config import MiniatureConfig


@pytest.fixture
def calls(monkeypatch):
    """The names that were trained, each by a process that does what is said of it in `bodies`, or writes an adapter."""
    names, bodies = [], {}

    def train(workdir: Path, name: str, steps: int, batch_size: int) -> subprocess.Popen:
        names.append(name)
        adapter = workdir / name / "bundle" / "adapter"
        body = bodies.get(name, f"import pathlib; p = pathlib.Path({str(adapter)!r}); p.mkdir(parents=True); "
                                "(p / 'config.json').write_text('{}')")
        return subprocess.Popen([sys.executable, "-c", body])

    monkeypatch.setattr(train_adapters, "train", train)
    monkeypatch.setattr(train_adapters, "paint_bank", lambda config, folder: None)
    monkeypatch.setattr(train_adapters, "_CHECK_EVERY", 0.05)
    return names, bodies


def train_all(workdir: Path, names: list[str], **options) -> None:
    train_adapters.train_all(workdir, names, **{
        "steps": 0, "batch_size": 0, "together": 2, "seconds": 60.0, **options})


def test_what_is_there_already_is_not_trained_again(tmp_path, calls):
    names, _ = calls
    train_all(tmp_path, ["masked", "further/masked"])
    train_all(tmp_path, ["masked", "further/masked", "taught"])
    assert sorted(names) == ["further/masked", "masked", "taught"]
    for name in names:
        assert (tmp_path / "trained" / name / "config.json").is_file()


def test_a_training_that_fails_is_named_and_the_others_are_stopped(tmp_path, calls):
    _, bodies = calls
    bodies |= {"masked": "raise SystemExit(2)", "taught": "import time; time.sleep(60)"}
    with pytest.raises(RuntimeError, match=r"masked ended with 2; see .*masked/log.txt\."):
        train_all(tmp_path, ["taught", "masked"])
    assert not (tmp_path / "trained").exists()


def test_after_its_seconds_it_stops_what_runs_and_begins_nothing(tmp_path, calls):
    names, bodies = calls
    bodies |= {"masked": "import time; time.sleep(60)"}
    train_all(tmp_path, ["masked", "taught"], together=1, seconds=0.2)
    assert names == ["masked"] and not (tmp_path / "trained").exists()


def test_asked_to_stop_it_stops_what_runs(tmp_path, calls):
    _, bodies = calls
    ended = tmp_path / "ended"
    bodies |= {"masked": f"""if True:
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), os._exit(75)))
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)"""}
    with pytest.raises(SystemExit) as stopped:
        train_all(tmp_path, ["masked"])
    assert stopped.value.code == 75 and ended.exists()


@pytest.mark.parametrize("name, flags",
                         {**train_adapters.ADAPTERS, **train_adapters.FURTHER, **train_adapters.ANEW}.items())
def test_each_is_the_miniatures_configuration_but_for_its_choice(name, flags):
    config = get_config()
    for flag in flags:
        key, value = flag.removeprefix("--config.").split("=")
        before = config
        *above, last = key.split(".")
        for part in above:
            before = before[part]
        said = ast.literal_eval(value) if isinstance(before[last], list) else type(before[last])(value)
        assert before[last] != said, "it says what the configuration says already"
        before[last] = said
    MiniatureConfig.from_config(config.to_dict())  # raises ValueError for what no stage knows


def test_each_has_a_row_for_every_task():
    rows = {row.adapter for row in settings() if row.adapter}
    assert rows == {*train_adapters.ADAPTERS, *train_adapters.FURTHER, *train_adapters.ANEW}


@pytest.mark.parametrize("name", train_adapters.ANEW)
def test_a_new_projector_stands_under_the_bundled_keys_and_values(tmp_path, name):
    variant = name.removeprefix("anew/")
    train_adapters.begin_anew(tmp_path, variant)
    begun, bundled = find_adapter(tmp_path / "adapter"), find_adapter(ASSETS / "mini" / "adapter")
    assert ProjectorConfig.from_config(begun.settings).variant == variant
    assert len(begun.vision.siglip_layers) == len(begun.vision.dino_layers) == (1 if variant == "highres" else 3)
    assert any(".to_k_vision." in name for name in begun.tensors)
    for name in begun.tensors:
        if name.startswith(PROJECTOR_PREFIX):
            if name.endswith(("to_q.weight", "projector_base.weight")):
                assert not np.array_equal(begun.tensors[name], bundled.tensors[name])
        else:
            np.testing.assert_array_equal(begun.tensors[name], bundled.tensors[name])
