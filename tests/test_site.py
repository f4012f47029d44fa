"""The pages of docs/: their links, what they quote and draw, their code, and the site that Sphinx makes of them."""

import ast
import functools
import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import realcustom_jax as rc

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COPIES = {"_build", "jupyter_execute", "notebooks", "repository"}
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in COPIES)
OTHERS = [ROOT / name for name in (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "realcustom_jax/assets/mini/README.md")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = "guides/own_loop.md", "guides/several_subjects.md"


@functools.cache
def module_of_docs(name: str):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def markdown(page: Path) -> str:
    """The text of a page; of a notebook, that of its Markdown cells."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return page.read_text()


@functools.cache
def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, and those that it sets itself."""
    text = re.sub(r"^```.*?^```", "", markdown(page), flags=re.M | re.S)
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    slugs = {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in plain}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


@pytest.mark.parametrize("page", [*OTHERS, *PAGES, *NOTEBOOKS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_of_the_repository_lead_to_files_and_headings(page):
    broken = []
    for _, _, target, anchor in module_of_docs("repository_files").LINK.findall(markdown(page)):
        file = Path(os.path.normpath(page.parent / unquote(target)))
        if not file.exists() or anchor and file.suffix in (".md", ".ipynb") and anchor[1:] not in headings(file):
            broken.append(target + anchor)
    assert not broken


def test_every_page_is_reached_from_the_first():
    listed = set()
    for page in PAGES:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S):
            listed |= {(page.parent / line).resolve() for line in tree.split("\n") if line and not line.startswith(":")}
    assert [page for page in PAGES if page.with_suffix("") not in listed] == [DOCS / "index.md"]


def test_the_reference_has_every_public_name():
    written = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    assert [name for name in rc.__all__ if not re.search(rf":: realcustom_jax\.{name}\b", written)] == []


def messages_of_the_code() -> list[str]:
    """All texts in the code, with … for what is put into them."""

    def text(node) -> str:
        match node:
            case ast.Constant():
                return str(node.value)
            case ast.JoinedStr():
                return "".join(map(text, node.values))
            case ast.BinOp():
                return text(node.left) + text(node.right)
        return "…"

    files = [*(ROOT / "realcustom_jax").rglob("*.py"), ROOT / "sample.py", ROOT / "train.py"]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return [text(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]


def test_messages_that_are_explained_are_those_that_the_code_raises():
    said = messages_of_the_code()
    page = (DOCS / "troubleshooting.md").read_text()
    explained = re.findall(r"\*\*`(.+?)`\*\*", page)
    assert len(explained) > 60
    unknown = []
    for message in explained:
        parts = [re.escape(part) for part in message.split("…")]
        pattern = re.compile(".*?".join(parts), re.S)
        if not any(pattern.search(text) for text in said):
            unknown.append(message)
    assert not unknown


def test_the_diagrams_are_what_their_program_draws():
    diagrams = module_of_docs("diagrams")
    drawn = {f"{name}.svg": draw().svg() for name, draw in diagrams.DIAGRAMS.items()}
    assert {file.name: file.read_text() for file in (DOCS / "diagrams").iterdir()} == drawn


def test_a_link_out_of_the_site_becomes_a_page_of_it_or_names_the_file():
    links_of_site = module_of_docs("repository_files").links_of_site
    page = "guides/memory.md"
    assert links_of_site("[b](../../benchmarks/RESULTS.md#time)", page) == "[b](../repository/benchmarks.md#time)"
    assert links_of_site("[the tests](../../tests/goldens.py)", page) == "the tests (`tests/goldens.py`)"
    assert links_of_site("[`tests/goldens.py`](../../tests/goldens.py)", page) == "`tests/goldens.py`"
    assert links_of_site("[t](../../tests/goldens.py)", page, "https://host/x") == "[t](https://host/x/tests/goldens.py)"
    assert links_of_site("![c](docs/launch/../control.png)", "repository/changelog.md") == "![c](../control.png)"
    assert links_of_site("[sd](sd15.md) [w](https://a.b/c) [none](nothing.md)", page) == (
        "[sd](sd15.md) [w](https://a.b/c) [none](nothing.md)")


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED)
def test_the_code_of_a_page_runs(page):
    code = "\n\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S))
    names = {}
    exec(compile(code, page, "exec"), names)
    if page == "guides/own_loop.md":
        assert names["difference"] < 1e-4
        assert names["pictures"].shape == (1, 128, 128, 3)
        masks = names["both"].masks
        assert masks.shape == (25, 1, 2, 8, 8) and (masks.sum(2) <= 1).all() and masks.sum((3, 4)).all()
    else:
        assert names["result"].masks.shape == (25, 1, 2, 8, 8)


class Page(html.parser.HTMLParser):
    """Where a built page leads to, what it loads, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            (self.loaded if "stylesheet" in given.get("rel", "") or "icon" in given.get("rel", "") else
             self.links).append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site as Sphinx makes it of a copy of the repository's files, and of nothing else."""
    for module in ("sphinx", "myst_nb", "furo", "sphinx_copybutton"):
        pytest.importorskip(module)
    checkout, built = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__", *COPIES - {"notebooks"})
    for name in ("docs", "notebooks", "realcustom_jax", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    for file in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, checkout)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", checkout / "docs",
         built / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built / "html"


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(site):
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html")}
    assert len(pages) > 30
    broken = []
    for file, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            anchor = unquote(parts.fragment)
            if not target.is_file() or anchor and target in pages and anchor not in pages[target].anchors | {"top"}:
                broken.append(f"{file.relative_to(site)}: {link}")
    assert not broken


@pytest.mark.slow
def test_what_a_docstring_names_is_a_link_that_leads_somewhere(site):
    page = (site / "api/pipeline.html").read_text()
    link = r'href="sampling.html#realcustom_jax.subject_mask"[^>]*><code[^>]*><span class="pre">masks.subject_mask<'
    assert re.search(link, page)
    assert 'href="../guides/lora.html"' in page
    for file in (site / "api").glob("*.html"):
        assert not re.findall(r'(?<!">)<code class="xref py py-obj[^>]*>', file.read_text()), "a name that is not found"


@pytest.mark.slow
def test_no_page_loads_anything_from_the_network(site):
    loaded = {link for file in site.rglob("*.html") for link in Page(file.read_text()).loaded}
    assert {link for link in loaded if urlsplit(link).netloc} == set()
    styles = "\n".join(file.read_text() for file in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]+", styles) == []


def test_messages_can_be_linked_to_by_their_first_words():
    pytest.importorskip("docutils")
    anchor = module_of_docs("term_anchors").anchor
    assert anchor("--target is missing: the word or words of it", set()) == "target-is-missing-the-word-or-words"
    assert anchor("The image … does not exist.", {"the-image-does-not-exist"}) == "the-image-does-not-exist-2"


def test_docstrings_link_to_what_the_site_documents():
    pytest.importorskip("sphinx")
    plain = module_of_docs("plain_docstrings")
    assert plain.documented().keys() >= set(rc.__all__) - {"betas"}
    for text, linked in (
            ("`masks.subject_mask`", ":py:obj:`masks.subject_mask <realcustom_jax.subject_mask>`"),
            ("`Preset.no_negative`", ":py:obj:`Preset.no_negative <realcustom_jax.Preset>`"),
            ("`Solver.init`", ":py:obj:`Solver.init <realcustom_jax.sampling.solvers.Solver>`"),
            ("see docs/guides/lora.md.", "see :doc:`/guides/lora`."),
            ("`betas` and `nothing.here`", "``betas`` and ``nothing.here``")):
        assert plain.as_rst([text])[0] == linked


def test_docstrings_of_plain_sentences_become_lists_literals_and_drawings():
    pytest.importorskip("sphinx")
    plain = module_of_docs("plain_docstrings")
    docstring = """What `f` does to *shape and |x|:

    out = a * b

Args:
    text, more: [B, T]. pooled: or None;
        on two lines.
    way: of these:
        one    the first
        two    the second
Returns:
    [B].
""".split("\n")
    lines = plain.as_rst(plain.one_name_a_line(docstring, ["text", "more", "pooled", "way"]))
    text = "\n".join(line for line in lines if line.strip())
    assert text == """What ``f`` does to \\*shape and \\|x\\|:
.. code-block:: text
    out = a * b
:Parameters:
    **text, more**
        [B, T].
    **pooled**
        or None;
        on two lines.
    **way**
        of these:
        .. code-block:: text
            one    the first
            two    the second
:Returns:
    [B]."""
