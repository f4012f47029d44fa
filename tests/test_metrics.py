"""What a run writes about itself."""

import json
import time

import pytest

from realcustom_jax.training.log import Log


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_steps_time_is_without_compiling_and_pauses(tmp_path):
    with Log(tmp_path, 0, peak=None, operations=None) as log:
        time.sleep(0.3)  # compiling
        for step in range(6):
            log.finished()
            if step == 2:
                log.pause()
                time.sleep(0.3)
            time.sleep(0.01)
        log.write(5, {"loss": 1.0})
    record, = records(tmp_path)
    assert record["step"] == 5 and record["loss"] == 1.0 and "mfu" not in record
    assert 0.01 <= record["step_seconds"] < 0.2


def test_mfu_is_the_share_of_the_peak(tmp_path):
    asked = []
    with Log(tmp_path, 0, peak=1e6, operations=lambda: asked.append(0) or 1000) as log:
        for step in range(4):
            log.finished()
            time.sleep(0.01)
            log.write(step, {})
    first, *others = records(tmp_path)
    assert "mfu" not in first and len(asked) == 1
    for record in others:
        assert record["mfu"] == pytest.approx(1000 / record["step_seconds"] / 1e6)


def test_resuming_drops_what_is_done_again(tmp_path):
    with Log(tmp_path, 0, peak=None, operations=None) as log:
        for step in range(5):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the half of a line that a kill leaves
    with Log(tmp_path, 3, peak=None, operations=None) as log:
        log.write(3, {"loss": 7.0})
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 7)]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with Log(tmp_path, 0, peak=None, operations=None) as log:
        log.write(4, {"loss": 0.25})
    file, = (tmp_path / "tensorboard").iterdir()
    found, data = {}, file.read_bytes()
    while data:  # of each record: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12:12 + length]), data[16 + length:]
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
    assert found == {"loss": (4, 0.25)}
