"""A Sphinx extension: what lies beside docs/ in the repository, as pages of the site and as targets of links.

**Pages.** The notebooks, and the Markdown files of `PAGES`, stay where they are in the repository and are copied into
the folder of the site before it is read. git ignores the copies.

**Links.** Pages link to files as they lie in the repository, so that the same links work where the repository is
looked at. Before a page is read, each link that leaves docs/ becomes a link to the page that shows this file, a link
below `repository_url` where conf.py gives one, and otherwise the file's path as code.
"""

import json
import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

PAGES = {
    "repository/benchmarks.md": "benchmarks/RESULTS.md",
    "repository/model_card.md": "realcustom_jax/assets/mini/README.md",
    "repository/changelog.md": "CHANGELOG.md",
    "repository/contributing.md": "CONTRIBUTING.md",
}
"""The page in docs/ -> the file of the repository that it shows."""

# The text may hold one pair of brackets, and code; the target no space, no bracket and no scheme.
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?![a-z]+:|#|/)([^()\s#]+)(#[^()\s]*)?\)")


def pages() -> dict[str, str]:
    """All pages that are copies, the notebooks too: page in docs/ -> file, both relative and with slashes."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return PAGES | {f"notebooks/{file.name}": f"notebooks/{file.name}" for file in notebooks}


def copy_pages(app=None) -> None:
    """Brings the copies up to date; one that is right keeps its time, so that Sphinx does not read it again."""
    wanted = pages()
    for page, source in wanted.items():
        copy, content = DOCS / page, _content(ROOT / source)
        copy.parent.mkdir(exist_ok=True)
        if not copy.is_file() or copy.read_text() != content:
            copy.write_text(content)
    for folder in ("notebooks", "repository"):
        for file in (DOCS / folder).glob("*.*"):
            if f"{folder}/{file.name}" not in wanted:
                file.unlink()


def _content(file: Path) -> str:
    """The text of a file as its page has it. A notebook's code is highlighted as IPython's, for its lines of shell."""
    if file.suffix != ".ipynb":
        return file.read_text()
    notebook = json.loads(file.read_text())
    notebook["metadata"].setdefault("language_info", {"name": "python"})["pygments_lexer"] = "ipython3"
    return json.dumps(notebook, ensure_ascii=False)


def links_of_site(text: str, page: str, repository_url: str = "") -> str:
    """The Markdown of a page with its links to repository files as the site has them.

    Args:
        text: the page's.
        page: its path in docs/, with its ending.
        repository_url: of the folder that shows the repository's files, without a slash at its end; "": there is none.
    """
    copied = pages()
    shown = {source: DOCS / copy for copy, source in copied.items()} | {"README.md": DOCS / "index.md"}
    source = ROOT / copied[page] if page in copied else DOCS / page

    def replaced(match: re.Match) -> str:
        image, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        file = Path(os.path.normpath(source.parent / target))
        if not file.exists() or not file.is_relative_to(ROOT):
            return match[0]
        name = file.relative_to(ROOT).as_posix()
        if image or name in shown or file.is_relative_to(DOCS):
            here = os.path.relpath(shown.get(name, file), (DOCS / page).parent)
            # What the site shows of a file may be less than the whole, such as the README's beginning.
            return f"{image}[{label}]({Path(here).as_posix()}{'' if name == 'README.md' else anchor})"
        if repository_url:
            return f"[{label}]({repository_url}/{name}{anchor})"
        return label if name in label.replace("`", "") else f"{label} (`{name}`)"

    return LINK.sub(replaced, text)


def _read(app, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name)).relative_to(DOCS).as_posix()
    content[0] = links_of_site(content[0], page, app.config.repository_url)


def setup(app):
    app.add_config_value("repository_url", "", "env", [str])
    app.connect("builder-inited", copy_pages)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
