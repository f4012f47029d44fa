"""Runs notebooks and keeps their outputs in them:

    python notebooks/run.py                                  # all of them, in their order
    python notebooks/run.py notebooks/01_first_picture.ipynb --set NUM_IMAGES=1 --out /tmp/ran

Each runs in its own folder, as Jupyter opens it. `--set NAME=VALUE` replaces what the cell with the tag `parameters`
says, by a cell after it that is not kept. Needs nbclient and ipykernel.
"""

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
_TIMEOUT = 3600  # seconds for one cell
_COLOUR, _PROGRESS = re.compile(r"\x1b\[[\d;]*[A-Za-z]"), re.compile(r"\d%\||/s[,\]]")
# That the progress bars of a page that nobody looks at are plain text is no news.
_ENVIRONMENT = {"PYTHONWARNINGS": "ignore:IProgress not found"}


def notebooks() -> list[Path]:
    """All notebooks, in the order in which they are read."""
    return sorted(FOLDER.glob("[0-9]*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook's cells and outputs."""
    return nbformat.read(path, as_version=4)


def execute(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any], folder: Path = FOLDER
            ) -> nbformat.NotebookNode:
    """A copy of a notebook as it is after all of its cells ran in `folder`.

    Args:
        parameters: values instead of those that the cell with the tag `parameters` sets.
    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds the cell and the traceback.
        ValueError: a parameter that this cell does not set.
    """
    copy = nbformat.from_dict(notebook)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    place, given = _parameters(copy)
    if unknown := sorted(set(parameters) - given):
        raise ValueError(f"the notebook has no parameter {unknown[0]}; it has {', '.join(sorted(given))}.")
    replaced = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()))
    copy.cells.insert(place + 1, replaced)
    NotebookClient(copy, timeout=_TIMEOUT, kernel_name="python3", record_timing=False,
                   resources={"metadata": {"path": str(folder)}}).execute(env=os.environ | _ENVIRONMENT)
    del copy.cells[place + 1]
    for count, cell in enumerate(code, 1):  # as if the inserted cell had never been there
        cell.execution_count = count
        cell.outputs = list(_kept(cell.outputs, count))
    return copy


def _kept(outputs: list[nbformat.NotebookNode], count: int) -> Iterator[nbformat.NotebookNode]:
    """The outputs as a reader wants them: no progress bars and no colours of a terminal, each picture once."""
    for output in outputs:
        if "execution_count" in output:
            output.execution_count = count
        if "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)  # Pillow gives both
        if output.output_type == "stream":
            lines = _COLOUR.sub("", output.text).splitlines()  # which also ends lines at carriage returns
            lines = [line for line in lines if line.strip() and not _PROGRESS.search(line)]
            if not lines:
                continue
            output.text = "\n".join(lines) + "\n"
        yield output


def _parameters(notebook: nbformat.NotebookNode) -> tuple[int, set[str]]:
    """The place of the cell with the tag `parameters`, and the names that it sets."""
    for place, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", ()):
            assigned = (node.targets for node in ast.parse(cell.source).body if isinstance(node, ast.Assign))
            return place, {target.id for targets in assigned for target in targets if isinstance(target, ast.Name)}
    raise ValueError("the notebook has no cell with the tag `parameters`.")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=notebooks(), help="which; by default all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; repeat it")
    parser.add_argument("--out", type=Path, help="a folder for the notebooks with outputs; by default in place")
    options = parser.parse_args(arguments)
    parameters = {name: _value(text) for name, _, text in (pair.partition("=") for pair in options.set)}
    for path in options.notebooks:
        print(path.name, file=sys.stderr)
        ran = execute(read(path), parameters)
        out = path if options.out is None else options.out / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(ran, out)
    return 0


def _value(text: str) -> Any:
    """A number, list or string of Python's syntax; what is none is a string as it stands."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main())
