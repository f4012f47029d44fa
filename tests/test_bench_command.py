"""The command `bench`: what it makes, goes on with after a kill, and shares among processes."""

import json
import os
import re
import signal
import time

import pytest
from PIL import Image
from test_batch import FakePipeline
from test_score_command import FakeScorer

from realcustom_jax import files
from realcustom_jax.data.sprites.captions import VOCABULARY
from realcustom_jax.evaluation import __main__ as evaluation
from realcustom_jax.evaluation.bench import command
from realcustom_jax.evaluation.bench.run import Bench
from realcustom_jax.evaluation.miniature.judge import save_judge
from realcustom_jax.evaluation.protocols import Protocol
from realcustom_jax.evaluation.rows import BenchmarkRow, Subject

import fresh_process
from mini_bundle import SMALL_JUDGE, judge_params, write_mini_bundle

REPORTS = "scores.json", "scores.csv", "report.md", "rows.jsonl", "best_and_worst.png"
PRESET = {"solver": "ddim", "steps": 25, "guidance_scale": 3.5}


@pytest.fixture
def rows(tmp_path):
    """Six rows of two subjects, the last of which asks for two pictures."""
    found = []
    for name, red in (("dog6", 200), ("cat", 20)):
        reference = tmp_path / f"{name}.png"
        Image.new("RGB", (8, 8), (red, 0, 0)).save(reference)
        subject = Subject(name, name.rstrip("6"), reference, (reference,))
        found += [BenchmarkRow(f"{name}-{i}", f"a {subject.phrase} {i}", (subject,), name, seed=i, options={"steps": 5})
                  for i in range(3)]
    found[-1] = BenchmarkRow("cat-2", "a cat 2", found[-1].subjects, "cat", options={"num_images": 2},
                             scored_prompt="a photo of a cat")
    return found


def bench(out, **changes):
    values = {"benchmark": "dreambench", "protocol": Protocol("uno", "UNO", "somewhere", (), ()), "out": out,
              "options": {"solver": "ddim"}, "identity": {"content": {"UNet": "1"}, "preset": PRESET},
              "source": {"model": "/models/mini"}}
    return Bench(**values | changes)


def run(out, rows, pipeline=None, scorer=None, **changes):
    return bench(out, **changes).run(pipeline or FakePipeline(), rows, scorer or FakeScorer(), pytest.fail)


def reports(out):
    return {name: (out / name).read_bytes() for name in REPORTS}


class StoppingScorer(FakeScorer):
    """Counts its pictures; Ctrl-C comes at one of them."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def scores(self, row):
        if row.name == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(row.name)
        return super().scores(row)


# -------------------- what is made


def test_rows_become_calls_pictures_scores_and_reports(rows, tmp_path):
    pipeline, out = FakePipeline(), tmp_path / "out"
    report = run(out, rows, pipeline)
    references, prompt, targets, options = pipeline.calls[1]
    assert (references, prompt, targets) == ([tmp_path / "dog6.png"], "a dog 1", ("dog",))
    assert options == {"seed": 1, "num_images": 1, "steps": 5, "solver": "ddim"}
    assert [row["name"] for row in report["rows"]] == [*[f"dog6-{i}" for i in range(3)], "cat-0", "cat-1", "cat-2-0",
                                                       "cat-2-1"]
    assert report["rows"][-1]["picture"] == "pictures/cat-2-1.png" and report["sizes"] == ["8 x 8"]
    assert report["subjects"]["cat"]["rows"] == 4 and report["metrics"]["clip_t"]["subjects"] == 2
    assert json.loads((out / "scores.json").read_text()) == report
    # Nothing of this machine, and of no time.
    assert str(tmp_path) not in "".join((out / name).read_text() for name in REPORTS[:4])
    line = json.loads((out / "rows.jsonl").read_text().splitlines()[-1])
    assert line == {"picture": "cat-2-1.png", "prompt": "a photo of a cat", "name": "cat-2-1", "subject": "cat",
                    "references": [["../../cat.png"]]}


def test_the_page_says_how_it_was_made_and_whose_figures_stand_beside_it(rows, tmp_path):
    run(tmp_path / "out", rows, benchmark="uno_single")
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.startswith("# uno_single, scored by uno\n\n- Model: mini; solver ddim, steps 25, guidance_scale 3.5.\n"
                           "- Pictures: 7 of 2 subjects or groups of them, 8 x 8 pixels, seeds 0, 1, 2.\n")
    # Ours are CLIP-T and CLIP-I; of DINO there are only published figures.
    assert "| | CLIP-T | ± | CLIP-I | ± | DINO-I | ± |" in page
    assert "| RealCustom++ | 0.318 | | 0.794 | | 0.702 | |" in page
    assert "measured by the authors of UNO" in page and "- dino_i is skipped: no weights." in page


def test_another_run_makes_and_scores_nothing_again(rows, tmp_path):
    run(tmp_path / "out", rows)
    before = reports(tmp_path / "out")
    pipeline, scorer = FakePipeline(), StoppingScorer()
    run(tmp_path / "out", rows, pipeline, scorer)
    assert not pipeline.calls and not scorer.seen and reports(tmp_path / "out") == before


def test_a_run_that_was_stopped_while_it_made_or_scored_goes_on_and_reports_the_same(rows, tmp_path):
    run(tmp_path / "at once", rows)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, rows, FakePipeline(stop_at="a cat 0"))
    pipeline, scorer = FakePipeline(), StoppingScorer(stop_at="cat-1")
    with pytest.raises(KeyboardInterrupt):
        run(out, rows, pipeline, scorer)
    assert pipeline.prompts == ["a cat 0", "a cat 1", "a cat 2"] and scorer.seen[-1] == "cat-0"
    assert not (out / "scores.json").exists()
    (out / "scored" / "uno" / ".cat-1.json.abcd_123").write_text("{")  # what kill -9 may leave
    scorer = StoppingScorer()
    run(out, rows, FakePipeline(stop_at="a dog 0"), scorer)
    assert scorer.seen == ["cat-1", "cat-2-0", "cat-2-1"] and reports(out) == reports(tmp_path / "at once")
    assert not list((out / "scored" / "uno").glob(".*"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_process_that_is_last_writes_what_one_alone_writes(rows, tmp_path, order):
    run(tmp_path / "alone", rows)
    out, pipelines = tmp_path / "out", [FakePipeline(), FakePipeline()]
    first, last = order
    assert run(out, rows, pipelines[first], share=(first, 2)) is None and not (out / "scores.json").exists()
    assert run(out, rows, pipelines[last], share=(last, 2)) is not None
    assert reports(out) == reports(tmp_path / "alone")
    assert pipelines[0].prompts == ["a dog 0", "a dog 2", "a cat 1"]
    assert pipelines[1].prompts == ["a dog 1", "a cat 0", "a cat 2"]


def test_a_picture_that_was_painted_over_and_another_network_are_scored_anew(rows, tmp_path):
    run(tmp_path / "out", rows)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "out" / "pictures" / "cat-1.png")
    scorer = StoppingScorer()
    report = run(tmp_path / "out", rows, scorer=scorer)
    assert scorer.seen == ["cat-1"] and report["rows"][4]["clip_t"] == 1.0
    other = StoppingScorer()
    other.networks = {"clip": {"architecture": "another"}}
    run(tmp_path / "out", rows, scorer=other)
    assert len(other.seen) == 7


def test_more_rows_may_be_asked_for_later(rows, tmp_path):
    run(tmp_path / "out", rows[:2])
    pipeline = FakePipeline()
    assert len(run(tmp_path / "out", rows, pipeline)["rows"]) == 7 and len(pipeline.calls) == 4


# -------------------- what is refused


def test_pictures_of_another_model_are_refused(rows, tmp_path):
    run(tmp_path / "out", rows)
    with pytest.raises(ValueError, match="another request than dreambench, row dog6-0 .other content"):
        run(tmp_path / "out", rows, identity={"content": {"UNet": "2"}, "preset": PRESET})


def test_pictures_of_another_model_by_another_process_are_refused(rows, tmp_path):
    run(tmp_path / "out", rows, share=(0, 2), identity={"content": {"UNet": "2"}, "preset": PRESET})
    with pytest.raises(ValueError, match="another request than dreambench, row dog6-0 .other content"):
        run(tmp_path / "out", rows, share=(1, 2))
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_folder_of_another_benchmark_or_of_something_else_is_refused(rows, tmp_path):
    run(tmp_path / "out", rows)
    with pytest.raises(ValueError, match="holds pictures of the benchmark 'dreambench', not of 'uno_single'"):
        run(tmp_path / "out", rows, benchmark="uno_single")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("")
    with pytest.raises(ValueError, match="holds 'a.png' and is no folder of this command"):
        run(tmp_path / "photos", rows)
    assert os.listdir(tmp_path / "photos") == ["a.png"]
    (tmp_path / "out" / "benchmark.json").write_text("[]")
    with pytest.raises(ValueError, match="benchmark.json was not written by this command"):
        run(tmp_path / "out", rows)


def test_nothing_is_reported_where_a_row_cannot_be_made(rows, tmp_path):
    told = []
    rows[2] = BenchmarkRow("dog6-2", "a zebra", rows[2].subjects, "dog6")
    with pytest.raises(ValueError, match="1 of 6 rows could not be made"):
        bench(tmp_path / "out").run(FakePipeline(), rows, FakeScorer(), told.append)
    assert told == ["dreambench, row dog6-2 (dog6-2) failed: what is a zebra?"]
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_share_has_one_process_at_a_time(tmp_path):
    with files.user_of_share(tmp_path, 0, 2):
        with files.user_of_share(tmp_path, 1, 2):
            pass
        for number, of, what in ((0, 2, "Share 0/2 of .*"), (0, 1, ".*")):
            with pytest.raises(BlockingIOError, match=f"^{what} is in use"), files.user_of_share(tmp_path, number, of):
                pass
    with files.sole_user(tmp_path), pytest.raises(BlockingIOError, match="in use"), files.user_of_share(tmp_path, 1, 2):
        pass


@pytest.mark.parametrize("arguments, message", [
    ("--benchmark dreamband --protocol uno", "Unknown benchmark 'dreamband'.*did you mean 'dreambench'"),
    ("--benchmark dreambench --data {} --protocol umo", "Unknown protocol 'umo'.*did you mean 'uno'"),
    ("--benchmark dreambench --data {}", "--protocol is missing: whose script scores dreambench"),
    ("--benchmark dreambench --data {} --protocol sprites", "Unknown protocol 'sprites'"),
    ("--benchmark dreambench --protocol uno", "--data is missing: the folder of your copy of DreamBench, from https"),
    ("--benchmark sprites --data {}", "--data is for benchmarks of photographs"),
    ("--benchmark sprites --out {}/file", "file is not a folder that you may write to"),
    ("--benchmark sprites --solver dmp", "Unknown solver 'dmp'"),
    ("--benchmark sprites --steps 0", "steps is 0"),
    ("--benchmark sprites --preset papre", "preset 'papre'.*'paper'"),
    ("--benchmark sprites --model {}/none", "none"),
    ("--benchmark sprites --out {}", "holds 'file' and is no folder of this command"),
    ("--benchmark sprites --protocol xverse", "scores only what a detector finds in the pictures"),
    ("--benchmark sprites --protocol uno", "The protocol uno scores nothing without its networks"),
])
def test_what_cannot_be_used_is_told_before_a_model_loads(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "load_model", pytest.fail)
    (tmp_path / "file").write_text("")
    given = [text.format(tmp_path) for text in arguments.split()]
    assert evaluation.main(["bench", *([] if "--out" in given else ["--out", str(tmp_path / "out")]), *given]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and re.search(message, said), said
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_share_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluation.main(["bench", "--benchmark", "sprites", "--out", str(tmp_path), "--process", "2/2"])
    assert ended.value.code == 2 and "'2/2' is not I/N, such as 0/4" in capsys.readouterr().err


# -------------------- with a model of random weights, in processes of their own

MAIN = "import sys; from realcustom_jax.evaluation.__main__ import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_mini_bundle(tmp_path_factory.mktemp("model"), words=VOCABULARY, length=32)
    save_judge(folder, SMALL_JUDGE, judge_params())
    return folder


def start(model, out, *more):
    return fresh_process.start(MAIN, "bench", "--model", model, "--benchmark", "sprites", "--subjects", 3, "--prompts",
                               2, "--steps", 2, "--out", out, *more)


@pytest.mark.slow
def test_a_kill_loses_one_picture_at_most_and_two_processes_write_what_one_writes(model, tmp_path):
    alone = start(model, tmp_path / "alone")
    assert alone.wait(500) == 0
    together = [start(model, tmp_path / "together", "--process", f"{i}/2") for i in range(2)]
    assert [process.wait(500) for process in together] == [0, 0]
    assert reports(tmp_path / "together") == reports(tmp_path / "alone")

    out = tmp_path / "killed"
    killed = start(model, out)
    while len(list((out / "pictures").glob("*.json"))) < 3:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (out / "scores.json").exists()
    times = {file: file.stat().st_mtime_ns for file in (out / "pictures").glob("[!.]*.json")}
    assert 3 <= len(times) < 6
    assert start(model, out).wait(500) == 0
    assert reports(out) == reports(tmp_path / "alone")
    assert {file: file.stat().st_mtime_ns for file in times} == times
