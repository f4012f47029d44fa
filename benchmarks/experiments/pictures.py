"""The README's first picture: one subject, one beside a bystander that words describe, and two subjects.

    python -m benchmarks.experiments.pictures --out docs/contact_sheet.png
"""

import argparse
from pathlib import Path

from PIL import Image

import realcustom_jax as rc
from realcustom_jax.contact_sheet import contact_sheet
from realcustom_jax.files import png, write_file
from realcustom_jax.model_files.locate import ASSETS

CALLS = (
    (("dog",), "a dog in the forest", ("dog",)),
    (("cat",), "a cat and a bare stout red and yellow striped car on the beach", ("cat",)),
    (("dog", "car"), "a dog and a car in the snow", ("dog", "car")),
)
"""(references, prompt, target phrases) of each row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs=len(CALLS), default=(0, 0, 0), help="of the rows")
    options = parser.parse_args()
    pipeline = rc.Pipeline.load("mini")
    sheets = [
        contact_sheet(pipeline([ASSETS / "references" / f"{name}.png" for name in names], prompt, targets, seed=seed))
        for (names, prompt, targets), seed in zip(CALLS, options.seeds, strict=True)]
    page = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    write_file(options.out, png(page))


if __name__ == "__main__":
    main()
