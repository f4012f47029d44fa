"""The page as a person uses it, in a real Chromium without a window, with the bundled miniature."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from realcustom_jax.commands import sample_options
from realcustom_jax.demo.uploads import EXAMPLES

import fresh_process

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

ROOT = Path(__file__).parents[1]
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync"]
_COMPILING = 400_000  # milliseconds: on two cores that others use, too
_MADE = re.compile(r"pictures? in [\d.]+ s\.")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server in a process of its own, as a person starts it."""
    port = fresh_process.free_port()
    temporary = tmp_path_factory.mktemp("temporary")
    log = (temporary / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "realcustom_jax.demo", "--port", str(port)], cwd=ROOT, stdout=log, stderr=log,
        env=os.environ | {"TMPDIR": str(temporary)})
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, (temporary / "log").read_text()
            time.sleep(0.5)
    yield address
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    said = (temporary / "log").read_text()
    assert "Traceback" not in said and process.returncode == 0, said
    assert not list(temporary.glob("realcustom_demo_*"))  # its own folder is gone with it


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def person(browser, address):
    """A page that was just opened, in a window of its own; it may talk to this machine alone."""
    context = browser.new_context(viewport={"width": 1240, "height": 1000})
    yield opened(context, address)
    context.close()


def opened(context, address):
    page = context.new_page()
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#words_1 label.selected")
    page.wait_for_timeout(500)
    return page


def generate(page, **options) -> str:
    """Clicks, waits for the pictures, and returns where the first one is shown from."""
    page.wait_for_timeout(300)
    before = shown(page)
    page.click("#generate")
    finished(page, before, **options)
    return shown(page)


def finished(page, before: str = "", timeout: int = _COMPILING) -> None:
    page.wait_for_function(
        "before => { const x = document.querySelector('#gallery img'); return x && x.src !== before"
        " && / pictures? in /.test(document.querySelector('#status').innerText) }", arg=before, timeout=timeout)


def shown(page, where: str = "#gallery") -> str:
    image = page.query_selector(f"{where} img")
    return image.get_attribute("src") if image else ""


def content(page, where: str = "#gallery") -> bytes:
    return page.request.get(shown(page, where)).body()


def test_one_click_makes_a_picture_and_the_page_asks_no_other_server(person, address):
    generate(person)
    assert _MADE.search(person.inner_text("#status"))
    assert content(person).startswith(b"\x89PNG")
    assert [url for url in person.asked if not url.startswith((address, "data:", "blob:"))] == []


def test_upload_click_the_word_generate_and_use_the_result_again(person, tmp_path):
    reference = tmp_path / "my cat.png"
    Image.open(EXAMPLES / "cat.png").resize((300, 300)).save(reference)
    first = generate(person)

    person.click("#reference_1 button[aria-label='Remove Image']")
    person.set_input_files("#reference_1 input[type=file]", reference)
    person.wait_for_function("document.querySelector('#reference_1 img')?.src.includes('cat')")
    person.fill("#prompt textarea", "a cat in space")
    person.click("#words_1 label:has-text('cat')")
    second = generate(person)
    assert second != first

    command = person.input_value("#command textarea")
    options = sample_options.parse(shlex.split(command)[1:])
    assert (options.prompt, options.target, options.seed) == ("a cat in space", ["cat"], 0)
    assert options.image == ["my cat.png"] and str(tmp_path) not in command

    made = content(person)
    person.click("#use_1")
    person.wait_for_function("!document.querySelector('#reference_1 img').src.includes('cat')")
    assert Image.open(person_file(tmp_path, content(person, "#reference_1"))).tobytes() == Image.open(
        person_file(tmp_path, made)).tobytes()
    assert generate(person) not in (first, second)


def person_file(folder: Path, content: bytes) -> Path:
    (folder / "downloaded.png").write_bytes(content)
    return folder / "downloaded.png"


def test_the_slider_moves_through_the_masks(person):
    generate(person)
    last = content(person, "#mask")
    assert "Step 25 of 25" in person.inner_text("#legend") and "dog" in person.inner_text("#legend")
    before = shown(person, "#mask")
    person.fill("#step input[type=number]", "1")
    person.keyboard.press("Tab")
    person.wait_for_function("before => document.querySelector('#mask img').src !== before", arg=before)
    assert "Step 1 of 25" in person.inner_text("#legend") and content(person, "#mask") != last


def test_neighbours_are_a_phrase_and_another_word_begins_anew(person):
    def chosen():
        person.wait_for_timeout(400)
        return person.locator("#words_1 label.selected").all_inner_texts()

    person.fill("#prompt textarea", "a red dog and a Dog on the beach")
    person.wait_for_selector("#words_1 label:has-text('dog#1')")
    assert chosen() == ["dog#1"]
    person.click("#words_1 label:has-text('red')")
    assert chosen() == ["red", "dog#1"]
    person.click("#words_1 label:has-text('Dog#2')")
    assert chosen() == ["Dog#2"]


def test_what_is_wrong_is_said_beside_its_field(person, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    person.set_input_files("#reference_2 input[type=file]", tmp_path / "broken.png")
    person.wait_for_selector("#problem_reference_2 >> text=broken.png is")
    person.wait_for_selector("#reference_2 img", state="detached")

    (tmp_path / "huge.png").write_bytes(bytes(21 * 2**20))
    person.set_input_files("#reference_2 input[type=file]", tmp_path / "huge.png")
    person.wait_for_selector("text=exceed the maximum allowed size")

    person.fill("#prompt textarea", "a cat on the beach")  # the dog, which was chosen, is gone
    person.fill("#seed input", "-1")
    person.click("#generate")
    person.wait_for_selector("#problem_words_1 >> text=Click on the word")
    person.wait_for_selector("#problem_numbers >> text=seed is -1")
    assert "Not started" in person.inner_text("#status")
    person.fill("#prompt textarea", "a zebra on the beach")
    person.wait_for_selector("#note >> text=never learnt 'zebra'")
    assert "Traceback" not in person.content()


def test_two_people_at_once_get_their_own_pictures(browser, address, person, tmp_path):
    """The second one waits; the pictures are those that each of them gets alone."""
    other = opened(browser.new_context(), address)
    pages = {person: "1", other: "2"}
    for page, seed in pages.items():
        page.fill("#seed input", seed)
        page.keyboard.press("Tab")
        page.wait_for_timeout(300)
    for page in pages:
        page.click("#generate")
    for page, seed in pages.items():
        finished(page)
        assert f"--seed {seed}" in page.input_value("#command textarea")
    together = [content(page) for page in pages]
    assert together[0] != together[1]
    alone = []
    for page in pages:
        before = shown(page)
        page.fill("#seed input", "9")
        page.keyboard.press("Tab")
        generate(page)
        page.fill("#seed input", pages[page])
        page.keyboard.press("Tab")
        assert generate(page) == before  # Gradio names a picture by its content
        alone.append(content(page))
    assert alone == together
    other.context.close()


def test_a_browser_that_is_closed_in_the_middle_harms_nobody(browser, address, person):
    left = opened(browser.new_context(), address)
    left.fill("#seed input", "5")
    left.fill("#count input[type=number]", "4")
    left.keyboard.press("Tab")
    left.wait_for_timeout(300)
    left.click("#generate")
    left.wait_for_function("/Step|Reading/.test(document.querySelector('#status').innerText)")
    left.context.close()
    generate(person)
    assert "--seed 0" in person.input_value("#command textarea")


def test_the_work_stops_at_the_next_step_when_the_browser_is_gone(browser, mini_pipeline, tmp_path, monkeypatch):
    """With a model whose steps take a tenth of a second, so that it can be seen when they end."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from realcustom_jax.demo.page import build_page, serve
    from realcustom_jax.demo.settings import first_settings
    from realcustom_jax.demo.studio import Studio, step_by_step

    steps = []

    class Slow(Studio):
        def make(self, settings):
            def call(on_step):
                for i in range(600):
                    time.sleep(0.1)
                    steps.append(i)
                    on_step(i)

            return step_by_step(call)

    page = build_page(Slow(mini_pipeline), first_settings(mini_pipeline, sample_options.parse([])))
    address = serve(page, tmp_path, host="127.0.0.1", port=fresh_process.free_port(), wait=False)
    try:
        person = opened(browser.new_context(), address)
        person.click("#generate")
        person.wait_for_function("/Step/.test(document.querySelector('#status').innerText)")
        person.context.close()
        time.sleep(3)
        ended = len(steps)
        time.sleep(1)
        assert 1 <= ended == len(steps) < 60
    finally:
        page.close(verbose=False)
