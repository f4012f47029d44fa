"""SIGTERM and Ctrl-C at any time: what is raised, what a command ends with, and what is left behind."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax import interruption
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.errors import exit_code

import fresh_process

ROOT = Path(__file__).parents[1]


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_that_is_asked_to_stop_ends_with_75_and_a_sentence():
    said = []
    with interruption.raised():
        assert exit_code(ask_to_stop, report=said.append) == 75
    assert said == ["stopped as asked (SIGTERM); what was finished is kept, and the same command goes on."]


def test_outside_of_a_command_the_process_ends_with_75():
    with pytest.raises(SystemExit) as stop, interruption.raised():
        ask_to_stop()
    assert stop.value.code == 75 and isinstance(stop.value, interruption.Preempted)


def test_another_signal_does_not_disturb_the_cleaning_up():
    cleaned = []
    with pytest.raises(interruption.Preempted), interruption.raised():
        try:
            ask_to_stop()
        finally:
            ask_to_stop()
            cleaned.append(True)
    assert cleaned


def test_what_is_noted_waits_until_it_is_asked_for():
    with interruption.noted() as block:
        interruption.check()
        ask_to_stop()
        assert block.came
        with pytest.raises(interruption.Preempted, match="between two shards"):
            interruption.check("between two shards")
        block.came = False


def test_threads_hear_of_it_too():
    heard = []

    def work():
        try:
            interruption.check()
        except interruption.Preempted as stopped:
            heard.append(stopped)

    with interruption.noted() as block:
        ask_to_stop()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        block.came = False
    assert len(heard) == 1
    interruption.check()


def test_what_came_too_late_for_a_block_is_answered_behind_it():
    passed = []
    with pytest.raises(interruption.Preempted), interruption.raised():
        with interruption.noted():
            ask_to_stop()
            passed.append("the block's end")
        passed.append("what follows")
    assert passed == ["the block's end"]


def test_a_block_that_acted_on_it_is_not_asked_again():
    with pytest.raises(interruption.Preempted, match="mine"), interruption.raised(), interruption.noted():
        ask_to_stop()
        interruption.check("mine")


def test_ctrl_c_is_one_line_and_130():
    def work():
        os.kill(os.getpid(), signal.SIGINT)

    said, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)  # as a shell starts it in front
    try:
        assert exit_code(work, report=said.append) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["stopped (Ctrl-C); what was finished is kept."]


def test_the_first_process_passes_it_on():
    with pytest.raises(interruption.Preempted), interruption.raised():
        on_first_process(ask_to_stop)


@pytest.mark.slow
def test_workers_leave_it_to_who_started_them():
    """`kill` is their own, as of a signal to the whole group."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=interruption.ignored) as pool:
        assert pool.submit(os.kill, os.getpid(), 0).result() is None
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result() == worker


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there it is asked for")
def test_a_handler_that_is_not_pythons_hears_of_it_and_is_put_back():
    """As JAX's, by which several processes stop after the same step."""
    heard = []
    native = ctypes.CFUNCTYPE(None, ctypes.c_int)(heard.append)
    address = ctypes.cast(native, ctypes.c_void_p).value
    before = interruption._set_native_handler(address)
    try:
        with interruption.noted() as block:
            ask_to_stop()
            assert block.came and heard == [signal.SIGTERM]
            with interruption.noted() as inner:
                ask_to_stop()
                assert inner.came and heard == [signal.SIGTERM] * 2
                inner.came = False
            block.came = False
        assert interruption._native_handler() == address
    finally:
        interruption._set_native_handler(before)


TWO = """
import os, pathlib, signal, sys, jax
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from realcustom_jax import interruption
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.errors import exit_code
from test_training import *
folder, me = pathlib.Path(sys.argv[1]), jax.process_index()
class Evicted(Layered):
    def batch(self, step):
        if step == 3 and me == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        import time; time.sleep(0.2)  # JAX's service looks once a second
        here = examples_here(batch_sharding(make_mesh(fsdp=2), 4), 4)
        return {name: x[here] for name, x in super().batch(step).items()}
def train():
    fit('two', Evicted(), dataclasses.replace(SETTINGS, steps=400, save_every=400, sample_every=0), folder,
        mesh=make_mesh(fsdp=2))
def build():
    on_first_process(lambda: os.kill(os.getpid(), signal.SIGTERM))
with interruption.raised():
    code = exit_code({"train": train, "build": build}[sys.argv[4]], report=print)
os._exit(code) if sys.argv[4] == "build" else sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "build"])
def test_two_processes_stop_together_when_one_is_asked_to(tmp_path, work):
    """After the same step, saved; and what the first alone does for both stops both."""
    address = f"localhost:{fresh_process.free_port()}"
    processes = [fresh_process.start(TWO, tmp_path, address, i, work, devices=2, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT) for i in range(2)]
    said = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], said
    if work == "train":
        steps = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
        assert len(steps) == 1 and int(steps[0]) < 400
        assert all(f"stopped after step {steps[0]} of 400 as asked, and saved" in text for text in said)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    lines = []
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / f"{i}.png")
        lines.append({"target": f"{i}.png", "caption": "a dog on the beach", "word": "dog", "box": [10, 10, 80, 80]})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


# The command, which a signal meets at the third call of a function.
STOPPED = """
import importlib, os, runpy, signal, sys
module, name, number = sys.argv[1:4]
owner = importlib.import_module(module)
for part in name.split(".")[:-1]:
    owner = getattr(owner, part)
name, calls = name.split(".")[-1], []
whole = getattr(owner, name)
def stopping(*arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), int(number))
    return whole(*arguments, **options)
setattr(owner, name, stopping)
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("module, function", [
    ("realcustom_jax.data.shards", "write_record"),
    ("realcustom_jax.training.published.encoders", "Encoders.time_ids"),
])
@pytest.mark.parametrize("number, code, words", [
    (signal.SIGTERM, 75, "stopped as asked (SIGTERM); what was finished is kept"),
    (signal.SIGINT, 130, "stopped (Ctrl-C); what was finished is kept.")])
def test_while_data_or_features_are_made(pictures, tmp_path, module, function, number, code, words):
    """Nothing that is half made is believed: the same command makes it and goes on to the end."""
    options = [ROOT / "train.py", f"--config={ROOT}/configs/finetune_mini.py", f"--workdir={tmp_path}/run",
               f"--config.train.data.folder={pictures}", "--config.train.precomputed=True",
               "--config.train.optimization.steps=1", "--config.train.optimization.batch_size=2",
               "--config.train.optimization.sample_every=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    prepare = ["-c", STOPPED, module, function, str(int(number))]
    if "encoders" in module:  # of four rows there is but one call
        prepare[1] = STOPPED.replace("== 2", "== 1")
    # A shell makes what it starts in the background deaf to Ctrl-C, and so the tests, if they run there.
    stopped = subprocess.run([sys.executable, *prepare, *options], capture_output=True, text=True, timeout=600,
                             env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert stopped.returncode == code, stopped.stderr
    assert words in stopped.stderr.splitlines()[-1] and "Traceback" not in stopped.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not list((tmp_path / "run").glob("features/*/part-*"))
    again = subprocess.run([sys.executable, *options], capture_output=True, text=True, timeout=900, env=environment)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "adapter" / "config.json").is_file()
