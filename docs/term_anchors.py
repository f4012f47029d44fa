"""A Sphinx extension: each entry of troubleshooting.md can be linked to, by the first words of its message."""

import re

from docutils import nodes

PAGE = "troubleshooting"
_WORDS = 7


def anchor(text: str, taken: set[str]) -> str:
    """The first words of a message with hyphens between them, and a number where that is taken."""
    words = re.findall(r"[a-z0-9_]+", text.lower())[:_WORDS]
    name, count = "-".join(words), 1
    while name in taken:
        count += 1
        name = "-".join([*words, str(count)])
    return name


def add_anchors(app, doctree) -> None:
    if app.env.docname != PAGE:
        return
    taken = {name for node in doctree.findall(nodes.section) for name in node["ids"]}
    for term in doctree.findall(nodes.term):
        name = anchor(term.astext(), taken)
        taken.add(name)
        term["ids"].append(name)
        term += nodes.reference("", "¶", refuri=f"#{name}", internal=True, classes=["headerlink"])


def setup(app):
    app.connect("doctree-read", add_anchors)
    return {"parallel_read_safe": True}
