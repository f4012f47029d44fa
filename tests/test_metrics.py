"""What a run writes about itself: the times of its steps, its records and pictures."""

import json
import sys
import time
import types

import pytest
from PIL import Image

from realcustom_jax.training.log import Log
from realcustom_jax.training.meter import Meter


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def meter(**options):
    return Meter(**{"steps": 10, "start": 0, "batch_size": 8, "peak": None} | options)


def test_a_steps_time_is_without_compiling_and_pauses():
    meter().close()  # of the training before, whose end is the beginning of this one's time
    measured = meter()
    with measured.paused():
        time.sleep(0.3)
    for step in range(6):
        time.sleep(0.01)
        measured.finished(None)
        if step == 2:
            with measured.paused():
                time.sleep(0.3)
    found = measured.values(5)
    assert 0.01 <= found["step_seconds"] < 0.1 and "mfu" not in found
    assert 8 / 0.1 < found["examples_per_second"] <= 8 / 0.01
    assert 0.06 / 1.2 < found["goodput"] < 0.5
    # The steps and the pause between them come again for the four that are left; what was before them does not.
    assert 0.36 * 4 / 6 <= found["eta_seconds"] < 0.6
    assert measured.values(5) == {}, "nothing since"


def test_the_time_that_steps_wait_for_their_batches():
    measured = meter()
    for _ in range(4):
        with measured.waiting():
            time.sleep(0.03)
        time.sleep(0.01)
        measured.finished(None)
    assert 0.5 < measured.input_wait_share() < 0.9
    found = measured.values(3)
    assert 0.03 <= found["input_wait"] < 0.06 and 0.5 < found["input_wait_share"] < 0.9


def test_mfu_is_the_share_of_the_peak_whatever_the_shapes():
    asked, measured = [], meter(peak=1e6)
    for count in (1000, 3000):
        time.sleep(0.01)
        measured.finished(lambda count=count: asked.append(0) or count)
    assert not asked, "counting is work"
    seconds = 16 / measured.examples_per_second()
    assert measured.values(1)["mfu"] == pytest.approx(4000 / seconds / 1e6)


def test_resuming_drops_what_is_done_again(tmp_path):
    with Log(tmp_path, 0) as log:
        for step in range(5):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the half of a line that a kill leaves
    with Log(tmp_path, 3) as log:
        log.write(3, {"loss": 7.0})
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 7)]


def test_tensorboard_gets_the_same_numbers_and_the_pictures_with_their_captions(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with Log(tmp_path, 0) as log:
        log.write(4, {"loss": 0.25, "shape": "4×8"})
        log.picture(4, "samples", Image.new("RGB", (6, 9), "red"), ["a dog", "a cat"])
    assert records(tmp_path)[0]["shape"] == "4×8"
    assert Image.open(tmp_path / "samples" / "000005.png").size == (6, 9)
    file, = (tmp_path / "tensorboard").iterdir()
    found, data = {}, file.read_bytes()
    while data:  # of each record: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12:12 + length]), data[16 + length:]
        found |= {value.tag: (event.step, value) for value in event.summary.value}
    assert found.keys() == {"loss", "samples", "samples/captions/text_summary"}
    assert {step for step, _ in found.values()} == {4} and found["loss"][1].simple_value == 0.25
    assert (found["samples"][1].image.width, found["samples"][1].image.height) == (6, 9)
    assert found["samples/captions/text_summary"][1].tensor.string_val[0].decode() == "1. a dog\n2. a cat"


def test_weights_and_biases_gets_the_same_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    stub = types.ModuleType("wandb")
    stub.init = lambda **options: calls.append(options) or Run()
    stub.Image = lambda picture, caption: (picture.size, caption)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for start in (0, 3, 0):
        with Log(tmp_path, start, wandb="toys") as log:
            log.write(start, {"loss": 0.5, "shape": "4×8"})
            log.picture(start, "samples", Image.new("RGB", (6, 9)), ["a dog"])
    first, again, anew = (call for call in calls if isinstance(call, dict))
    assert first["project"] == "toys" and first["dir"] == str(tmp_path) and first["resume"] == "allow"
    assert first["id"] == again["id"] != anew["id"]
    def refuse(**options):
        raise RuntimeError("No API key configured.\nTry this")

    stub.init = refuse
    with pytest.raises(ValueError, match=r"does not take the run \(No API key configured.\); log in with"):
        Log(tmp_path, 0, wandb="toys")
    assert calls[1:4] == [(0, {"loss": 0.5}), (0, {"samples": ((6, 9), "1. a dog")}), "finished"]
