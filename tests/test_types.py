"""The public face as a type checker sees it."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_a_user_s_program_is_checked(monkeypatch):
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(TESTS.parent)
    said, failed, code = api.run(
        ["--follow-imports=silent", "--ignore-missing-imports", "--check-untyped-defs", "--warn-unused-ignores",
         "--cache-dir=/dev/null", str(TESTS / "typed" / "program.py")])
    assert code == 0, said + failed
