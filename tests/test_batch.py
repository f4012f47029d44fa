"""Many prompts from a file: what is written, what is made again, and what is left after kill -9."""

import json
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from realcustom_jax import batch, errors, files

OPTIONS = {"steps": 2, "num_images": 1}


class FakePipeline:
    """Notes its prompts; paints noise of the seed, and knows no zebras."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def __call__(self, references, prompt, targets, *, seed, num_images=1, **options):
        if prompt == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((references, prompt, targets, {"seed": seed, "num_images": num_images, **options}))
        if "zebra" in prompt:
            raise ValueError("what is\na zebra?")
        pixels = np.random.default_rng(seed).integers(0, 255, (num_images, 8, 8, 3), dtype=np.uint8)
        return types.SimpleNamespace(images=[Image.fromarray(x) for x in pixels])

    @property
    def prompts(self):
        return [prompt for _, prompt, *_ in self.calls]


@pytest.fixture
def write(tmp_path):
    """Writes prompts.jsonl (rows as objects or as text), beside pictures dog.png and car.png -> its path."""
    def write(*rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
        return tmp_path / "prompts.jsonl"

    for name, colour in (("dog", "brown"), ("car", "red")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    return write


def row(**changes):
    return {"prompt": "a dog", "image": "dog.png", "target": "dog", **changes}


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def run(pipeline, file, out, **changes):
    options = {"options": OPTIONS, "report": pytest.fail, **changes}
    return batch.run_batch(pipeline, batch.read_rows(file), out, **options)


# -------------------- the file


def test_rows_are_read_with_defaults_and_images_relative_to_the_file(write, tmp_path):
    file = write(row(), "", row(name="Zwei Hunde", image=["dog.png", str(tmp_path / "car.png")], target=["dog", "car"],
                                prompt="a dog\u2028and a car", seed=3, width=64, negative_prompt=""))
    first, second = batch.read_rows(file)
    assert (first.name, first.targets, first.references, first.options) == (
        "0001", ("dog",), (tmp_path / "dog.png",), {})
    assert second.where == f"{file}, line 3"
    assert (second.name, second.targets) == ("Zwei Hunde", ("dog", "car"))
    assert second.references == (tmp_path / "dog.png", tmp_path / "car.png")
    assert second.options == {"seed": 3, "width": 64, "negative_prompt": ""}


def test_a_file_of_another_system_is_read(write):
    file = write(row(), row())
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(batch.read_rows(file)) == 2


@pytest.mark.parametrize("bad, message", [
    ("{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[1]", "not a JSON object"),
    ({"image": "dog.png"}, "lacks prompt, target"),
    (row(promt="a dog"), "Unknown key 'promt'.*did you mean 'prompt'"),
    (row(prompt=" "), "prompt is ' '"),
    (row(image=[]), r"image is \[\]"),
    (row(target=7), "target is 7, expected a text or a list"),
    (row(image=["dog.png", "cat.png"]), "the image .*cat.png does not exist"),
    (row(image="."), "does not exist"),
    (row(seed=-1), "seed is -1"),
    (row(seed=True), "seed is True"),
    (row(num_images=0), "num_images is 0"),
    (row(width="64"), "width is '64'"),
    (row(num_images=10**9), "num_images is 1000000000, expected a whole number from 1 to 10000"),
    ('{"prompt": "a dog", "image": "dog.png", "target": "dog", "seed": NaN}', "seed is nan"),
    ('{"prompt": "a dog", "image": "dog.png", "target": "dog", "width": 1e999}', "width is inf"),
    ('{"seed": %s}' % ("9" * 5000), "not valid JSON"),
    (row(prompt="a dog \ud83d"), r"prompt holds half of a character, \\ud83d, in 'a dog \\ud83d'"),
    (row(target=["dog", "\ude00"]), r"target holds half of a character, \\ude00"),
    (row(negative_prompt="\ud83d"), "negative_prompt holds half of a character"),
    (row(name="\ud83d"), "name is '.ud83d'"),
    (row(image="\ud83d.png"), r"ud83d.png does not exist"),
    (row(image="a\0b.png"), r"the image .*a.x00b.png does not exist"),
    (row(image="x" * 100_000), "does not exist"),
    (row(x="y" * 100_000), "Unknown key 'x'"),
    ({"y" * 100_000: 1}, "Unknown key 'yyy"),
    (row(seed="y" * 100_000), "seed is 'yyy"),
    *[(row(name=name), "name is ") for name in ("", ".", "..", ".x", "a/b", "a\\b", "/a", "a\n", "-rf", "é" * 150, 7)],
    (row(name="0001"), "the name '0001' is taken by line 1"),
    (row(name="FIRST"), "the name 'FIRST' is taken by line 2"),
])
def test_a_bad_line_is_named(write, bad, message):
    file = write(row(), row(name="first"), bad)
    first, second, third = batch.read_rows(file)
    assert [first.name, second.name] == ["0001", "first"]
    assert third.where == f"{file}, line 3" and re.search(message, third.problem) and len(third.problem) < 600
    with pytest.raises(ValueError, match=r"(?s)prompts.jsonl has 1 bad line\(s\) and no good one: line 1: ") as alone:
        batch.read_rows(write({**bad, "name": 7} if isinstance(bad, dict) else bad))
    assert len(str(alone.value)) < 800


def test_a_file_of_bad_lines_alone_is_an_error_that_names_ten(write):
    with pytest.raises(ValueError, match="12 bad.*line 10: ") as many:
        batch.read_rows(write(*["{"] * 12))
    assert "line 11" not in str(many.value)


def test_files_of_other_encodings_are_read_or_refused_line_by_line(write):
    file = write(row(prompt="a café dog"), row())
    text = file.read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        file.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert [one.targets for one in batch.read_rows(file)] == [("dog",), ("dog",)]
    file.write_bytes(text.replace("caf\\u00e9", "café").encode("latin-1"))
    bad, good = batch.read_rows(file)
    assert bad.problem == "not UTF-8 (byte 0xe9 at 18); save the file in that encoding" and good.name == "0002"
    file.write_bytes(text.replace("\n", "\r").encode())
    assert len(batch.read_rows(file)) == 2
    with pytest.raises(ValueError, match="cannot be read .embedded null byte.; give a file"):
        batch.read_rows("a\0b")


def test_a_picture_that_cannot_be_read_fails_its_row_alone(write, tmp_path):
    (tmp_path / "gone.png").write_bytes(b"")
    rows, said = batch.read_rows(write(row(image="gone.png"), "{", row())), []
    (tmp_path / "gone.png").unlink()
    summary = batch.run_batch(FakePipeline(), rows, tmp_path / "out", options=OPTIONS, report=said.append)
    assert summary == batch.Summary(made=1, skipped=0, failed=2)
    assert names(tmp_path / "out") == ["0003.json", "0003.png"]
    assert "line 1 (0001) failed: " in said[0] and "gone.png" in said[0] and "line 2 failed: not valid JSON" in said[1]


def test_a_sentence_is_one_line_that_every_terminal_and_log_takes(write, tmp_path, capsys):
    def pipeline(*arguments, **options):
        raise ValueError("a \x1b[31mred\u202e \ud83d café\n line")

    batch.run_batch(pipeline, batch.read_rows(write(row())), tmp_path / "out", options=OPTIONS)
    shown = capsys.readouterr().out
    assert r"(0001) failed: a \x1b[31mred\u202e \ud83d café line" in shown
    assert errors.printable("café …", types.SimpleNamespace(encoding="ascii")) == r"caf\xe9 \u2026"


def test_a_file_without_rows_or_without_a_file_is_an_error(write, tmp_path):
    with pytest.raises(ValueError, match="holds no prompts"):
        batch.read_rows(write("", " "))
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl cannot be read .*give a file with a JSON object"):
        batch.read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(IsADirectoryError, match="cannot be read"):
        batch.read_rows(tmp_path)


# -------------------- the run


def test_a_row_makes_its_pictures_and_a_record_of_their_request(write, tmp_path):
    file = write(row(), row(name="pair", image=["dog.png", "car.png"], target=["dog", "car"], seed=5, num_images=2))
    pipeline = FakePipeline()
    summary = run(pipeline, file, tmp_path / "new" / "out", loaded={"model": "toy"})
    assert summary == batch.Summary(made=2, skipped=0, failed=0)
    assert pipeline.calls == [
        ([tmp_path / "dog.png"], "a dog", ("dog",), {"seed": 0, "num_images": 1, "steps": 2}),
        ([tmp_path / "dog.png", tmp_path / "car.png"], "a dog", ("dog", "car"),
         {"seed": 5, "num_images": 2, "steps": 2})]
    out = tmp_path / "new" / "out"
    assert names(out) == ["0001.json", "0001.png", "pair-0.png", "pair-1.png", "pair.json"]
    record = json.loads((out / "pair.json").read_text())
    assert [reference["file"] for reference in record.pop("references")] == ["dog.png", "car.png"]
    assert record == {"prompt": "a dog", "targets": ["dog", "car"], "model": "toy",
                      "options": {"seed": 5, "steps": 2, "num_images": 2}, "files": ["pair-0.png", "pair-1.png"],
                      "source": {}}


def test_a_second_run_makes_nothing(write, tmp_path):
    file, pipeline = write(row(), row(seed=1)), FakePipeline()
    run(FakePipeline(), file, tmp_path / "out")
    assert run(pipeline, file, tmp_path / "out") == batch.Summary(made=0, skipped=2, failed=0)
    assert not pipeline.calls


def test_rows_may_be_added_and_lost_pictures_come_back(write, tmp_path):
    rows, out = [row(prompt="one"), row(prompt="two", num_images=2)], tmp_path / "out"
    run(FakePipeline(), write(*rows), out)
    before = contents(out)
    (out / "0002-1.png").unlink()
    pipeline = FakePipeline()
    assert run(pipeline, write(*rows, row(prompt="three")), out) == batch.Summary(made=2, skipped=1, failed=0)
    assert pipeline.prompts == ["two", "three"]
    assert contents(out).items() > before.items()


@pytest.mark.parametrize("changes, options, message", [
    ({"prompt": "a cat"}, {}, "other prompt"),
    ({"seed": 1}, {}, "other options"),
    ({"image": "car.png"}, {}, "other references"),
    ({}, {"options": OPTIONS | {"steps": 3}}, "other options"),
    ({}, {"loaded": {"model": "large"}}, "other model"),
    ({}, {"loaded": {"model": "mini", "adapter": "mine"}}, "other adapter"),
    ({}, {"loaded": {"model": "mini", "content": {"UNet": "0123"}}}, "other content"),
])
def test_results_of_another_request_are_not_touched(write, tmp_path, changes, options, message):
    out, pipeline = tmp_path / "out", FakePipeline()
    run(FakePipeline(), write(row()), out)
    before = contents(out)
    with pytest.raises(ValueError, match=f"0001.json holds results of another .*line 1 .*{message}.*another folder"):
        run(pipeline, write(row(**changes), row()), out, **options)
    assert contents(out) == before and not pipeline.calls


def test_a_model_that_was_moved_is_the_same_request(write, tmp_path):
    file, pipeline = write(row()), FakePipeline()
    run(FakePipeline(), file, tmp_path / "out", source={"model": "here"})
    assert json.loads((tmp_path / "out" / "0001.json").read_text())["source"] == {"model": "here"}
    assert run(pipeline, file, tmp_path / "out", source={"model": "there"}).skipped == 1 and not pipeline.calls


def test_too_little_memory_fails_a_row(write, tmp_path):
    def pipeline(references, prompt, targets, **options):
        if prompt == "large":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand a table")
        return FakePipeline()(references, prompt, targets, **options)

    said = []
    summary = run(pipeline, write(row(prompt="large"), row()), tmp_path / "out", report=said.append)
    assert summary == batch.Summary(made=1, skipped=0, failed=1)
    assert "memory is too small (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): choose a smaller" in said[0]


def test_a_reference_that_was_painted_over_is_another_request(write, tmp_path):
    file = write(row())
    run(FakePipeline(), file, tmp_path / "out")
    shutil.copy(tmp_path / "car.png", tmp_path / "dog.png")
    with pytest.raises(ValueError, match="other references"):
        run(FakePipeline(), file, tmp_path / "out")


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "nonsense", ""])
def test_a_json_file_of_someone_else_is_not_touched(write, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0001.json").write_text(text)
    with pytest.raises(ValueError, match="0001.json holds results of another request"):
        run(FakePipeline(), write(row()), tmp_path / "out")
    assert contents(tmp_path / "out") == {"0001.json": text.encode()}


def test_two_rows_must_not_make_the_same_picture(write, tmp_path):
    pipeline = FakePipeline()
    with pytest.raises(ValueError, match="line 1 and .*line 2 would both write a-0.png"):
        run(pipeline, write(row(name="A", num_images=2), row(name="a-0")), tmp_path / "out")
    assert not pipeline.calls and not (tmp_path / "out").exists()


def test_a_row_that_fails_is_told_and_the_others_go_on(write, tmp_path):
    file, told = write(row(), row(prompt="a zebra"), row(seed=2)), []
    for made, skipped in ((2, 0), (0, 2)):
        summary = run(FakePipeline(), file, tmp_path / "out", report=told.append)
        assert summary == batch.Summary(made=made, skipped=skipped, failed=1)
    assert told == 2 * [f"{file}, line 2 (0002) failed: what is a zebra?"]
    assert names(tmp_path / "out") == ["0001.json", "0001.png", "0003.json", "0003.png"]


def test_a_full_disk_stops_the_run(write, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    pipeline = FakePipeline()
    with pytest.raises(OSError, match="no space left"):
        run(pipeline, write(row(), row()), tmp_path / "out")
    assert len(pipeline.calls) == 1 and not names(tmp_path / "out")


def test_out_must_not_be_a_file(write, tmp_path):
    pipeline = FakePipeline()
    with pytest.raises(OSError, match="dog.png"):
        run(pipeline, write(row()), tmp_path / "dog.png")
    assert not pipeline.calls


def test_a_stopped_run_goes_on_where_it_was(write, tmp_path):
    file = write(row(prompt="one"), row(prompt="two"), row(prompt="three"))
    with pytest.raises(KeyboardInterrupt):
        run(FakePipeline(stop_at="two"), file, tmp_path / "out")
    pipeline = FakePipeline()
    assert run(pipeline, file, tmp_path / "out") == batch.Summary(made=2, skipped=1, failed=0)
    assert pipeline.prompts == ["two", "three"]


def test_a_folder_has_one_run_at_a_time(write, tmp_path):
    file, out, second = write(row()), tmp_path / "out", FakePipeline()

    def first(*arguments, **options):
        with pytest.raises(BlockingIOError, match="out is in use by another run .* wait for it"):
            run(second, file, out)
        return FakePipeline()(*arguments, **options)

    assert run(first, file, out).made == 1 and not second.calls
    assert run(second, file, out).skipped == 1
    assert names(out) == ["0001.json", "0001.png"]


# Tells the parent when it stands between writing and renaming a file, the moment that leaves most behind.
KILLED = """
import sys, time
from pathlib import Path
from realcustom_jax import batch, errors, files
from test_batch import OPTIONS, FakePipeline

rename = files.os.replace

def stopping(source, target):
    if Path(target).name == sys.argv[3]:
        print("now", flush=True)
        time.sleep(600)
    rename(source, target)

files.os.replace = stopping
batch.run_batch(FakePipeline(), batch.read_rows(sys.argv[1]), Path(sys.argv[2]), options=OPTIONS)
"""


def test_a_run_after_kill_9_makes_the_rest_and_leaves_no_partial_file(write, tmp_path, monkeypatch):
    prompts, out = ["one", "two", "three", "four"], tmp_path / "out"
    file = write(*[row(prompt=prompt, seed=seed, num_images=2) for seed, prompt in enumerate(prompts)])
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    command = [sys.executable, "-c", KILLED, str(file), str(out), "0003-1.png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "now\n"
        with pytest.raises(BlockingIOError, match="in use by another run"):
            run(FakePipeline(), file, out)
        process.kill()
    assert process.returncode == -9
    whole = ["0001-0.png", "0001-1.png", "0001.json", "0002-0.png", "0002-1.png", "0002.json", "0003-0.png"]
    assert names(out)[1:] == whole and names(out)[0].startswith(".0003-1.png.")
    times = {name: (out / name).stat().st_mtime_ns for name in whole[:-1]}

    pipeline = FakePipeline()
    assert run(pipeline, file, out) == batch.Summary(made=2, skipped=2, failed=0)
    assert pipeline.prompts == ["three", "four"]
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    run(FakePipeline(), file, tmp_path / "at once")
    assert contents(out) == contents(tmp_path / "at once")
