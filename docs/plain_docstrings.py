"""A Sphinx extension: docstrings of plain sentences become reStructuredText.

The docstrings of this project are written to be read as they are: `a` is code, [B, R, h, w] a shape, K_visionᵀ and *shape
are mathematics. What reStructuredText would take for a mark is escaped, code becomes a literal, and an indented drawing
or formula stays as it is drawn. The sections (Args, Returns, Raises, Attributes) are left to `sphinx.ext.napoleon`.
"""

import re

_CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.DOTALL)
_MARKS = re.compile(r"([*|\\]|_(?=\W|$))")
_SECTION = re.compile(r"(\s*)(Args|Returns|Raises|Attributes|Yields):\s*$")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    return "\n".join(_escaped(block) for block in _blocks(lines)).split("\n")


def _blocks(lines: list[str]) -> list[list[str]]:
    """The lines in blocks, each drawing apart: indented lines after a blank one, outside of the sections. The first
    element of a block says whether it is a drawing by its indentation."""
    blocks, section = [[]], None
    for i, line in enumerate(lines):
        indentation = len(line) - len(line.lstrip())
        if match := _SECTION.match(line):
            section = len(match[1])
        elif line.strip() and section is not None and indentation <= section:
            section = None
        drawing = bool(line.strip()) and indentation >= 4 and section is None
        starts = drawing and (i == 0 or not lines[i - 1].strip())
        goes_on = _is_drawing(blocks[-1]) and (drawing or not line.strip())
        if starts and not _is_drawing(blocks[-1]) or _is_drawing(blocks[-1]) and not goes_on:
            blocks.append([])
        blocks[-1].append(line)
    return [block for block in blocks if block]


def _is_drawing(block: list[str]) -> bool:
    return bool(block) and block[0].startswith("    ") and bool(block[0].strip()) and not any(
        _SECTION.match(line) for line in block)


def _escaped(block: list[str]) -> str:
    if _is_drawing(block):
        return "\n".join([".. code-block:: text", "", *block])
    text = "\n".join(block)
    if ">>>" in text:  # an example is taken as it is, up to the next blank line
        parts = re.split(r"((?:^|\n)[ ]*>>> (?:.|\n)*?(?:\n[ ]*\n|$))", text)
    else:
        parts = [text]
    return "".join(part if ">>>" in part else _escaped_text(part) for part in parts)


def _escaped_text(text: str) -> str:
    parts = _CODE.split(text)
    return "".join(f"``{part.strip('`')}``" if i % 2 else _MARKS.sub(r"\\\1", part) for i, part in enumerate(parts))


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app):
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True}
