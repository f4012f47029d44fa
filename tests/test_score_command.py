"""The command `score`: rows of a file, scored by a protocol, and what is said of rows that cannot be."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.conditioning.images import load_image
from realcustom_jax.evaluation import __main__ as evaluation
from realcustom_jax.evaluation.reports import published, sheet, summary, tables
from realcustom_jax.evaluation.rows import ComparedSubject
from realcustom_jax.evaluation.score import rows_file


class FakeScorer:
    """Scores a picture by its red and by how near that is to its first reference's."""

    metrics = ("clip_t", "clip_i")
    skipped = {"dino_i": "dino_i is skipped: no weights."}
    networks = {"clip": {"architecture": "none"}}

    def scores(self, row):
        red, other = (load_image(path)[..., 0].mean() for path in (row.picture, row.subjects[0].references[0]))
        return {"clip_t": red, "clip_i": 1 - abs(red - other)}


@pytest.fixture
def fake_scorer(monkeypatch):
    """Puts the fake in the place of every protocol's scorer; a test changes it."""
    scorer = FakeScorer()
    monkeypatch.setattr("realcustom_jax.evaluation.scorer.open_scorer", lambda protocol, files: scorer)
    return scorer


@pytest.fixture
def write(tmp_path):
    """Writes rows.jsonl (rows as objects or as text) beside pictures 0.png … 5.png and references -> its path."""
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 90)).save(tmp_path / f"{i}.png")
    for name in ("dog", "dog2", "car", "mask"):
        Image.new("RGB", (8, 8), (100, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")

    def write(*rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        return tmp_path / "rows.jsonl"
    return write


def row(picture="0.png", **changes):
    return {"picture": picture, "prompt": "a dog", "references": ["dog.png"], **changes}


def score(file, *more, protocol="kosmos_g"):
    return evaluation.main(["score", "--pictures", str(file.parent), "--rows", str(file), "--protocol", protocol,
                            "--json", str(file.parent / "scores.json"), *more])


# -------------------- the file of rows


def test_rows_are_read_with_paths_relative_to_the_pictures(write, tmp_path):
    file = write(row(), "", row(
        "1.png", name="two", subject="pair", references=[["dog.png", "dog2.png"], [str(tmp_path / "car.png")]],
        reference_masks=[["mask.png", "mask.png"], ["mask.png"]], masks=["mask.png", None],
        boxes=[[[0, 0, 4, 8.5]], None]))
    first, second = rows_file.read_rows(file, tmp_path)
    assert (first.where, first.name, first.picture) == (f"{file}, line 1", "0001", tmp_path / "0.png")
    assert first.subjects == (ComparedSubject((tmp_path / "dog.png",)),)
    assert (second.where, second.name, second.group) == (f"{file}, line 3", "two", "pair")
    mask = tmp_path / "mask.png"
    assert second.subjects == (
        ComparedSubject((tmp_path / "dog.png", tmp_path / "dog2.png"), (mask, mask), mask, ((0.0, 0.0, 4.0, 8.5),)),
        ComparedSubject((tmp_path / "car.png",), (mask,), None, None))


def test_rows_without_a_subject_share_the_luck_of_their_references(write, tmp_path):
    groups = [row.group for row in rows_file.read_rows(write(
        row(references=["dog.png", "car.png"]), row(references=["car.png", "dog.png"]),
        row(references=[["car.png"], ["dog.png"]]), row()), tmp_path)]
    assert groups[0] == groups[1] == groups[2] == "car.png + dog.png"
    assert groups[3] == "dog.png"


@pytest.mark.parametrize("bad, message", [
    ("{", "not valid JSON"),
    ("[1]", "not a JSON object"),
    ({"picture": "0.png"}, "lacks prompt, references"),
    (row(reference=["dog.png"]), "Unknown key 'reference'.*did you mean 'references'"),
    (row(references="dog.png"), "references is 'dog.png', expected a list of paths"),
    (row(references=[]), r"references is \[\]"),
    (row(references=[[]]), r"references is \[\[\]\]"),
    (row(references=["dog.png", ["car.png"]]), "references is"),
    (row(references=["cat.png"]), "the picture '.*cat.png' does not exist"),
    (row(references=["."]), "does not exist"),
    (row("6.png"), "the picture '.*6.png' does not exist"),
    (row("text.png"), "text.png cannot be read .*no picture"),
    (row("a\0.png"), "does not exist"),
    (row(7), "picture is 7, expected the path"),
    (row(prompt=" "), "prompt is ' '"),
    (row(prompt="a dog \ud83d"), "prompt holds half of a character"),
    (row(subject=3), "subject is 3"),
    (row(masks=["mask.png", "mask.png"]), r"masks has 2 entries, expected one for each of 1 subject\(s\)"),
    (row(masks="mask.png"), "masks is 'mask.png', expected a list"),
    (row(masks=["text.png"]), "text.png cannot be read"),
    (row(boxes=[[1, 2, 3, 4]]), "boxes is .* expected for each subject a list of boxes"),
    (row(boxes=[[[4, 0, 4, 8]]]), "boxes is .*x0 < x1"),
    ('{"picture": "0.png", "prompt": "a", "references": ["dog.png"], "boxes": [[[0, 0, NaN, 8]]]}', "boxes is"),
    (row(reference_masks=["mask.png", "mask.png"]), "reference_masks has 2 files, expected one for each of the 1"),
    (row(reference_masks=[["mask.png"], ["mask.png"]]), r"reference_masks has 1 \+ 1 files"),
    (row(name="0001"), "the name '0001' is taken by line 1"),
])
def test_a_bad_line_is_named_and_nothing_is_scored(write, fake_scorer, tmp_path, capsys, bad, message):
    file = write(row(), bad)
    assert score(file) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and not (tmp_path / "scores.json").exists()
    with pytest.raises(ValueError, match=f"(?s)^{file}, line 2: .*{message}"):
        rows_file.read_rows(file, tmp_path)


def test_the_first_ten_of_many_bad_lines_are_named(write, tmp_path):
    with pytest.raises(ValueError, match="has 12 bad lines of 13, .*line 2: .*line 11: [^;]*; …") as told:
        rows_file.read_rows(write(row(), *[row(f"x{i}.png") for i in range(12)]), tmp_path)
    assert "line 12" not in str(told.value)


def test_a_file_without_rows_or_without_a_file_is_an_error(write, tmp_path):
    with pytest.raises(ValueError, match="holds no rows; expected on each line"):
        rows_file.read_rows(write("", " "), tmp_path)
    with pytest.raises(FileNotFoundError, match="no.jsonl cannot be read"):
        rows_file.read_rows(tmp_path / "no.jsonl", tmp_path)


# -------------------- the report


def test_scores_are_reported_by_row_by_subject_and_as_means_with_intervals(write, fake_scorer, tmp_path, capsys):
    file = write(*[row(f"{i}.png", subject="even" if i % 2 == 0 else "odd") for i in range(6)])
    table = tmp_path / "scores.csv"
    assert score(file, "--csv", str(table), "--sheet", str(tmp_path / "sheet.png")) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    red = np.arange(6) * 40 / 255
    assert report["protocol"] == "kosmos_g" and report["skipped"] == fake_scorer.skipped
    assert report["metrics"]["clip_t"]["value"] == pytest.approx(red.mean(), abs=1e-8)
    low, high = report["metrics"]["clip_t"]["ci95"]
    # Both subjects are drawn in half of the resamples, one of them twice in a quarter each.
    assert (low, high) == pytest.approx((red[::2].mean(), red[1::2].mean()), abs=1e-8)
    assert report["metrics"]["clip_t"]["rows"] == 6 and report["metrics"]["clip_t"]["subjects"] == 2
    assert report["subjects"]["odd"] == {
        "rows": 3, "clip_t": pytest.approx(red[1::2].mean()),
        "clip_i": pytest.approx((1 - abs(red - 100 / 255))[1::2].mean())}
    assert report["rows"][1] == {"name": "0002", "picture": "1.png", "subject": "odd",
                                 "clip_t": pytest.approx(40 / 255), "clip_i": pytest.approx(1 - 60 / 255)}
    with open(table, newline="") as lines:
        assert [float(line["clip_t"]) for line in csv.DictReader(lines)] == pytest.approx(red.tolist())
    assert str(tmp_path) not in (tmp_path / "scores.json").read_text()
    assert "| **this run** | 0.392 |" in capsys.readouterr().out
    assert len(load_image(tmp_path / "sheet.png")) == 26 + 6 * 134


def test_parts_of_a_benchmark_have_means_of_their_own(write, fake_scorer, tmp_path, capsys):
    file = write(row(part="animals"), row("1.png", part="animals"), row("5.png", part="things"))
    assert score(file) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    values = {name: part["clip_t"]["value"] for name, part in report["parts"].items()}
    assert values == {"animals": pytest.approx(20 / 255), "things": pytest.approx(200 / 255)}
    assert "| animals | 0.078 |" in capsys.readouterr().out
    assert report["metrics"]["clip_t"]["value"] == pytest.approx(80 / 255)


def test_a_score_that_is_no_number_is_an_error(write, fake_scorer, tmp_path, capsys):
    fake_scorer.scores = lambda row: {"clip_t": float("nan")}
    assert score(write(row())) == 2
    assert "line 1: clip_t of" in capsys.readouterr().err and not (tmp_path / "scores.json").exists()


def test_a_metric_that_some_rows_have_is_the_mean_of_those(write, fake_scorer, tmp_path):
    fake_scorer.scores = lambda row: {"clip_t": 1.0} | ({"clip_i": 0.5} if row.name == "0002" else {})
    assert score(write(row(), row("1.png"))) == 0
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert metrics["clip_i"] == {"value": 0.5, "ci95": [0.5, 0.5], "rows": 1, "subjects": 1}


@pytest.mark.parametrize("changes, message", [
    (("--protocol", "kosmos"), "Unknown protocol 'kosmos'.*did you mean 'kosmos_g'"),
    (("--json", "{}"), "is a folder; give the name of a file"),
    (("--csv", "{}/no/scores.csv"), "the folder .*no does not exist"),
    (("--pictures", "{}/no"), "--pictures .*no is no folder"),
])
def test_what_cannot_be_used_is_told_before_anything_is_scored(write, fake_scorer, tmp_path, capsys, changes, message):
    fake_scorer.scores = pytest.fail
    assert score(write(row()), *[text.format(tmp_path) for text in changes]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and re.search(message, said), said


def test_the_best_and_the_worst_of_many_are_shown_in_their_order(write, fake_scorer, tmp_path):
    rows = rows_file.read_rows(write(*[row(f"{i}.png") for i in range(6)]), tmp_path)
    scored = summary.Scored(rows, [{"clip_t": value} for value in (3, 1, 2, 0, 5, 4)])
    goodness = summary.goodness(fake_scorer, scored)
    assert np.argsort(goodness).tolist() == [3, 1, 2, 0, 5, 4]
    shown = np.asarray(sheet.best_and_worst(scored, goodness, ["clip_t"]))
    # The last column's pictures, whose red is 40 a number, from the best down.
    assert [int(shown[26 + 134 * i + 64, -70, 0]) // 40 for i in range(6)] == [4, 5, 0, 2, 1, 3]


def test_published_figures_are_those_of_the_same_benchmark_and_protocol():
    ours = published.published("dreambench", "dsh_bench")
    assert all("reward" not in name for one in published.FIGURES for name in one.figures)  # normalised, none knows how
    assert [(one.system, one.figures["clip_i"], one.figures["dino_i"]) for one in ours] == [
        ("RealCustom++", 0.794, 0.746)]
    assert published.published("dreambench", "kosmos_g") == ()
    assert [one.figures["dino_i"] for one in published.published("uno_single", "uno")][:2] == [0.702, 0.760]
    entry = {"value": 0.7, "ci95": [0.65, 0.72], "rows": 4, "subjects": 2}
    table = tables.markdown_table({"metrics": {"clip_i": entry, "dino_i": entry | {"subjects": 1}},
                                   "parts": {"one": {"dino_i": entry}}},
                                  [published.Published("X", "", "", {"clip_i": 0.8, "clip_t": 0.3}, "")])
    assert table.splitlines() == [
        "| | CLIP-I | ± | DINO-I | ± | CLIP-T | ± |", "|---|--:|--:|--:|--:|--:|--:|",
        "| **this run** | 0.700 | 0.050 | 0.700 | – | – |  |",
        "| one | – |  | 0.700 | 0.050 | – |  |", "| X | 0.800 | | – | | 0.300 | |"]


@pytest.mark.slow
def test_the_networks_of_a_protocol_are_those_that_its_options_name(write, tmp_path, capsys):
    pytest.importorskip("torch")
    import metric_networks as networks

    from realcustom_jax.evaluation.scorer import open_scorer

    networks.clip_folder(tmp_path / "clip", seed=1)
    networks.clip_folder(tmp_path / "large", seed=2)
    file = write(*[row(f"{i}.png") for i in range(3)])
    given = "--clip", str(tmp_path / "clip"), "--clip-l14", str(tmp_path / "large")
    assert score(file, *given, protocol="dsh_bench") == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert list(report["metrics"]) == ["clip_t", "clip_l_t", "clip_i"]
    assert "clip_l_i is skipped: no weights were given" in report["skipped"]["clip_l_i"]
    assert "\nwarning: The scores are not comparable with published ones of the protocol dsh" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="not comparable"):
        scorer = open_scorer("dsh_bench", {"clip": tmp_path / "clip", "clip_l14": tmp_path / "large"})
    scores = [scorer.scores(one) for one in rows_file.read_rows(file, tmp_path)]
    for name, entry in report["metrics"].items():
        assert entry["value"] == pytest.approx(np.mean([one[name] for one in scores]), abs=1e-6)
    assert report["metrics"]["clip_t"]["value"] != report["metrics"]["clip_l_t"]["value"]
    assert str(tmp_path) not in (tmp_path / "scores.json").read_text()
