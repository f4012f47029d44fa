"""The study's rows: which are made, in which order they are read, and what is compared."""

import json

import pytest

from benchmarks.experiments import study
from benchmarks.experiments.study_report import differences, write_report

OF_ALL = {"num_subjects": 2, "seed": 1, "guidance_scale": 5.0}


def write_row(folder, group, name, similarity, of_all=OF_ALL, task="one"):
    setting, _, file = next(row for row in study.row_files(folder, [group]) if (row[0].name, row[1]) == (name, task))
    scores = dict.fromkeys(("subject_similarity", "text_controllability", "mask_auc"), similarity)
    file.write_text(json.dumps({"group": group, "name": setting.name, "task": task, "of_all": of_all,
                                "subjects": [0, 0, 1, 1], "scores": scores}))


def test_every_row_has_a_file_of_its_own(tmp_path):
    files = [file for *_, file in study.row_files(tmp_path)]
    assert len(files) == len(set(files)) > 60
    assert {setting.group for setting, *_ in study.row_files(tmp_path, ["scope", "mask"])} == {"scope", "mask"}


def test_what_is_made_is_not_pending_nor_what_has_no_adapter(tmp_path):
    write_row(tmp_path, "scope", "soft 0.1", [0, 0, 1, 1])
    (tmp_path / "adapters" / "anew" / "paper").mkdir(parents=True)
    names = [(setting.name, task) for setting, task, _ in study.pending(tmp_path, tmp_path / "adapters",
                                                                        ["scope", "anew", "training"])]
    assert ("soft 0.1", "one") not in names and ("soft 0.1", "bystander") in names
    assert ("paper", "one") in names and ("highres", "one") not in names and ("masked", "one") not in names
    assert all(setting.adapter is None for setting, *_ in study.pending(tmp_path, None, None))


def test_rows_are_read_in_the_order_of_the_study_and_written_so(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("soft 1.0", "soft 0.1", "binary 0.1", "soft 0.25"):
        write_row(tmp_path, "scope", name, [0, 0, 1, 1])
    assert [row["name"] for row in study.read_rows(tmp_path)] == ["soft 0.1", "soft 0.25", "soft 1.0", "binary 0.1"]
    page = tmp_path / "page.md"
    page.write_text("above <!-- tables --> old <!-- end of tables --> below")
    write_report(study.read_rows(tmp_path), page)
    text = page.read_text()
    assert text.startswith("above") and text.endswith("below") and "old" not in text
    assert text.index("| soft 0.25 |") < text.index("| soft 1.0 |") < text.index("| binary 0.1 |")
    assert (tmp_path / "evidence_plane.png").is_file() and (tmp_path / "evidence_scope.png").is_file()


def test_differences_are_paired_over_subjects(tmp_path):
    write_row(tmp_path, "scope", "soft 0.1", [0.0, 0.2, 0.6, 0.8])
    write_row(tmp_path, "scope", "soft 0.25", [0.2, 0.4, 0.8, 1.0])
    write_row(tmp_path, "scope", "soft 0.4", [0.5, 0.7, 0.1, 0.3])
    write_row(tmp_path, "freeze", "from step 6", [0.5, 0.7, 0.1, 0.3], task="bystander")  # has no such base
    lines = differences(study.read_rows(tmp_path, ["scope"]), "soft 0.1").splitlines()
    assert len(lines) == 2 + 2 * 3
    # Every case gains the same, so that the interval has no width, however much the subjects differ.
    assert "| soft 0.25 | one | subject similarity | +0.200 | [0.200, 0.200] | yes |" in lines
    assert "| soft 0.4 | one | subject similarity | +0.000 | [-0.500, 0.500] |  |" in lines
    with pytest.raises(ValueError, match=r"No row is called 'soft'; there are from step 6, soft 0.1, soft 0.25, "):
        differences(study.read_rows(tmp_path), "soft")


@pytest.mark.parametrize("name, value", [("num_subjects", 24), ("seed", 0), ("guidance_scale", 3.5)])
def test_rows_of_another_study_are_refused(tmp_path, name, value):
    write_row(tmp_path, "scope", "soft 0.1", [0, 0, 1, 1])
    study.check_same(tmp_path, OF_ALL)
    with pytest.raises(ValueError, match=f"holds rows of another study: their {name} is {OF_ALL[name]}, not {value}; "):
        study.check_same(tmp_path, OF_ALL | {name: value})
