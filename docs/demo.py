"""Makes demo.png, the screenshot of the web page: two subjects, after one round, at an early step's mask.

    python -m realcustom_jax.demo --port 7860 &
    python docs/demo.py http://127.0.0.1:7860

Needs Chromium and the package playwright.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

_COMPILING = 400_000  # milliseconds


def main(address: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 1000})
        page.goto(address)
        page.wait_for_selector("#words_1 label.selected")
        page.wait_for_timeout(1000)
        page.click("button:has-text('a dog and a car in the snow')")
        page.wait_for_selector("#words_2 label.selected")
        page.fill("#count input[type=number]", "2")
        page.fill("#seed input", "3")
        page.keyboard.press("Tab")
        page.wait_for_timeout(500)
        page.click("#generate")
        page.wait_for_function("/ pictures in /.test(document.querySelector('#status').innerText)", timeout=_COMPILING)
        page.fill("#step input[type=number]", "6")
        page.keyboard.press("Tab")
        page.wait_for_selector("#legend >> text=Step 6")
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1000)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    # 256 colours are enough for the page, and a third of the bytes.
    small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
