"""A Sphinx extension: docstrings of plain sentences become reStructuredText.

The docstrings of this project are written to be read as they are: `a` is code, [B, R, h, w] a shape, V_vision and *n
are mathematics, and a drawing or formula is indented. What reStructuredText would take for a mark is escaped here, code
becomes a literal, or a link where it names what the site documents (`subject_mask`, `masks.subject_mask`); so does a
page (docs/method.md). A drawing stays as it is drawn, and the sections (Args, Returns, Raises, Attributes), as well as
paragraphs of the form "name: what it is", become lists.
"""

import functools
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from jax.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

import realcustom_jax
from realcustom_jax.conditioning.images import ImageSource

DOCS = Path(__file__).resolve().parent

_CODE = re.compile(r"(``.+?``|`[^`]+`|\bdocs/[\w/]+\.md\b)", re.DOTALL)
_DOCUMENTED = re.compile(r":: (realcustom_jax\.[\w.]+)\S*\n(?: +:members: (.*)\n)?")
_MARKS = re.compile(r"([*|\\]|_(?=\W|$))")
_SECTION = re.compile(r"(Args|Returns|Raises|Attributes):\s*(.*)$")
_ENTRY = re.compile(r"((?:``)?\w+(?:``)?(?:, (?:``)?\w+(?:``)?)*): (.*)$")
_ROW = re.compile(r"\w+ {2,}\S")
_SHOWN = {"Args": "Parameters"}
_ALIASES = {"ArrayLike": ArrayLike, "ImageSource": ImageSource}  # whose parts say less than their names


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, without the indentation that all share, as reStructuredText."""
    found, kept = [], []
    for line in [*lines, "Returns:"]:  # the last line closes what is open
        closed = kept and _SECTION.match(kept[0]) and line and not line.startswith(" ")
        if closed or _SECTION.match(line):
            found += _section(kept)
            kept = []
        kept.append(line)
    return found


def _section(lines: list[str]) -> list[str]:
    """A section, or what stands outside of them."""
    match = _SECTION.match(lines[0]) if lines else None
    if not match:
        return _paragraphs(lines)
    body = inspect.cleandoc("\n".join([match[2], *lines[1:]])).split("\n")
    inside = _entries(body) if match[1] in ("Args", "Attributes") else _paragraphs(body)
    return [f":{_SHOWN.get(match[1], match[1])}:", *_indented(inside), ""]


def _paragraphs(lines: list[str]) -> list[str]:
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", "\n".join(lines)):
        part = paragraph.strip("\n").split("\n")
        outer = [line for line in part if not line.startswith(" ")]
        if part[0].startswith(">>>"):
            found += part
        elif not outer and part[0]:
            # One code block for each paragraph of a drawing: its own indentation, below the first line's, stays.
            found += [".. code-block:: text", "", *part]
        elif len(part) > 1 and all(map(_ENTRY.match, outer)):
            found += _entries(part)
        else:
            found += _escaped("\n".join(part)).split("\n")
        found.append("")
    return found


def _entries(lines: list[str]) -> list[str]:
    """Lines "name: text", each with its indented continuation, as a list of definitions."""
    found, entries = [], []
    for line in lines:
        if match := _ENTRY.match(line):
            entries.append((match[1].replace("`", ""), [match[2]]))
        elif entries:
            entries[-1][1].append(line)
        elif line:
            found += _escaped(line).split("\n")
    for name, text in entries:
        body = [text[0], *(line.removeprefix("    ") for line in text[1:])]
        found += [f"**{_escaped(name)}**", *_indented(_paragraphs_or_table(body)), ""]
    return found


def _paragraphs_or_table(lines: list[str]) -> list[str]:
    """A definition's text; words with what they mean behind two spaces or more are a table, which stays as drawn."""
    first = next((i for i, line in enumerate(lines) if _ROW.match(line)), None)
    if first is None:
        return _paragraphs(lines)
    return [*_paragraphs(lines[:first]), "", ".. code-block:: text", "", *_indented(lines[first:]), ""]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]


def _escaped(text: str) -> str:
    parts = _CODE.split(text)
    return "".join(_code(part.strip("`")) if i % 2 else _MARKS.sub(r"\\\1", part) for i, part in enumerate(parts))


def _code(text: str) -> str:
    """A link to the page or the name that the site has, else a literal."""
    if text.startswith("docs/") and (DOCS.parent / text).is_file():
        return f":doc:`/{text.removeprefix('docs/').removesuffix('.md')}`"
    names = documented()
    found = names.get(text) or names.get(text.split(".")[0])  # of a class's attribute: the class
    return f":py:obj:`{text} <{found}>`" if found else f"``{text}``"


@functools.cache
def documented() -> dict[str, str]:
    """How docstrings call what the pages of docs/api document -> its full name there.

    A name may be given alone or behind modules or its class, as in `subject_mask`, `masks.subject_mask` and
    `Preset.mask_config`. What a parameter is called as well, such as `betas`, is given with its module only.
    """
    found, homes = {}, realcustom_jax._HOMES
    pages = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    for name, members in _DOCUMENTED.findall(pages):
        public = name.removeprefix("realcustom_jax.")
        parts = (f"{homes[public]}.{public}" if public in homes else public).split(".")
        shortest = 2 if parts[-2][0].isupper() else 1  # a method is called by its class's name too
        calls = {".".join(parts[i:]) for i in range(len(parts) + 1 - shortest)} - {"betas"}
        found |= dict.fromkeys(calls, name)
        found |= {f"{parts[-1]}.{member}": f"{name}.{member}" for member in re.findall(r"\w+", members)}
    return found


def one_name_a_line(lines: list[str], names: Iterable[str]) -> list[str]:
    """The lines with a break before each of the names that is explained behind another one on the same line."""
    found, indentation = [], ""
    known = "|".join(map(re.escape, names))
    for line in lines:
        if re.match(rf"\s*({known})\b[\w, ]*: ", line):
            indentation = line[: len(line) - len(line.lstrip())]
        first, *others = re.split(rf"(?<=[.)]) (?=(?:{known})(?:, (?:{known}))*: )", line)
        found += [first, *(indentation + other for other in others)]
    return found


def _process(app, what, name, obj, options, lines: list[str]) -> None:
    if callable(obj) and (names := _parameters(obj)):
        lines[:] = one_name_a_line(lines, names)
    lines[:] = as_rst(lines)


def _parameters(function) -> list[str]:
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except ValueError:  # of a class whose constructor is not Python's
        return []


def _name_aliases(app, what, name, obj, options, signature: str | None, returned: str | None):
    for alias, union in _ALIASES.items():
        signature = signature and signature.replace(stringify_annotation(union, "smart"), alias)
    return signature, returned


def setup(app):
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
