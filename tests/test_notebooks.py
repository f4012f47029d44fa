"""The notebooks: each runs from its own folder at small settings; what is kept in them reads well."""

import base64
import importlib.util
import re
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = ["01_first_picture", "02_inside_the_mask", "03_sdxl", "04_train_on_your_pictures", "05_evaluate", "06_on_a_tpu"]
LARGEST_PICTURE = 200_000  # bytes

nbformat = pytest.importorskip("nbformat")
exceptions = pytest.importorskip("nbclient.exceptions")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

_spec = importlib.util.spec_from_file_location("run_notebooks", NOTEBOOKS / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


def notebook(name):
    return run.read(NOTEBOOKS / f"{name}.ipynb")


def code(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def small(name, folder):
    """The parameters with which a notebook takes about a minute of two cores and writes into `folder` alone."""
    if name == "01_first_picture":
        return {"NUM_IMAGES": 1, "STEPS": 3}
    if name == "02_inside_the_mask":
        return {"STEPS": 3}
    if name == "03_sdxl":
        from tiny_release import write_tiny_release

        return write_tiny_release(folder) | {"DOWNLOAD": False, "SIZE": 16, "STEPS": 3, "DTYPE": "float32"}
    if name == "04_train_on_your_pictures":
        return {"PICTURES": str(folder / "pictures"), "WORKDIR": str(folder / "run"), "STEPS": 2, "BATCH_SIZE": 2,
                "SAMPLER_STEPS": 2}
    if name == "05_evaluate":
        return {"NUM_SUBJECTS": 1, "STEPS": 2, "TASKS": ["many"], "METHODS": ["no_mask", "fused"]}
    return {}


def test_these_are_all_notebooks():
    assert [path.stem for path in run.notebooks()] == NAMES
    assert sorted(NOTEBOOKS.glob("*.ipynb")) == run.notebooks()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, tmp_path):
    before = sorted(NOTEBOOKS.rglob("*"))
    ran = run.execute(notebook(name), small(name, tmp_path))
    assert sorted(NOTEBOOKS.rglob("*")) == before
    assert [cell.source for cell in ran.cells] == [cell.source for cell in notebook(name).cells]
    if name == "04_train_on_your_pictures":
        assert (tmp_path / "run" / "adapter" / "realcustom.safetensors").is_file()


def made(*sources):
    """A notebook of these code cells, the first of which sets the parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.slow
def test_a_broken_cell_is_noticed_and_parameters_are_replaced():
    ran = run.execute(made("n = 1", "print(n + 1, end='')"), {"n": 41})
    assert len(ran.cells) == 2 and ran.cells[1].outputs[0].text.strip() == "42"
    with pytest.raises(exceptions.CellExecutionError, match="ZeroDivisionError"):
        run.execute(made("n = 1", "print(n)", "n / (n - 1)"), {})


def test_a_parameter_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="no parameter STEP; it has NUM_IMAGES, STEPS"):
        run.execute(notebook("01_first_picture"), {"STEP": 1})


def test_progress_bars_and_colours_are_not_kept():
    output = nbformat.v4.new_output("stream", name="stderr", text=(
        "\radapter:  50%|███  | 1/2 [00:01<00:01,  1.0s/step]\x1b[A\r\x1b[1mWARNING\x1b[0m: mind this\n"))
    assert [kept.text for kept in run._kept([output], 1)] == ["WARNING: mind this\n"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_reads_well(name):
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1)), "not run as a whole"
    outputs = [output for cell in code(name) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    for output in outputs:
        for kind, content in output.get("data", {}).items():
            if kind.startswith("image/"):
                assert len(base64.b64decode(content)) <= LARGEST_PICTURE
        said = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|usr|content)/|Warning", said)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_sets_up_and_the_last_one_says_what_is_next(name):
    cells = notebook(name).cells
    assert code(name)[0].source == code(NAMES[0])[0].source and "REPOSITORY" in code(name)[0].source
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert cells[-1].cell_type == "markdown" and "## What to read next" in cells[-1].source
    for before, cell in zip(cells, cells[1:], strict=False):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown" or name == "06_on_a_tpu", cell.source


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = "\n".join(cell.source for cell in notebook(name).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (NOTEBOOKS / target).is_file(), target
    for file in re.findall(r"`((?:docs|configs|realcustom_jax)/[\w/.]+\.\w+)`", text):
        assert (NOTEBOOKS.parent / file).is_file(), file


def set_up(monkeypatch, place):
    """Runs the setup cell in a folder; returns what pip would install, and where Python then looks first."""
    source = re.sub(r"^    %pip install -q (.*)$", r"    installed.append(f'\1')", code(NAMES[0])[0].source, flags=re.M)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    installed = []
    exec(source, {"installed": installed})
    return installed, sys.path[0]


def test_the_setup_cell_takes_a_clone_from_its_root_and_from_the_folder_and_else_installs(tmp_path, monkeypatch):
    for place in (NOTEBOOKS, NOTEBOOKS.parent):
        assert set_up(monkeypatch, place) == ([], str(NOTEBOOKS.parent))
    assert set_up(monkeypatch, tmp_path) == (['"realcustom-jax[train]" matplotlib'], "elsewhere")


def test_the_setup_cell_says_what_a_clone_lacks(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flax" else found(name))
    with pytest.raises(ImportError, match=r'^flax cannot .* run %pip install "\.\[train\]" matplotlib there, and'):
        set_up(monkeypatch, NOTEBOOKS)
