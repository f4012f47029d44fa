"""Makes docs/control.png: what masks, strengths and a picture to begin with do; in 3 min on a CPU."""

from pathlib import Path

from PIL import Image, ImageDraw

import realcustom_jax as rc
from realcustom_jax.data.sprites.world import paint
from realcustom_jax.model_files.locate import ASSETS

DOG, CAR = (ASSETS / "references" / f"{noun}.png" for noun in ("dog", "car"))
SCALE, GAP, LABEL = 2, 12, 22


def main() -> None:
    """Writes the picture beside this file."""
    pipeline = rc.Pipeline.load("mini")
    dog, two = (DOG, "a dog on the beach", "dog"), ([DOG, CAR], "a dog and a car on the beach", ["dog", "car"])
    empty = Image.fromarray(paint([], "beach", seed=1, size=pipeline.sizes.native)[0])
    left, right = (0, 32, 64, 120), (64, 32, 128, 120)
    rows = [
        [("attention's masks", two, {"seed": 1}),
         ("dog on the left, car by attention", two, {"masks": [left, None], "seed": 6}),
         ("dog on the left, car on the right", two, {"masks": [left, right]})],
        [(f"strength {strength:g}", dog, {"vision_scale": strength, "seed": 3}) for strength in (0, 0.5, 1)],
        [("a picture to begin with", None, {}), ("painted anew within the box", dog, {
            "init_image": empty, "mask_image": (24, 40, 112, 120), "seed": 5}),
         ("changed, strength 0.7", dog, {"init_image": empty, "strength": 0.7, "seed": 5})],
    ]
    side = SCALE * pipeline.sizes.native
    width, height = side + GAP, side + LABEL + GAP
    sheet = Image.new("RGB", (3 * width + GAP, 3 * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, call, options) in enumerate(row):
            image = empty if call is None else pipeline(*call, **options).images[0]
            image = image.resize((side, side), Image.Resampling.LANCZOS)
            scaled = ImageDraw.Draw(image)
            boxes = [*options.get("masks", ()), options.get("mask_image")]
            for box, colour in zip(filter(None, boxes), ("red", "blue"), strict=False):
                scaled.rectangle([SCALE * edge for edge in box], outline=colour, width=2)
            corner = GAP + x * width, GAP + y * height
            sheet.paste(image, corner)
            draw.text((corner[0], corner[1] + side + 4), label, fill="black", font_size=15)
    sheet.quantize(128).save(Path(__file__).with_name("control.png"), optimize=True)


if __name__ == "__main__":
    main()
