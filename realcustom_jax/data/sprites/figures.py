"""The eighteen nouns of the sprite world as articulated figures made of flat polygons.

A figure lives in its own frame: x to the right (every figure faces right), y up, the ground at y = 0 and the
crown at about y = 1, so that one unit is the figure's height. A function per noun takes the pose in [-1, 1]
(the phase of its legs, wings, arms, sails...) and returns a `Figure`. Nothing here knows of pixels or
colours: a part names its *ink*, and the painter decides what the ink looks like.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]


class Part(NamedTuple):
    """A filled polygon: `points` [k, 2], its ink, and whether it keeps its shape when the build changes."""

    points: np.ndarray
    ink: str
    rigid: bool = False


class Figure(NamedTuple):
    """Parts from back to front, and where the accessories go: a hat on `crown`, a scarf round `neck` (its
    `girth` wide), a flag on `back`."""

    parts: list[Part]
    crown: Point
    neck: Point
    girth: float
    back: Point


_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def polygon(*points: Point) -> np.ndarray:
    return np.array(points, float)


def box(left: float, bottom: float, right: float, top: float) -> np.ndarray:
    return polygon((left, bottom), (right, bottom), (right, top), (left, top))


def turned(points: np.ndarray, degrees: float, centre: Point) -> np.ndarray:
    """Rotates counter-clockwise about `centre`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (points - centre) @ np.array([[c, s], [-s, c]]) + centre


def oval(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> np.ndarray:
    points = _CIRCLE * (rx, ry) + (x, y)
    return turned(points, degrees, (x, y)) if degrees else points


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return oval(x, y, radius, radius)


def dome(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """The upper half of an ellipse."""
    return _CIRCLE[:13] * (rx, ry) + (x, y)


def limb(start: Point, end: Point, width: float, end_width: float | None = None) -> np.ndarray:
    """A thick line with a round end, narrowing from `width` to `end_width`."""
    a, b = np.array(start), np.array(end)
    along = (b - a) / max(np.hypot(*(b - a)), 1e-6)
    across = np.array([-along[1], along[0]])
    w0, w1 = width / 2, (width if end_width is None else end_width) / 2
    tip = [b + w1 * (np.sin(t) * along - np.cos(t) * across) for t in np.linspace(0, np.pi, 6)]
    return np.array([a + w0 * across, a - w0 * across, *tip])


def arc(x: float, y: float, radius: float, width: float, start: float, stop: float) -> np.ndarray:
    """A piece of a ring from angle `start` to `stop` (degrees)."""
    t = np.radians(np.linspace(start, stop, 14))
    ray = np.stack([np.cos(t), np.sin(t)], 1)
    return np.concatenate([ray * (radius + width / 2), ray[::-1] * (radius - width / 2)]) + (x, y)


def _eye(x: float, y: float, radius: float = 0.045) -> list[Part]:
    return [Part(disc(x, y, radius * 1.5), "eye", True), Part(disc(x + 0.02, y, radius), "dark", True)]


def _legs(xs: Sequence[float], top: float, width: float, swing: float, ink: str = "secondary") -> list[Part]:
    """Legs from `top` to the ground; neighbours swing against each other."""
    return [Part(limb((x, top), (x + swing * (-1) ** i, width / 2), width), ink) for i, x in enumerate(xs)]


def _wheel(x: float, radius: float, hub: str = "secondary") -> list[Part]:
    return [Part(disc(x, radius, radius), "dark", True), Part(disc(x, radius, radius * 0.66), hub, True)]


def dog(pose: float) -> Figure:
    wag = 0.1 * pose
    head = 0.7 + 0.04 * pose
    parts = [
        Part(limb((-0.4, 0.52), (-0.6 + wag, 0.85), 0.1, 0.07), "secondary"),
        *_legs((-0.32, -0.18, 0.16, 0.3), 0.4, 0.13, 0.1 * pose),
        Part(oval(-0.04, 0.46, 0.43, 0.19), "body"),
        Part(limb((0.25, 0.5), (0.34, head), 0.24), "body"),
        Part(oval(0.56, head - 0.05, 0.16, 0.1), "secondary", True),
        Part(disc(0.38, head + 0.05, 0.2), "primary", True),
        Part(disc(0.68, head - 0.01, 0.05), "dark", True),
        Part(oval(0.26, head, 0.09, 0.2, -8 + 12 * pose), "secondary", True),
        *_eye(0.45, head + 0.09),
    ]
    return Figure(parts, (0.38, head + 0.22), (0.3, 0.55), 0.3, (-0.25, 0.6))


def cat(pose: float) -> Figure:
    sway = 0.12 * pose
    x = 0.14 + 0.04 * pose
    parts = [
        Part(arc(-0.34, 0.32, 0.24, 0.1, 270 - 20 * pose, 100 - 40 * pose), "secondary"),
        Part(polygon((-0.36, 0), (-0.38, 0.2), (-0.22, 0.45), (0.0, 0.62), (0.26, 0.6), (0.32, 0.3),
                     (0.3, 0)), "body"),
        Part(limb((0.22, 0.36), (0.26 + sway, 0.06), 0.13), "secondary"),
        Part(oval(-0.12, 0.1, 0.24, 0.1), "secondary"),
        Part(polygon((x - 0.26, 0.7), (x - 0.26, 1.04), (x - 0.02, 0.88)), "secondary", True),
        Part(polygon((x + 0.26, 0.7), (x + 0.26, 1.04), (x + 0.02, 0.88)), "secondary", True),
        Part(oval(x, 0.73, 0.28, 0.21), "primary", True),
        *_eye(x - 0.04, 0.77),
        *_eye(x + 0.16, 0.77),
        Part(polygon((x + 0.03, 0.68), (x + 0.13, 0.68), (x + 0.08, 0.62)), "dark", True),
    ]
    return Figure(parts, (x, 0.92), (x, 0.53), 0.36, (-0.24, 0.42))


def horse(pose: float) -> Figure:
    nod = 0.05 * pose
    parts = [
        Part(limb((-0.38, 0.58), (-0.56 + 0.06 * pose, 0.22), 0.1, 0.14), "secondary"),
        *_legs((-0.32, -0.2, 0.14, 0.27), 0.45, 0.1, 0.13 * pose),
        Part(oval(-0.03, 0.53, 0.4, 0.17), "body"),
        Part(polygon((0.08, 0.6), (0.3, 0.4), (0.5, 0.82 + nod), (0.36, 0.98 + nod),
                     (0.28, 0.92 + nod)), "body"),
        Part(polygon((0.02, 0.64), (0.1, 0.6), (0.36, 0.9 + nod), (0.36, 1.04 + nod),
                     (0.2, 0.98 + nod)), "secondary"),
        Part(limb((0.38, 0.9 + nod), (0.64, 0.7 + nod), 0.22, 0.16), "primary", True),
        Part(disc(0.67, 0.7 + nod, 0.03), "dark", True),
        Part(polygon((0.32, 0.94 + nod), (0.36, 1.1 + nod), (0.44, 0.96 + nod)), "primary", True),
        *_eye(0.44, 0.88 + nod, 0.035),
    ]
    return Figure(parts, (0.34, 1.0 + nod), (0.3, 0.66), 0.3, (-0.24, 0.66))


def elephant(pose: float) -> Figure:
    curl = 0.14 * pose
    parts = [
        Part(limb((-0.48, 0.55), (-0.6, 0.32), 0.05), "primary"),
        *_legs((-0.36, -0.18, 0.1, 0.26), 0.4, 0.17, 0.06 * pose, "primary"),
        Part(oval(-0.08, 0.55, 0.44, 0.3), "body"),
        Part(limb((0.52, 0.6), (0.66 + curl, 0.3 + abs(curl)), 0.17, 0.12), "primary"),
        Part(limb((0.66 + curl, 0.3 + abs(curl)), (0.74 + 2 * curl, 0.14 + 2 * max(curl, 0)), 0.12,
                  0.08), "primary"),
        Part(limb((0.48, 0.5), (0.68, 0.44), 0.08, 0.02), "eye"),
        Part(disc(0.4, 0.68, 0.23), "primary", True),
        Part(oval(0.2, 0.66, 0.2, 0.27, 10 * pose), "secondary", True),
        *_eye(0.48, 0.74, 0.04),
    ]
    return Figure(parts, (0.4, 0.92), (0.14, 0.5), 0.5, (-0.3, 0.8))


def bird(pose: float) -> Figure:
    flap = 0.7 + 0.3 * pose
    parts = [
        Part(polygon((0.02, 0.5), (0.12, 0.6), (0.0, 0.55 + 0.5 * flap),
                     (-0.16, 0.5 + 0.42 * flap)), "secondary"),
        Part(polygon((-0.3, 0.4), (-0.66, 0.54), (-0.62, 0.4), (-0.68, 0.26), (-0.3, 0.3)), "secondary"),
        Part(oval(0.0, 0.38, 0.38, 0.2, 8), "body"),
        Part(polygon((0.48, 0.6), (0.74, 0.5), (0.48, 0.43)), "beak", True),
        Part(disc(0.37, 0.53, 0.17), "primary", True),
        Part(polygon((-0.2, 0.42), (0.18, 0.48), (-0.1, 0.5 + 0.5 * flap),
                     (-0.36, 0.4 + 0.55 * flap)), "secondary"),
        *_eye(0.42, 0.57, 0.04),
    ]
    return Figure(parts, (0.36, 0.69), (0.27, 0.42), 0.32, (-0.26, 0.46))


def duck(pose: float) -> Figure:
    bob = 0.04 * pose
    parts = [
        Part(limb((-0.02, 0.2), (-0.06 + 0.12 * pose, 0.05), 0.07), "beak"),
        Part(limb((0.12, 0.2), (0.12 - 0.12 * pose, 0.05), 0.07), "beak"),
        Part(polygon((-0.62, 0.56), (-0.46, 0.22), (-0.2, 0.1), (0.2, 0.1), (0.42, 0.24), (0.44, 0.46),
                     (0.1, 0.48), (-0.3, 0.42)), "body"),
        Part(limb((0.3, 0.35), (0.3, 0.75 + bob), 0.24, 0.2), "body"),
        Part(polygon((0.42, 0.82 + bob), (0.74, 0.76 + bob), (0.76, 0.68 + bob),
                     (0.42, 0.66 + bob)), "beak", True),
        Part(disc(0.32, 0.8 + bob, 0.18), "secondary", True),
        Part(oval(-0.08, 0.32 + bob, 0.27, 0.13, 12 + 20 * pose), "secondary"),
        *_eye(0.38, 0.84 + bob, 0.04),
    ]
    return Figure(parts, (0.32, 0.96 + bob), (0.3, 0.57 + bob), 0.26, (-0.34, 0.42))


def fish(pose: float) -> Figure:
    swish = 0.14 * pose
    parts = [
        Part(polygon((-0.28, 0.46), (-0.7, 0.78 + swish), (-0.58, 0.46 + swish),
                     (-0.7, 0.14 + swish)), "secondary"),
        Part(polygon((-0.24, 0.66), (-0.14, 0.98), (0.24, 0.86), (0.3, 0.66)), "secondary"),
        Part(polygon((-0.1, 0.26), (-0.18, 0.02), (0.14, 0.22)), "secondary"),
        Part(oval(0.06, 0.46, 0.5, 0.29), "body"),
        Part(turned(polygon((0.06, 0.44), (-0.18, 0.52), (-0.18, 0.28)), 25 * pose,
                    (0.06, 0.44)), "secondary"),
        *_eye(0.36, 0.55, 0.055),
        Part(limb((0.55, 0.38), (0.42, 0.36), 0.03), "dark", True),
    ]
    return Figure(parts, (0.2, 0.74), (0.12, 0.44), 0.5, (-0.2, 0.68))


def rabbit(pose: float) -> Figure:
    lean = 12 * pose
    parts = [
        Part(disc(-0.4, 0.26, 0.12), "secondary", True),
        Part(oval(-0.1, 0.28, 0.34, 0.26, 12), "body"),
        Part(limb((0.14, 0.26), (0.24 + 0.06 * pose, 0.06), 0.12), "primary"),
        Part(oval(-0.06 + 0.05 * pose, 0.08, 0.25, 0.09), "secondary"),
        Part(oval(0.1, 0.92, 0.075, 0.22, 14 + lean), "secondary", True),
        Part(oval(0.27, 0.92, 0.075, 0.22, -6 + lean), "secondary", True),
        Part(oval(0.22, 0.58, 0.22, 0.19), "primary", True),
        *_eye(0.3, 0.63),
        Part(disc(0.44, 0.56, 0.035), "dark", True),
    ]
    return Figure(parts, (0.2, 0.76), (0.14, 0.42), 0.34, (-0.28, 0.46))


def turtle(pose: float) -> Figure:
    reach = 0.06 * pose
    parts = [
        Part(polygon((-0.42, 0.2), (-0.68, 0.16), (-0.42, 0.32)), "secondary"),
        *_legs((-0.3, 0.3), 0.26, 0.2, 0.08 * pose),
        Part(limb((0.36, 0.3), (0.58 + reach, 0.46 + reach), 0.16), "secondary"),
        Part(oval(0.62 + reach, 0.5 + reach, 0.16, 0.14), "secondary", True),
        Part(dome(-0.04, 0.24, 0.52, 0.5), "body"),
        Part(limb((-0.56, 0.24), (0.48, 0.24), 0.11), "secondary"),
        *_eye(0.67 + reach, 0.54 + reach, 0.035),
    ]
    return Figure(parts, (0.62 + reach, 0.62 + reach), (0.46, 0.38), 0.2, (-0.24, 0.66))


def snail(pose: float) -> Figure:
    stretch = 0.08 * pose
    parts = [
        Part(polygon((-0.68, 0), (-0.3, 0.16), (0.3, 0.18), (0.4, 0.55), (0.56 + stretch, 0.6),
                     (0.68 + stretch, 0.46), (0.62, 0.1), (0.52, 0)), "secondary"),
        Part(limb((0.5 + stretch, 0.52), (0.42 + 2 * stretch, 0.86), 0.05), "secondary"),
        Part(limb((0.6 + stretch, 0.52), (0.66 + 2 * stretch, 0.84), 0.05), "secondary"),
        Part(disc(0.42 + 2 * stretch, 0.87, 0.06), "dark", True),
        Part(disc(0.66 + 2 * stretch, 0.85, 0.06), "dark", True),
        Part(disc(-0.1, 0.5, 0.4), "body", True),
        Part(arc(-0.1, 0.5, 0.24, 0.05, 20, 290), "dark", True),
        Part(arc(-0.06, 0.48, 0.11, 0.05, 200, 440), "dark", True),
    ]
    return Figure(parts, (-0.1, 0.9), (0.48, 0.32), 0.26, (-0.44, 0.66))


def robot(pose: float) -> Figure:
    parts = [
        Part(limb((0.0, 0.86), (0.0, 1.0), 0.05), "dark"),
        Part(disc(0.0, 1.02, 0.06), "secondary", True),
        *_legs((-0.17, 0.17), 0.3, 0.17, 0.08 * pose),
        Part(limb((-0.3, 0.5), (-0.5, 0.42 + 0.24 * pose), 0.13), "secondary"),
        Part(box(-0.3, 0.2, 0.3, 0.6), "body"),
        Part(limb((0.3, 0.5), (0.5, 0.42 - 0.24 * pose), 0.13), "secondary"),
        Part(box(-0.26, 0.6, 0.3, 0.9), "secondary"),
        Part(box(-0.06, 0.68, 0.3, 0.84), "dark"),
        Part(disc(0.03, 0.76, 0.05), "eye", True),
        Part(disc(0.2, 0.76, 0.05), "eye", True),
    ]
    return Figure(parts, (0.02, 0.9), (0.0, 0.57), 0.5, (-0.26, 0.6))


def car(pose: float) -> Figure:
    bounce = 0.03 * pose
    parts = [
        Part(polygon((-0.54, 0.46), (-0.38, 0.84 + bounce), (0.18, 0.84 + bounce), (0.4, 0.46)), "secondary"),
        Part(polygon((-0.36, 0.52), (-0.28, 0.72 + bounce), (-0.12, 0.72 + bounce), (-0.12, 0.52)), "glass"),
        Part(polygon((-0.01, 0.52), (-0.01, 0.72 + bounce), (0.12, 0.72 + bounce), (0.23, 0.52)), "glass"),
        Part(polygon((-0.66, 0.16), (-0.66, 0.44 + bounce), (-0.5, 0.5 + bounce), (0.34, 0.5 - bounce),
                     (0.62, 0.42 - bounce), (0.68, 0.3), (0.68, 0.16)), "body"),
        *_wheel(-0.38, 0.19),
        *_wheel(0.38, 0.19),
        Part(disc(0.63, 0.34 - bounce, 0.06), "light", True),
    ]
    return Figure(parts, (-0.08, 0.84), (0.04, 0.46), 0.3, (-0.52, 0.46))


def truck(pose: float) -> Figure:
    bounce = 0.03 * pose
    parts = [
        Part(box(-0.68, 0.16, 0.66, 0.28), "dark"),
        Part(box(-0.68, 0.26, 0.06, 0.94 + bounce), "body"),
        Part(polygon((0.1, 0.2), (0.1, 0.8 - bounce), (0.44, 0.8 - bounce), (0.6, 0.5), (0.7, 0.46),
                     (0.7, 0.2)), "secondary"),
        Part(polygon((0.28, 0.5), (0.28, 0.7 - bounce), (0.4, 0.7 - bounce), (0.5, 0.5)), "glass"),
        *_wheel(-0.48, 0.17),
        *_wheel(-0.1, 0.17),
        *_wheel(0.44, 0.17),
    ]
    return Figure(parts, (0.28, 0.8), (0.3, 0.4), 0.3, (-0.5, 0.92))


def plane(pose: float) -> Figure:
    bank = 0.12 * pose
    parts = [
        Part(polygon((-0.04, 0.54), (-0.2, 0.8 + bank), (-0.08, 0.8 + bank), (0.22, 0.54)), "secondary"),
        Part(polygon((-0.62, 0.52), (-0.72, 0.9), (-0.52, 0.9), (-0.32, 0.56)), "secondary"),
        Part(polygon((-0.72, 0.54), (-0.5, 0.38), (0.4, 0.32), (0.62, 0.36), (0.72, 0.46), (0.6, 0.56),
                     (0.44, 0.62), (-0.5, 0.6)), "body"),
        Part(polygon((0.44, 0.62), (0.42, 0.5), (0.66, 0.5), (0.58, 0.57)), "glass"),
        Part(polygon((0.26, 0.44), (-0.02, 0.44), (-0.38, 0.1 - bank), (-0.2, 0.1 - bank)), "secondary"),
        Part(polygon((-0.48, 0.5), (-0.74, 0.38 - bank), (-0.62, 0.38 - bank), (-0.34, 0.5)), "secondary"),
    ]
    return Figure([p._replace(points=turned(p.points, 12 * pose + 8, (0, 0.5))) for p in parts],
                  (0.3, 0.66 + 0.06 * pose), (0.38, 0.5 + 0.06 * pose), 0.3, (-0.3, 0.58 - 0.06 * pose))


def boat(pose: float) -> Figure:
    swing = 0.1 * pose
    parts = [
        Part(polygon((0.02, 0.36), (0.48 + swing, 0.36), (0.06, 0.98)), "secondary"),
        Part(polygon((-0.06, 0.36), (-0.48 + swing, 0.4), (-0.04, 1.0)), "secondary"),
        Part(limb((0.0, 0.3), (0.0, 1.02), 0.05), "dark"),
        Part(polygon((-0.62, 0.38), (0.7, 0.38), (0.44, 0.02), (-0.42, 0.02)), "body"),
    ]
    return Figure([p._replace(points=turned(p.points, 7 * pose, (0, 0.2))) for p in parts],
                  (0.0 - 0.1 * pose, 0.98), (0.3, 0.33), 0.3, (-0.5, 0.36))


def rocket(pose: float) -> Figure:
    fire = 0.06 * pose
    parts = [
        Part(polygon((-0.14, 0.16), (0.14, 0.16), (0.06, 0.04), (0.0, -0.1 - fire), (-0.06, 0.04)), "beak"),
        Part(polygon((-0.16, 0.46), (-0.42, 0.22), (-0.4, 0.04), (-0.12, 0.18)), "secondary"),
        Part(polygon((0.16, 0.46), (0.42, 0.22), (0.4, 0.04), (0.12, 0.18)), "secondary"),
        Part(polygon((-0.14, 0.15), (0.14, 0.15), (0.23, 0.4), (0.21, 0.7), (-0.21, 0.7),
                     (-0.23, 0.4)), "body"),
        Part(polygon((-0.22, 0.68), (0.22, 0.68), (0.14, 0.9), (0.0, 1.04), (-0.14, 0.9)), "secondary"),
        Part(disc(0.0, 0.54, 0.1), "glass", True),
    ]
    lean = -20 + 12 * pose
    anchors = turned(polygon((0.0, 0.98), (0.0, 0.4), (-0.2, 0.5)), lean, (0, 0.5))
    return Figure([p._replace(points=turned(p.points, lean, (0, 0.5))) for p in parts],
                  tuple(anchors[0]), tuple(anchors[1]), 0.44, tuple(anchors[2]))


def teapot(pose: float) -> Figure:
    lift = 0.04 * pose
    parts = [
        Part(arc(-0.4, 0.42, 0.2, 0.1, 70, 290), "secondary"),
        Part(polygon((0.3, 0.2), (0.3, 0.46), (0.52, 0.54), (0.58, 0.8), (0.76, 0.78), (0.66, 0.42),
                     (0.52, 0.28)), "secondary"),
        Part(box(-0.24, 0.0, 0.24, 0.12), "secondary"),
        Part(oval(0, 0.4, 0.43, 0.33), "body"),
        Part(dome(0, 0.66 + lift, 0.3, 0.17), "secondary"),
        Part(disc(0, 0.86 + lift, 0.08), "secondary", True),
    ]
    return Figure([p._replace(points=turned(p.points, -11 * pose, (0, 0.4))) for p in parts],
                  (0.08 * pose, 0.86), (0.04 * pose, 0.6), 0.56, (-0.28, 0.6))


def umbrella(pose: float) -> Figure:
    half = 0.6 - 0.1 * abs(pose)
    edges = np.linspace(-half, half, 5)
    gores = []
    for i, (left, right) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        scallop = np.linspace(0, np.pi, 5)
        lobe = zip(np.linspace(right, left, 5), 0.5 + 0.06 * np.sin(scallop), strict=True)
        rim = [(x, 0.5 + 0.44 * np.sqrt(max(1 - (x / half) ** 2, 0))) for x in np.linspace(left, right, 7)]
        gores.append(Part(polygon(*rim, *lobe), "secondary" if i in (0, 3) else "body"))
    parts = [
        Part(limb((0, 0.94), (0, 1.02), 0.06), "dark"),
        Part(box(-0.045, 0.14, 0.045, 0.6), "secondary"),
        Part(arc(0.12, 0.14, 0.12, 0.09, 180, 360), "secondary"),
        *gores,
    ]
    lean = -10 + 18 * pose
    anchors = turned(polygon((0, 0.96), (0, 0.42), (-0.3, 0.86)), lean, (0, 0.5))
    return Figure([p._replace(points=turned(p.points, lean, (0, 0.5))) for p in parts],
                  tuple(anchors[0]), tuple(anchors[1]), 0.2, tuple(anchors[2]))


def hat(figure: Figure) -> list[Part]:
    x, y = figure.crown
    return [
        Part(box(x - 0.13, y, x + 0.13, y + 0.24), "hat", True),
        Part(box(x - 0.13, y + 0.02, x + 0.13, y + 0.08), "band", True),
        Part(box(x - 0.24, y - 0.04, x + 0.24, y + 0.03), "hat", True),
    ]


def scarf(figure: Figure) -> list[Part]:
    x, y = figure.neck
    half = figure.girth / 2 + 0.03
    ring = [Part(box(x - half + half * i / 2, y - 0.07, x - half / 2 + half * i / 2, y + 0.07),
                 "scarf" if i % 2 == 0 else "fringe", True) for i in range(4)]
    tail = [Part(box(x - half, y - 0.17 - 0.1 * i, x - half + 0.16, y - 0.07 - 0.1 * i),
                 "fringe" if i % 2 == 0 else "scarf", True) for i in range(3)]
    return tail + ring


def flag(figure: Figure) -> list[Part]:
    x, y = figure.back
    return [
        Part(box(x - 0.03, y - 0.05, x + 0.03, y + 0.5), "pole", True),
        Part(polygon((x - 0.02, y + 0.5), (x - 0.36, y + 0.36), (x - 0.02, y + 0.22)), "flag", True),
    ]


_ANIMALS = (dog, cat, horse, elephant, bird, duck, fish, rabbit, turtle, snail)
_THINGS = (robot, car, truck, plane, boat, rocket, teapot, umbrella)
FIGURES: dict[str, Callable[[float], Figure]] = {figure.__name__: figure for figure in _ANIMALS + _THINGS}
ACCESSORY_PARTS: dict[str, Callable[[Figure], list[Part]]] = {
    "none": lambda figure: [],
    "hat": hat,
    "scarf": scarf,
    "flag": flag,
}
