"""Mixtures of sources: their files and their mistakes."""

import json

import pytest

from realcustom_jax.data.sources.mixture import MixtureEntry, read_mixture

LIST = [{"path": "a", "weight": 2}, {"path": "gs://b/c", "columns": {"caption": "text"}, "word": "dog"}]


def test_a_mixture_is_a_list_or_a_file_with_one(tmp_path):
    assert read_mixture("some/folder") == (MixtureEntry("some/folder"),)
    first, second = read_mixture(LIST)
    assert first == MixtureEntry("a", 2.0)
    assert second == MixtureEntry("gs://b/c", 1.0, (("caption", "text"),), "dog")
    usual = read_mixture(LIST, columns={"target": "photo"}, word="cat")
    assert usual == (MixtureEntry("a", 2.0, (("target", "photo"),), "cat"), second)
    (tmp_path / "m.json").write_text(json.dumps(LIST))
    (tmp_path / "m.py").write_text(f"sources = {LIST!r}")
    for name in ("m.json", "m.py"):
        assert read_mixture(tmp_path / name) == (MixtureEntry(f"{tmp_path}/a", 2.0), second)


@pytest.mark.parametrize("given, words", [
    ([], "expected a list of"), (3, "expected a list of"), ([3], r"sources\[0\] is 3; expected an object with path"),
    ([{"path": ""}], r"sources\[0\].path is ''"), ([{"path": "a", "wieght": 2}], "did you mean 'weight'"),
    ([{"path": "a"}, {"path": "b", "weight": 0}], r"sources\[1\].weight is 0; expected a number above 0"),
    ([{"path": "a", "weight": float("nan")}], "weight is nan"), ([{"path": "a", "weight": True}], "weight is True"),
    ([{"path": "a", "weight": 10**400}], "weight is 1000"),
    ([{"path": "a", "weight": 1e308}], "weight is 1e.308; expected a number above 0, from 1e-09 to 1e.09"),
    ([{"path": "a", "weight": 1e-320}], "weight is 1e-320"),
    ([{"path": "a", "weight": "2"}], "weight is '2'"), ([{"path": "a", "columns": {"captain": "x"}}], "did you mean"),
    ([{"path": "a", "columns": {"caption": 3}}], "columns is"), ([{"path": "a", "word": 3}], "The word is 3"),
])
def test_a_mixture_that_is_none_says_why(given, words):
    with pytest.raises(ValueError, match=words):
        read_mixture(given)


@pytest.mark.parametrize("name, content, words", [
    ("m.json", "{", "is not JSON"), ("m.json", "{}", "expected a list"), ("m.py", "x = 1", "expected a list"),
    ("m.py", "1 / 0", "fails: ZeroDivisionError"), ("m.py", "raise SystemExit(3)", "fails: SystemExit: 3"),
    ("m.py", "sources = (", "fails: SyntaxError")])
def test_a_mixtures_file_that_is_none_says_why(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_mixture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no mixture"):
        read_mixture(tmp_path / "gone.json")
