"""Twenty real photographs that ship in scikit-image's package, found without importing it."""

import importlib.util
from pathlib import Path

import pytest

NAMES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
    "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)


def photographs() -> list[Path]:
    """The files, in the order of `NAMES`; the test is skipped where scikit-image is not installed."""
    package = importlib.util.find_spec("skimage")
    if package is None:
        pytest.skip("could not import 'skimage', whose package holds the photographs")
    return [Path(package.submodule_search_locations[0]) / "data" / name for name in NAMES]
