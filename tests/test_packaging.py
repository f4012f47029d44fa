"""What is declared about the package: its versions, its requirements, its commands; and what a missing extra says."""

import importlib
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import realcustom_jax as rc
from realcustom_jax.errors import needs_extra

import fresh_process

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
SAMPLING, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]


def lines_of(name: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def by_name(requirements) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in requirements if not line.startswith("-r ")]
    return {requirement.name: requirement for requirement in parsed}


def test_the_version_has_one_source():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    tool = DECLARED["tool"]["setuptools"]
    assert tool["dynamic"]["version"] == {"attr": "realcustom_jax.__version__"}
    assert "py.typed" in tool["package-data"]["realcustom_jax"]
    try:
        installed = version("realcustom-jax")
    except PackageNotFoundError:  # the tests run on the sources
        return
    assert installed == rc.__version__


def test_the_readme_s_requirements_are_those_of_sampling_and_training():
    assert lines_of("requirements.txt") == SAMPLING + EXTRAS["train"]


def test_the_oldest_versions_are_the_lower_bounds():
    """So that each bound is a version that .ci/run tests."""
    oldest = by_name(lines_of("requirements-oldest.txt"))
    for name, requirement in by_name(lines_of("requirements.txt")).items():
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if name == "huggingface_hub":  # transformers says which
            continue
        pinned, = (bound.version for bound in oldest[name].specifier)
        assert requirement.specifier.contains(pinned), name
        assert pinned.startswith(bounds[0]), name


@pytest.mark.parametrize("command, home", PROJECT["scripts"].items())
def test_commands_lead_to_functions(command, home):
    module, _, name = home.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


# Stands in for a package that is not installed.
WITHOUT = "import sys; sys.modules[{0!r}] = None; sys.argv = ['realcustom-train', *{1!r}]; "


@pytest.mark.slow
@pytest.mark.parametrize("config, package", [("sdxl", "tensorflow_datasets"), ("mini", "orbax")])
def test_training_without_its_extra_is_one_sentence(tmp_path, config, package):
    arguments = [f"--config={ROOT / 'configs' / config}.py", f"--workdir={tmp_path / 'run'}"]
    printed = fresh_process.run(
        WITHOUT.format(package, arguments) + "from realcustom_jax.commands.train import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print('ended with', end.code)", stderr=-2)
    assert printed == (
        f"error: training needs the package {package}, which is not installed: run pip install "
        '"realcustom-jax[train]" (in a clone: pip install ".[train]").\nended with 2\n')
    assert not (tmp_path / "run").exists()


def test_only_a_package_that_is_missing_is_blamed():
    said = r'^drawing needs the package no_such, .*"realcustom-jax\[demo\]" \(.*"\.\[demo\]"\), or look away\.$'
    with pytest.raises(ValueError, match=said):
        with needs_extra("demo", "drawing", "or look away"):
            import no_such.part  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="realcustom_jax.nowhere"):  # ours
        with needs_extra("demo", "drawing"):
            import realcustom_jax.nowhere  # noqa: F401
    with pytest.raises(ImportError, match="nothing"):  # a package that is there and broken
        with needs_extra("demo", "drawing"):
            from json import nothing  # noqa: F401


def test_every_extra_that_a_sentence_names_exists():
    named = {extra for file in (ROOT / "realcustom_jax").rglob("*.py")
             for extra in ("train", "demo", "docs", "torch") if f'needs_extra("{extra}"' in file.read_text()}
    assert {"train", "torch"} <= named <= set(EXTRAS)
