"""What stands beside the pseudo-words of the evidence page: read, refused, written and drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.experiments import pseudo_words


def score(value: float) -> dict:
    return {"value": value, "ci95": [value - 0.1, value + 0.05]}


def scores(value: float) -> dict:
    return {task: {metric: score(value) for metric in metrics} for task, metrics in pseudo_words.TASKS.items()}


@pytest.fixture
def rows(tmp_path):
    """A folder of two words, and the evaluation's JSON."""
    for keep in (0.0, 0.1):
        (tmp_path / f"keep_{keep:g}.json").write_text(json.dumps(
            {"keep": keep, "steps": 120, "num_subjects": 2, "seed": 0, "moved": [0.4, 0.6], "scores": scores(0.3)}))
    methods = {method: 0.1 * i for i, method in enumerate(("sequential", *pseudo_words.METHODS))}
    tasks = {task: {"methods": {name: scores(value)[task] for name, value in methods.items()}}
             for task in pseudo_words.TASKS}
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"num_subjects": 2, "seed": 0, "tasks": tasks}))
    return tmp_path, file


def test_the_methods_stand_above_the_words_from_the_one_kept_most(rows):
    read = pseudo_words.read_rows(*rows)
    assert [row.name for row in read] == [
        "text only", "described", "no mask", "fused", "pseudo-word, keep 0.1", "pseudo-word, keep 0"]
    lines = pseudo_words.report(read).splitlines()
    assert lines[2] == "| text only |  | " + " | ".join(["0.100 | 0.10"] * 5) + " |"
    assert lines[-1] == "| pseudo-word, keep 0 | 0.50 | " + " | ".join(["0.300 | 0.10"] * 5) + " |"
    assert [row.name for row in pseudo_words.read_rows(rows[0], None)] == [row.name for row in read[4:]]


def test_scores_of_other_cases_are_refused(rows):
    folder, file = rows
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"has seed 1, the words in .* 0; make both with the same\."):
        pseudo_words.read_rows(folder, file)


@pytest.mark.parametrize("name, value", [("steps", 600), ("num_subjects", 24), ("seed", 1)])
def test_a_word_that_was_made_otherwise_is_refused(rows, name, value):
    file, same = rows[0] / "keep_0.json", {"steps": 120, "num_subjects": 2, "seed": 0}
    pseudo_words.check_same(file, same)
    with pytest.raises(ValueError, match=f"was made with {name} {same[name]}, not {value}; give another folder"):
        pseudo_words.check_same(file, same | {name: value})


def test_the_plot_shows_something(rows):
    pytest.importorskip("matplotlib")
    pseudo_words.plot(pseudo_words.read_rows(*rows), rows[0] / "plot.png")
    with Image.open(rows[0] / "plot.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 10
