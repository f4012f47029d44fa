"""The ten scenes of the sprite world, each a flat landscape whose details vary with the random generator.

Scene coordinates are fractions of the picture, x to the right and y down. Colours are paler or duller than
the subjects' saturated ones, so that a scene never hides a subject.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


class Canvas:
    """A square RGB picture painted in fractional coordinates."""

    def __init__(self, side: int):
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        s = self.side
        self._draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.side
        self._draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.oval(x, y, radius, radius, colour)

    def polygon(self, colour: Colour, *points: tuple[float, float]) -> None:
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        s = self.side
        self._draw.line((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour, width=round(width * s))


def _cloud(c: Canvas, x: float, y: float, colour: Colour = (255, 255, 255)) -> None:
    c.oval(x, y, 0.13, 0.045, colour)
    c.disc(x - 0.02, y - 0.03, 0.055, colour)


def _pine(c: Canvas, x: float, y: float, height: float, leaf: Colour, snow: Colour | None = None) -> None:
    c.box(x - 0.02, y - 0.1 * height, x + 0.02, y, (96, 66, 48))
    for i in range(3):
        top, half = y - height * (0.55 + 0.22 * i), height * (0.3 - 0.07 * i)
        c.polygon(leaf, (x, top), (x - half, top + 0.45 * height), (x + half, top + 0.45 * height))
        if snow:
            c.polygon(snow, (x, top), (x - half / 2, top + 0.2 * height), (x + half / 2, top + 0.2 * height))


def beach(c: Canvas, rng: np.random.Generator) -> None:
    shore = rng.uniform(0.54, 0.62)
    side = rng.choice((0.1, 0.9))
    c.box(0, 0, 1, 1, (160, 220, 248))
    c.disc(1 - side + rng.uniform(-0.06, 0.06), 0.14, 0.09, (255, 238, 130))
    c.box(0, 0.42, 1, 1, (64, 186, 204))
    c.polygon((250, 250, 240), (0, shore), (1, shore + 0.05), (1, 1), (0, 1))
    c.polygon((244, 220, 160), (0, shore + 0.03), (1, shore + 0.08), (1, 1), (0, 1))
    lean = side + (0.5 - side) * 0.25
    c.line(side, 0.8, lean, 0.26, 0.05, (140, 100, 64))
    for dx, dy in ((-0.2, 0.06), (0.2, 0.06), (-0.14, -0.1), (0.14, -0.1), (0.0, 0.16)):
        c.polygon((70, 150, 84), (lean, 0.2), (lean + dx, 0.26 + dy), (lean + dx * 0.4, 0.33))


def snow(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (150, 172, 200))
    for _ in range(18):
        c.disc(rng.uniform(0, 1), rng.uniform(0, 0.55), 0.014, (250, 252, 255))
    c.oval(rng.uniform(0.1, 0.9), 0.8, 0.6, 0.34, (206, 222, 238))
    c.box(0, 0.64, 1, 1, (228, 238, 248))
    c.oval(rng.uniform(0.2, 0.8), 0.68, 0.5, 0.08, (228, 238, 248))
    _pine(c, rng.uniform(0.06, 0.2), 0.66, 0.44, (70, 112, 104), (240, 246, 252))
    _pine(c, rng.uniform(0.8, 0.94), 0.68, 0.5, (70, 112, 104), (240, 246, 252))


def forest(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (86, 128, 84))
    for x in np.arange(5) / 4 + rng.uniform(-0.06, 0.06, 5):
        c.box(x - 0.05, 0, x + 0.05, 0.72, (92, 68, 50))
    for x in np.arange(6) / 5 + rng.uniform(-0.05, 0.05, 6):
        c.disc(x, 0.04, 0.17, (36, 82, 48))
    c.box(0, 0.68, 1, 1, (78, 84, 48))
    for x in rng.uniform(0, 1, 4):
        c.oval(x, 0.7, 0.1, 0.05, (48, 98, 54))


def desert(c: Canvas, rng: np.random.Generator) -> None:
    side = rng.choice((0.12, 0.88))
    c.box(0, 0, 1, 1, (252, 214, 160))
    c.disc(1 - side, 0.18, 0.11, (255, 246, 214))
    c.oval(rng.uniform(0, 1), 0.8, 0.6, 0.3, (226, 164, 96))
    c.oval(rng.uniform(0, 1), 1.0, 0.9, 0.4, (208, 140, 76))
    c.box(0, 0.82, 1, 1, (208, 140, 76))
    y = rng.uniform(0.7, 0.76)
    green = (84, 136, 88)
    c.line(side, y, side, y - 0.44, 0.08, green)
    c.disc(side, y - 0.44, 0.04, green)
    for arm, h in ((-0.1, 0.2), (0.1, 0.26)):
        c.line(side, y - h + 0.02, side + arm, y - h + 0.02, 0.05, green)
        c.line(side + arm, y - h + 0.04, side + arm, y - h - 0.1, 0.05, green)


def city(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (26, 30, 66))
    moon = rng.uniform(0.15, 0.85)
    c.disc(moon, 0.12, 0.07, (236, 236, 214))
    for i in range(5):
        left, top = i * 0.2 + rng.uniform(0, 0.02), rng.uniform(0.14, 0.42)
        c.box(left, top, left + 0.17, 0.8, (66, 70, 108) if i % 2 else (52, 54, 90))
        for wy in np.arange(top + 0.05, 0.72, 0.12):
            for wx in (0.03, 0.1):
                if rng.random() < 0.5:
                    c.box(left + wx, wy, left + wx + 0.045, wy + 0.06, (226, 188, 104))
    c.box(0, 0.76, 1, 1, (84, 84, 94))
    for x in np.arange(0, 1, 0.3) + rng.uniform(0, 0.15):
        c.box(x, 0.87, x + 0.15, 0.9, (214, 214, 206))


def meadow(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (142, 206, 250))
    _cloud(c, rng.uniform(0.1, 0.4), rng.uniform(0.12, 0.24))
    _cloud(c, rng.uniform(0.6, 0.9), rng.uniform(0.12, 0.24))
    c.oval(rng.uniform(0.1, 0.9), 0.78, 0.6, 0.26, (168, 216, 122))
    c.box(0, 0.62, 1, 1, (148, 204, 100))
    for x in np.arange(8) / 8 + rng.uniform(0, 0.1, 8):
        y = rng.uniform(0.68, 0.96)
        c.disc(x, y, 0.028, ((250, 120, 130), (255, 250, 250), (255, 226, 96))[rng.integers(3)])


def mountain(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (206, 208, 236))
    for x, top, half in ((rng.uniform(0.1, 0.3), 0.14, 0.42), (rng.uniform(0.65, 0.9), 0.06, 0.46)):
        c.polygon((122, 122, 150), (x, top), (x - half, 0.8), (x + half, 0.8))
        cap = 0.3
        c.polygon((250, 250, 255), (x, top), (x - half * cap, top + 0.22), (x - half * 0.1, top + 0.16),
                  (x + half * 0.1, top + 0.24), (x + half * cap, top + 0.22))
    left, right = rng.uniform(0.68, 0.76, 2)
    c.polygon((150, 144, 138), (0, left), (0.5, 0.72), (1, right), (1, 1), (0, 1))
    for x in rng.uniform(0, 1, 4):
        y = rng.uniform(0.8, 0.96)
        c.polygon((116, 112, 112), (x - 0.07, y), (x, y - 0.06), (x + 0.07, y))


def room(c: Canvas, rng: np.random.Generator) -> None:
    side = rng.choice((0.06, 0.58))
    c.box(0, 0, 1, 1, (236, 206, 190))
    x = side + rng.uniform(0, 0.06)
    c.box(x, 0.1, x + 0.34, 0.48, (250, 250, 250))
    c.box(x + 0.03, 0.13, x + 0.31, 0.45, (176, 224, 250))
    c.box(x + 0.155, 0.1, x + 0.185, 0.48, (250, 250, 250))
    c.box(x, 0.28, x + 0.34, 0.31, (250, 250, 250))
    other = 0.7 - side + rng.uniform(-0.04, 0.04)
    c.box(other, 0.16, other + 0.22, 0.38, (120, 84, 60))
    c.box(other + 0.03, 0.19, other + 0.19, 0.35, (204, 190, 140))
    c.box(0, 0.68, 1, 0.72, (250, 244, 236))
    c.box(0, 0.72, 1, 1, (172, 122, 84))
    for px in np.arange(-0.5, 1.6, 0.25) + rng.uniform(0, 0.2):
        c.line(px, 0.72, 0.5 + 1.6 * (px - 0.5), 1, 0.012, (144, 98, 64))
    c.oval(rng.uniform(0.4, 0.6), 0.88, 0.36, 0.08, (150, 160, 176))


def space(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (18, 14, 36))
    for x, y in rng.uniform(0, 1, (26, 2)):
        c.disc(x, y, 0.012, (255, 255, 240))
    side = rng.choice((0.2, 0.8))
    y = rng.uniform(0.16, 0.24)
    c.disc(side, y, 0.14, (206, 142, 108))
    c.line(side - 0.24, y + 0.06, side + 0.24, y - 0.06, 0.035, (236, 214, 170))
    c.disc(1 - side + rng.uniform(-0.08, 0.08), rng.uniform(0.12, 0.2), 0.06, (150, 160, 180))
    c.oval(0.5, 1.06, 0.8, 0.24, (112, 112, 124))
    for x in rng.uniform(0.05, 0.95, 4):
        c.oval(x, rng.uniform(0.93, 0.97), 0.06, 0.02, (82, 82, 96))


def sea(c: Canvas, rng: np.random.Generator) -> None:
    c.box(0, 0, 1, 1, (204, 234, 246))
    _cloud(c, rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.2))
    phase = rng.uniform(0, 1)
    x = np.linspace(0, 1, 33)
    for i, colour in enumerate(((92, 160, 210), (64, 132, 190), (48, 108, 168), (38, 88, 146))):
        y = 0.42 + 0.15 * i + 0.022 * np.sin(2 * np.pi * (3 * x + phase + 0.37 * i))
        c.polygon((226, 242, 250), (0, 1), *zip(x, y - 0.02, strict=True), (1, 1))
        c.polygon(colour, (0, 1), *zip(x, y, strict=True), (1, 1))


SCENE_PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    f.__name__: f for f in (beach, snow, forest, desert, city, meadow, mountain, room, space, sea)
}
