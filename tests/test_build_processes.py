"""Building datasets with worker processes: what ends them, from inside or outside, keeps what is finished."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_source import LINES, FakeSource, children, hidden, state, wheres
from PIL import Image

from realcustom_jax.data import workers
from realcustom_jax.data.build import build
from realcustom_jax.data.dataset import Dataset


@pytest.fixture
def others():
    """Processes that are started already, such as an emulator that serves several tests."""
    return children(os.getpid())


@pytest.mark.slow
def test_two_workers_build_what_one_does_and_import_no_jax(tmp_path, others):
    one = build(FakeSource(), tmp_path / "one", workers=1)
    two = build(FakeSource(), tmp_path / "two", workers=2)
    assert wheres(one) == wheres(two)
    assert {name: content for name, (*_, content) in state(tmp_path / "one").items()} == {
        name: content for name, (*_, content) in state(tmp_path / "two").items()}
    assert not hidden(tmp_path / "two") and children(os.getpid()) == others
    code = ("import sys, realcustom_jax.data.build, realcustom_jax.data.sources, realcustom_jax.data.workers\n"
            "print(sorted({'jax', 'transformers', 'tensorflow', 'torch'} & set(sys.modules)))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_goes_wrong_keeps_the_finished_shards(tmp_path, number, others):
    with pytest.raises(OSError, match="pictures is gone"):
        build(FakeSource(does={2: "fails"}), tmp_path, workers=number)
    before = state(tmp_path)
    assert len(before) >= 1 and not hidden(tmp_path) and children(os.getpid()) == others
    assert wheres(build(FakeSource(), tmp_path, workers=number)) == LINES
    assert before.items() <= state(tmp_path).items()


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence(tmp_path, others):
    with pytest.raises(OSError, match="worker process .* was ended from outside"):
        build(FakeSource(does={3: "killed"}), tmp_path, workers=2)
    assert not hidden(tmp_path) and children(os.getpid()) == others
    assert wheres(build(FakeSource(), tmp_path, workers=2)) == LINES


COMMAND = [sys.executable, "-m", "realcustom_jax.data"]


def start(*arguments, **options):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=Path(__file__).parents[1], preexec_fn=_hear_ctrl_c, **options)


def _hear_ctrl_c():
    """What a shell starts in the background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """(folder, number of rows) of noise, 100 MB in parts of 32 MiB."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    rows = [{"target": f"{i}.png", "caption": "a dog on a sofa", "word": "dog", "box": [10, 10, 800, 700]}
            for i in range(66)]
    for row in rows:
        Image.fromarray(rng.integers(0, 256, (720, 720, 3), np.uint8)).save(folder / row["target"], compress_level=1)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder, len(rows)


def wait_for(condition, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def running(process):
    with contextlib.suppress(FileNotFoundError):
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_keeps_its_finished_shards(noise, tmp_path, by):
    folder, rows = noise
    process = start("build", folder, "--out", tmp_path / "made", "--workers", 2)
    wait_for(lambda: len(list((tmp_path / "made").glob("done/*"))) >= 2)
    pids = children(process.pid)
    process.send_signal(by)
    _, said = process.communicate(timeout=60)
    wait_for(lambda: not any(map(running, pids)), 30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[by]
    assert "Traceback" not in said
    if by != signal.SIGKILL:
        assert not hidden(tmp_path / "made")
    before = {name: about for name, about in state(tmp_path / "made").items()}
    assert len(before) >= 2
    again = start("build", folder, "--out", tmp_path / "made", "--workers", 1)
    said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    after = state(tmp_path / "made")
    assert len(after) == 4 and not hidden(tmp_path / "made")
    marked = sum(before[name] == after[name] for name in before)
    assert marked >= 2, "those with markers were kept"
    assert len(Dataset(tmp_path / "made")) == rows


@pytest.mark.slow
def test_two_builders_of_one_dataset_do_not_harm_each_other(noise, tmp_path):
    folder, rows = noise
    both = [start("build", folder, "--out", tmp_path / "made", "--workers", 1) for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    dataset = Dataset(tmp_path / "made")
    assert len(dataset) == rows and not hidden(tmp_path / "made")
    assert dataset.record(rows - 1).pictures[0] == (folder / f"{rows - 1}.png").read_bytes()


@pytest.mark.slow
def test_memory_stays_flat(noise, tmp_path):
    """Also that of workers: 100 MB of pictures, of which one row at a time is held."""
    code = """
import resource, sys
from realcustom_jax.data import shards, sources
from realcustom_jax.data.build import build
import tensorflow_datasets.core.folder_dataset
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
before = peak()
build(sources.open_source(sys.argv[1]), sys.argv[2], workers=1)
print(peak() - before, "tensorflow" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code, str(noise[0]), str(tmp_path)], capture_output=True, text=True,
                           check=True, cwd=Path(__file__).parents[1])
    grown, tensorflow = found.stdout.split()
    assert float(grown) < 90 and tensorflow == "False"


@pytest.mark.slow
def test_workers_tell_how_far_they_are(tmp_path):
    told = []
    assert sorted(workers.in_workers(_count_twice, [(), (), ()], 2, told.append, "counting")) == [0, 1, 2]
    assert told[-1] == 6


def _count_twice(count):
    count()
    count()


@pytest.mark.parametrize("task", ["_count_twice", "what cannot be called"])
def test_a_worker_whose_user_is_killed_says_nothing(task):
    """It may meet the end of its replies before that of its tasks."""
    worker = subprocess.Popen([sys.executable, "-m", workers.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    worker.stdout.close()
    worker.stdin.write(pickle.dumps((globals().get(task, task), ())))
    worker.stdin.flush()
    assert worker.wait(timeout=60) == 1 and worker.stderr.read() == b""


def _print_and_fail(count):
    print("not a reply")
    os.write(1, b"nor this")
    raise Unusual("first", "second")


class Unusual(Exception):
    """One that cannot be made again from what it says."""

    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.slow
def test_what_workers_print_or_raise_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="Unusual: first"):
        list(workers.in_workers(_print_and_fail, [()], 1, lambda count: None, "failing"))


@pytest.mark.slow
def test_a_script_without_a_guard_builds_with_workers(tmp_path):
    """Its program is not run again by the workers."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_source import FakeSource
from realcustom_jax.data.build import build
print(len(build(FakeSource(), sys.argv[2], workers=2)))
"""
    for given in (["-c", code], ["-"]):
        said = subprocess.run([sys.executable, *given, str(Path(__file__).parent), str(tmp_path / given[0])],
                              input=code, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
        assert said.stdout.strip() == "8", said.stderr
