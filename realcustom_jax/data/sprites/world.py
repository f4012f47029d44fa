"""The sprite world: identities, placements, and the painter that turns them into pictures.

A *noun* is what every caption names; an *identity* (two colours, a pattern, an accessory, a build) is what a caption
may leave out (module `captions`), and what a reference image then has to tell. Everything is deterministic by seed.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image, ImageDraw

from realcustom_jax.data.sprites.figures import ACCESSORY_PARTS, FIGURES, Figure, Part
from realcustom_jax.data.sprites.scenes import SCENE_PAINTERS, Canvas

NOUNS: tuple[str, ...] = tuple(FIGURES)
HELD_OUT_NOUNS: tuple[str, ...] = ("elephant", "turtle", "truck", "teapot")
SCENES: tuple[str, ...] = tuple(SCENE_PAINTERS)
PATTERNS: tuple[str, ...] = ("plain", "stripes", "spots", "halves")
ACCESSORIES: tuple[str, ...] = tuple(ACCESSORY_PARTS)
BUILDS: tuple[str, ...] = ("slim", "stout")

COLOUR_VALUES: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 36),
    "orange": (255, 138, 0),
    "yellow": (255, 226, 20),
    "green": (24, 160, 56),
    "blue": (28, 84, 232),
    "purple": (136, 36, 176),
    "pink": (255, 132, 196),
    "white": (252, 252, 252),
}
COLOURS: tuple[str, ...] = tuple(COLOUR_VALUES)

SCENE_PHRASES: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "forest": "in the forest",
    "desert": "in the desert",
    "city": "in the night city",
    "meadow": "in the meadow",
    "mountain": "on the mountain",
    "room": "in the room",
    "space": "in space",
    "sea": "on the sea",
}

PATTERN_WORDS: dict[str, str] = {"plain": "plain", "stripes": "striped", "spots": "spotted", "halves": "halved"}

_TEST_SHARE = 0.15
_SUPERSAMPLE = 3
_CUT_OUT_SUPERSAMPLE = 2
FRAME = 1.7
"""Side of a cut-out, in heights of the thing in it."""
_BUILD_WIDTH = {"slim": 0.78, "stout": 1.2}
_WIDEST = 1.35  # a figure's width in units of its size; wider ones shrink to fit
# Inks whose colour no identity changes, after the identity's own: index 0 is "nothing painted".
_FIXED_INKS: dict[str, tuple[int, int, int]] = {
    "dark": (38, 32, 44),
    "glass": (176, 226, 244),
    "light": (255, 250, 200),
    "beak": (255, 150, 20),
    "hat": (24, 22, 28),
    "band": (200, 30, 40),
    "scarf": (214, 24, 40),
    "fringe": (255, 255, 255),
    "pole": (120, 84, 40),
    "flag": (255, 220, 0),
    "eye": (255, 255, 255),
}
_INKS = {name: i for i, name in enumerate(("", "body", "primary", "secondary", "pattern", *_FIXED_INKS))}


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r} is not in the sprite world; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class Identity:
    """What makes a subject this one and no other of its noun.

    `primary` and `secondary` are different `COLOURS`; the rest are of `PATTERNS`, `ACCESSORIES`, `BUILDS`.
    """

    noun: str
    primary: str
    secondary: str
    pattern: str
    accessory: str
    build: str

    def __post_init__(self):
        known = (NOUNS, COLOURS, COLOURS, PATTERNS, ACCESSORIES, BUILDS)
        for (name, value), choices in zip(vars(self).items(), known, strict=True):
            _one_of(name, value, choices)
        if self.primary == self.secondary:
            raise ValueError(f"primary and secondary are both {self.primary!r}; choose two colours.")

    @property
    def attributes(self) -> np.ndarray:
        """int32[5]: class indices of primary, secondary, pattern, accessory, build."""
        known = (COLOURS, COLOURS, PATTERNS, ACCESSORIES, BUILDS)
        return np.array([k.index(v) for k, v in zip(known, astuple(self)[1:], strict=True)], np.int32)


@dataclass(frozen=True)
class Placement:
    """Where and how a subject stands: centre (x, y) and height `size` as fractions of the picture (y down),
    facing "left" or "right", and the pose in [-1, 1]: the phase of its limbs and a small tilt. A subject that
    would leave the picture is moved inside."""

    x: float
    y: float
    size: float
    facing: str
    pose: float

    def __post_init__(self):
        _one_of("facing", self.facing, ("left", "right"))
        if not -1 <= self.pose <= 1:
            raise ValueError(f"pose is {self.pose}; expected a number in [-1, 1].")


def identity_from(numbers: np.ndarray) -> Identity:
    """The identity of int32 [6]: the noun's index and `Identity.attributes`."""
    known = (NOUNS, COLOURS, COLOURS, PATTERNS, ACCESSORIES, BUILDS)
    return Identity(*(k[int(i)] for k, i in zip(known, numbers, strict=True)))


def split_of(identity: Identity) -> str:
    """ "train" or "test" (about 15 %), by a hash that is the same on every machine."""
    digest = hashlib.sha256("/".join(astuple(identity)).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < _TEST_SHARE * 2**32 else "train"


def random_identity(
    rng: np.random.Generator,
    *,
    noun: str | None = None,
    nouns: Sequence[str] = NOUNS,
    split: str | None = None,
) -> Identity:
    """Draws an identity of `noun`, or of one of `nouns`; `split` "train" or "test" keeps to that split."""
    if split not in ("train", "test", None):
        raise ValueError(f"split is {split!r}; expected 'train', 'test' or None.")
    noun = noun or nouns[rng.integers(len(nouns))]
    while True:
        primary, secondary = rng.choice(len(COLOURS), 2, replace=False)
        identity = Identity(noun, COLOURS[primary], COLOURS[secondary], PATTERNS[rng.integers(4)],
                            ACCESSORIES[rng.integers(4)], BUILDS[rng.integers(2)])
        if split in (None, split_of(identity)):
            return identity


def _dressed(identity: Identity, pose: float) -> tuple[list[Part], np.ndarray]:
    """All parts with build and accessory, and the middle [2] of the patterned body, in the figure's frame
    moved so that its centre is (0, 0)."""
    width = np.array([_BUILD_WIDTH[identity.build], 1.0])
    figure: Figure = FIGURES[identity.noun](pose)
    parts = []
    for part in figure.parts + ACCESSORY_PARTS[identity.accessory](figure):
        if part.rigid:
            middle = (part.points.min(0) + part.points.max(0)) / 2
            parts.append(part._replace(points=part.points + middle * (width - 1)))
        else:
            parts.append(part._replace(points=part.points * width))
    every = np.concatenate([part.points for part in parts])
    fit = min(1.0, _WIDEST / float(np.ptp(every[:, 0])))
    parts = [part._replace(points=(part.points - (0, 0.5)) * fit) for part in parts]
    body = np.concatenate([part.points for part in parts if part.ink == "body"])
    return parts, (body.min(0) + body.max(0)) / 2


def _pattern(name: str, along: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Where the second colour of a pattern lies, from figure coordinates relative to the body's middle."""
    if name == "stripes":
        return (along + 0.35 * up + 0.07) % 0.28 < 0.14
    if name == "spots":
        row = np.floor(up / 0.22 + 0.5)
        du = (along + 0.13 * (row % 2)) / 0.26
        return np.hypot((du - np.round(du)) * 0.26, up - row * 0.22) < 0.075
    return along < 0


def _stencil(identity: Identity, place: Placement, side: int) -> np.ndarray:
    """The subject as ink numbers, uint8 [side, side], 0 where nothing is painted."""
    parts, middle = _dressed(identity, place.pose)
    tilt = math.radians(5 * place.pose)
    c, s = math.cos(tilt), math.sin(tilt)
    flip = -1 if place.facing == "left" else 1
    # Figure frame (y up) -> pixels: tilt, mirror, scale.
    matrix = place.size * side * np.array([[flip * c, -s], [-flip * s, -c]])
    placed = [part.points @ matrix for part in parts]
    every = np.concatenate(placed)
    low, high = every.min(0), every.max(0)
    centre = np.array([place.x, place.y]) * side
    margin = np.minimum(side / 64, np.maximum(0, (side - (high - low)) / 2))
    inside = np.clip(centre, margin - low, side - margin - high)
    origin = np.where(high - low > side, (side - high - low) / 2, inside)

    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    line = max(round(side / 64), 1)
    for part, points in zip(parts, placed, strict=True):
        xy = (points + origin).ravel().tolist()
        draw.polygon(xy, fill=_INKS[part.ink])
        draw.line(xy + xy[:4], fill=_INKS["dark"], width=line)
    inks = np.array(image)
    if identity.pattern != "plain":
        rows, columns = np.nonzero(inks == _INKS["body"])
        local = (np.stack([columns, rows], 1) - origin) @ np.linalg.inv(matrix) - middle
        hit = _pattern(identity.pattern, local[:, 0], local[:, 1])
        inks[rows[hit], columns[hit]] = _INKS["pattern"]
    return inks


def _palette(identity: Identity) -> list[int]:
    primary, secondary = COLOUR_VALUES[identity.primary], COLOUR_VALUES[identity.secondary]
    colours = [(0, 0, 0), primary, primary, secondary, secondary, *_FIXED_INKS.values()]
    return [channel for colour in colours for channel in colour]


def cut_out(identity: Identity, pose: float, side: int) -> np.ndarray:
    """The subject alone, facing right, in the middle of `FRAME` times its height: uint8 [side, side, 4], colours
    premultiplied by opacity."""
    inks = _stencil(identity, Placement(0.5, 0.5, 1 / FRAME, "right", pose), side * _CUT_OUT_SUPERSAMPLE)
    palette = np.zeros((256, 4), np.uint8)
    colours = np.array(_palette(identity), np.uint8).reshape(-1, 3)
    palette[: len(colours), :3] = colours
    palette[1:, 3] = 255  # ink 0 is "nothing painted"
    picture = palette[inks].reshape(side, _CUT_OUT_SUPERSAMPLE, side, _CUT_OUT_SUPERSAMPLE, 4)
    return np.round(picture.mean((1, 3), dtype=np.float32)).astype(np.uint8)


def _paint_over(background: Image.Image, subjects: Sequence[tuple[Identity, Placement]]) -> list[np.ndarray]:
    """Paints the subjects in order onto `background` (in place) and returns their visible stencils, bool."""
    visible: list[np.ndarray] = []
    for identity, place in subjects:
        inks = _stencil(identity, place, background.width)
        painted = inks > 0
        coloured = Image.fromarray(inks)
        coloured.putpalette(_palette(identity))
        background.paste(coloured.convert("RGB"), mask=Image.fromarray(painted.astype(np.uint8) * 255))
        visible = [earlier & ~painted for earlier in visible] + [painted]
    return visible


def paint(subjects: Sequence[tuple[Identity, Placement]], scene: str, *, seed: int,
          size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Paints subjects, the first at the back, in a scene whose details follow `seed`.

    Returns the picture, uint8 [S, S, 3], and each subject's visible pixels, bool [N, S, S].
    """
    _one_of("scene", scene, SCENES)
    canvas = Canvas(size * _SUPERSAMPLE)
    SCENE_PAINTERS[scene](canvas, np.random.default_rng(seed))
    stencils = _paint_over(canvas.image, subjects)
    shares = [s.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE).sum((1, 3)) for s in stencils]
    masks = np.array([share * 2 > _SUPERSAMPLE**2 for share in shares], bool).reshape(-1, size, size)
    return np.asarray(canvas.image.reduce(_SUPERSAMPLE)), masks
