"""Building datasets: what stops it keeps what is finished, damage is mended alone, and a start reads no record."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest
from fake_source import LINES, FakePart, FakeSource, Picture, hidden, state, wheres
from PIL import Image

from realcustom_jax.data import build as building
from realcustom_jax.data import dataset as datasets
from realcustom_jax.data import shards
from realcustom_jax.data.__main__ import main
from realcustom_jax.data.build import build
from realcustom_jax.data.dataset import Dataset
from realcustom_jax.data.sources import open_source


def test_a_dataset_is_its_rows_in_their_order_and_is_found_again(tmp_path):
    built = build(FakeSource(), tmp_path / "made", workers=1, side=512)
    assert wheres(built) == LINES and len(built.index) == 8 and built.side == 512 and built.identity == "fake"
    assert built.record(5).pictures == [Picture(5).read(), Picture(6).read()]
    before = state(tmp_path / "made")
    assert len(before) == 4 and not hidden(tmp_path / "made")
    assert wheres(build(FakeSource(), tmp_path / "made", workers=1)) == LINES
    assert state(tmp_path / "made") == before
    with pytest.raises(IndexError):
        built.record(8)
    with pytest.raises(IndexError):
        built.record(-1)


def test_tfds_reads_it(tmp_path):
    import tensorflow_datasets as tfds

    build(FakeSource(broken=(0, 1)), tmp_path, workers=1, max_broken=2)  # one of the shards is empty
    read = tfds.builder_from_directory(tmp_path).as_data_source("train")
    assert [read[i]["where"].decode() for i in range(len(read))] == LINES[2:]
    assert [picture.shape for picture in read[3]["pictures"]] == [(12, 16, 3)] * 2
    assert "tensorflow" not in sys.modules


def test_broken_rows_cost_themselves_and_allowing_them_builds_nothing_again(tmp_path, capsys):
    source, before = FakeSource(broken=(2, 7)), None
    for allowed in (0, 1):
        with pytest.raises(ValueError, match=(
                rf"^2 broken row\(s\), and max_broken is {allowed}: line 3: it makes no sense; line 8: it makes no "
                r"sense. Mend them or raise max_broken.$")):
            build(source, tmp_path, workers=1, max_broken=allowed)
        before = before or state(tmp_path)
        assert state(tmp_path) == before
    assert "skipped, line 3: it makes no sense" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="not finished"):
        Dataset(tmp_path)
    built = build(source, tmp_path, workers=1, max_broken=2)
    assert wheres(built) == [LINES[i] for i in (0, 1, 3, 4, 5, 6)] and state(tmp_path) == before
    with pytest.raises(ValueError, match="2 broken"):
        build(source, tmp_path, workers=1, max_broken=1)


def test_what_a_broken_row_says_can_be_printed_anywhere(tmp_path, monkeypatch):
    """A name out of a manifest holds what a terminal obeys, or what no encoding has."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    folder, row = tmp_path / "in", {"target": "a.png", "caption": "a dog", "word": "dog"}
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, (
        row | {"box": [0, 0, 8, 8]}, row | {"reference": "\x1b[31m\n\ud800\u00e9.png"}))))
    monkeypatch.setattr(sys, "stdout", said)
    assert len(build(open_source(str(folder)), tmp_path / "out", workers=1, max_broken=1)) == 1
    said.flush()
    assert rb"skipped, line 2: the file " in said.buffer.getvalue()
    assert rb"/in/\x1b[31m \ud800\xe9.png does not exist" in said.buffer.getvalue()


def test_many_broken_rows_are_counted_and_some_are_named(tmp_path, capsys):
    class Long(FakeSource):
        def parts(self):
            return [FakePart(0, 40, tuple(range(1, 40)))]

    with pytest.raises(ValueError, match=r"^39 broken row\(s\), .*; line 11: [^;]*; …. Mend"):
        build(Long(), tmp_path, workers=1)
    assert capsys.readouterr().out.count("skipped, line") == 10


def test_a_source_without_a_good_row_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no row that can be used"):
        build(FakeSource(broken=range(8)), tmp_path, workers=1, max_broken=8)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Dataset(tmp_path)


def test_a_source_without_parts_is_the_same_sentence(tmp_path):
    class Empty(FakeSource):
        def parts(self):
            return []

    with pytest.raises(ValueError, match="no row that can be used"):
        build(Empty(), tmp_path, workers=1)


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "empty", "no marker", "marker cut", "marker flipped",
                                    "of another shard"])
def test_a_damaged_shard_is_written_again_alone(tmp_path, damage):
    folder = tmp_path / "made"
    build(FakeSource(), folder, workers=1)
    before = state(folder)
    name, marker = sorted(before)[1], folder / "done" / "00001.npz"
    (shard, content) = folder / name, bytearray(before[name][2])
    if damage == "flipped":
        content[70_000] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:65_536])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "deleted":
        shard.unlink()
    elif damage == "of another shard":
        shard.write_bytes(before[sorted(before)[2]][2])
    elif damage == "no marker":
        marker.unlink()
    else:
        content = bytearray(marker.read_bytes())
        content[len(content) // 2] ^= 1
        marker.write_bytes(content if damage == "marker flipped" else content[:len(content) // 2])
    assert wheres(build(FakeSource(), folder, workers=1)) == LINES
    after = state(folder)
    assert {name for name in before if before[name] != after[name]} <= {name}
    assert after[name][2] == before[name][2]


def test_a_dataset_that_was_copied_is_taken_and_looked_through_once(tmp_path, monkeypatch):
    build(FakeSource(), tmp_path / "made", workers=1)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "made", copy, copy_function=shutil.copyfile)
    before = state(copy)
    build(FakeSource(), copy, workers=1)
    assert state(copy) == before
    monkeypatch.setattr(shards.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    build(FakeSource(), copy, workers=1)


@pytest.mark.parametrize("name", ["index.npz", "dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_what_is_written_at_the_end_is_written_again(tmp_path, name, damage):
    build(FakeSource(), tmp_path, workers=1)
    before, content = state(tmp_path), (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert wheres(build(FakeSource(), tmp_path, workers=1)) == LINES
    assert (tmp_path / name).read_bytes() == content and state(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    build(FakeSource(), tmp_path / "made", workers=1)
    before = state(tmp_path / "made")
    with pytest.raises(ValueError, match="holds the dataset of other content"):
        build(FakeSource(name="another"), tmp_path / "made", workers=1)
    assert state(tmp_path / "made") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="'holiday.jpg'"):
        build(FakeSource(), tmp_path / "full", workers=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["holiday.jpg"]
    (tmp_path / "made" / "identity.json").write_text("{")
    with pytest.raises(ValueError, match="identity.json.* damaged"):
        build(FakeSource(), tmp_path / "made", workers=1)
    (tmp_path / "made" / "identity.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has the format 99"):
        Dataset(tmp_path / "made")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; expected a folder"):
        build(FakeSource(), tmp_path / "file", workers=1)


def test_a_dataset_is_not_written_into_its_own_pictures(tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "toys")
    with pytest.raises(ValueError, match="into its own pictures"):
        building.check_outside(str(tmp_path / "link" / "x"), str(tmp_path / "toys"))
    for folder, source in (("a/b", "a"), ("a", "a"), ("gs://x/a/b", "gs://x/a"), ("./a/b", os.path.abspath("a"))):
        with pytest.raises(ValueError, match="into its own pictures"):
            building.check_outside(folder, source)
    for folder, source in (("ab", "a"), ("b", "a"), ("gs://x/a", "x/a")):
        building.check_outside(folder, source)


def test_hosts_build_their_parts_and_the_last_one_finishes(tmp_path):
    assert build(FakeSource(), tmp_path, workers=1, host=(1, 3)) is None
    assert len(state(tmp_path)) == 1
    assert build(FakeSource(), tmp_path, workers=1, host=(0, 3)) is None
    before = state(tmp_path)
    assert wheres(build(FakeSource(), tmp_path, workers=1, host=(2, 3))) == LINES
    assert before.items() <= state(tmp_path).items()
    for host in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="ost"):
            build(FakeSource(), tmp_path, workers=1, host=host)


@pytest.mark.parametrize("given", [{"workers": 0}, {"max_broken": -1}])
def test_numbers_that_make_no_sense_are_named(tmp_path, given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is"):
        build(FakeSource(), tmp_path / "made", **given)
    assert not (tmp_path / "made").exists()


def test_ctrl_c_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(FakeSource(does={1: "interrupted"}), tmp_path, workers=1)
    assert not hidden(tmp_path) and len(state(tmp_path)) == 1


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """A file that cannot grow, as a disk that is full, at the second shard."""
    real = shards.ArrayRecordWriter
    monkeypatch.setattr(shards, "ArrayRecordWriter",
                        lambda path, options: real("/dev/full" if "00002-of" in path else path, options))
    with pytest.raises(OSError, match=r"The disk of .* is full \(.*No space left.* is kept\. Make room"):
        build(FakeSource(), tmp_path, workers=1)
    before = state(tmp_path)
    assert len(before) == 2 and not hidden(tmp_path)
    monkeypatch.setattr(shards, "ArrayRecordWriter", lambda path, options: real(f"{path}/nowhere", options))
    with pytest.raises(OSError, match="00002-of-00004 cannot be written .*is kept: mend what is in the way"):
        build(FakeSource(), tmp_path, workers=1)
    assert state(tmp_path) == before and not hidden(tmp_path)
    monkeypatch.undo()
    assert wheres(build(FakeSource(), tmp_path, workers=1)) == LINES and before.items() <= state(tmp_path).items()


def test_what_a_killed_builder_left_behind_goes_and_what_a_living_one_writes_stays(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    machine = os.uname().nodename
    dead, alive, elsewhere, old = (tmp_path / f".building@{name}@x" for name in (
        f"{machine}@{ended.stdout.strip()}", f"{machine}@{os.getppid()}", "other@1", "another@1"))
    for folder in (dead, alive, elsewhere, old):
        folder.mkdir()
        (folder / "shard").write_bytes(b"x")
    os.utime(old, (0, 0))
    build(FakeSource(), tmp_path, workers=1)
    assert {path.name for path in tmp_path.glob(".*")} == {alive.name, elsewhere.name}


@pytest.mark.slow
def test_a_large_manifest_starts_without_reading_a_record(tmp_path, monkeypatch):
    """20,000 rows that name the same few pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(Picture(i).read())
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps({
        "target": f"{i % 4}.png", "caption": f"a dog number {i}", "word": "dog", "reference": f"{(i + 1) % 4}.png"})
        for i in range(20_000)))
    build(open_source(str(folder)), tmp_path / "made", workers=1)
    monkeypatch.setattr(shards, "write_part", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(datasets, "read_record", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(datasets, "ArrayRecordReader", lambda *_, **__: pytest.fail("opened"))
    begun = time.monotonic()
    found = build(open_source(str(folder)), tmp_path / "made", workers=1)
    assert len(found) == 20_000 and time.monotonic() - begun < 3


def test_a_dataset_is_read_by_threads_and_processes(tmp_path):
    built = build(FakeSource(), tmp_path, workers=1)
    assert wheres(pickle.loads(pickle.dumps(built))) == LINES
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_where, [(built, i) for i in range(8)]) == LINES


def _where(task):
    dataset, row = task
    return dataset.record(row).where


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_OPEN", 2)
    built = build(FakeSource(), tmp_path, workers=1)
    assert wheres(built) == wheres(built) == LINES
    assert len(built._readers) == 2


def test_damage_that_is_found_while_reading_names_the_shard(tmp_path):
    build(FakeSource(), tmp_path, workers=1)
    shard = sorted(tmp_path.glob("*array_record*"))[1]
    content = bytearray(shard.read_bytes())
    at = content.find(Picture(4).read()[-40:])
    content[at + 20] ^= 1
    shard.write_bytes(content)
    built = Dataset(tmp_path)
    assert built.record(1).where == "line 2"
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        built.record(3)
    shard.write_bytes(content[:100])
    with pytest.raises(FileNotFoundError, match=f"1 of the 4 shards .* such as {shard.name}"):
        Dataset(tmp_path)


def test_what_is_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset in"):
        Dataset(tmp_path)
    assert main(["show", str(tmp_path)]) == 2


@pytest.mark.parametrize("arguments, words", [
    (["build", "{}", "--out", ""], "error: --out is empty; expected the folder"),
    (["show", ""], "error: DIR is empty; expected the folder"),
    (["build", "", "--out", "made"], "The path of the training data is empty"),
])
def test_an_empty_path_is_not_the_folder_in_which_the_command_runs(tmp_path, monkeypatch, capsys, arguments, words):
    """As an unset variable of a shell gives it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "here").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "manifest.jsonl").write_text(
        '{"target": "a.png", "caption": "a dog", "word": "dog", "box": [0, 0, 8, 8]}')
    monkeypatch.chdir(tmp_path / "here")
    assert main([argument.format(tmp_path / "in") for argument in arguments]) == 2
    assert words in capsys.readouterr().err and not list((tmp_path / "here").iterdir())


def test_the_command_builds_and_shows(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (200, 100), "red").save(folder / "a.png")
    Image.new("L", (200, 100), 255).save(folder / "mask.png")
    lines = [{"target": "a.png", "caption": "a dog", "word": "dog", "mask": "mask.png", "reference": "a.png"},
             {"target": "gone.png", "caption": "a dog", "word": "dog", "reference": "a.png"}]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = str(tmp_path / "made")
    assert main(["build", str(folder), "--out", out]) == 2
    assert "1 broken row(s), and max_broken is 0: line 2: " in capsys.readouterr().err
    assert main(["show", out]) == 0
    assert "not finished" in capsys.readouterr().out
    assert main(["build", str(folder), "--out", out, "--max-broken", "1", "--side", "512"]) == 0
    assert "1 rows" in capsys.readouterr().out
    assert main(["show", out]) == 0
    said = capsys.readouterr().out
    for words in ("1 rows in 1 shards", "side 512", "2:1 1", "cut out of the target 1, placed anew 1, other pictures 1",
                  "broken rows: 1\n  line 2: "):
        assert words in said
    assert "not finished" not in said
    assert main(["build", str(folder), "--out", str(folder / "made")]) == 2
    assert "into its own pictures" in capsys.readouterr().err
    assert main(["build", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert main(["build", str(folder), "--out", str(tmp_path / "x"), "--side", "1000"]) == 2
    assert "side is 1000" in capsys.readouterr().err and not (tmp_path / "x").exists()
    with pytest.raises(SystemExit):
        main(["build", str(folder), "--out", out, "--host", "2/2"])
