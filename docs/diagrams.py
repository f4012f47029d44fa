"""Draws the diagrams of docs/method.md: python docs/diagrams.py writes docs/diagrams/*.svg.

Every shape is that of SDXL at 1024 × 1024 with the released encoders and one reference.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "diagrams"

INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
MASK_LINE = "#2f8f46"
GUIDANCE, GENERATION, NEGATIVE, MASK, PLAIN = "#cfe3fb", "#ffd8b0", "#e1e5ea", "#c9ecd0", "#f4f5f7"


class Drawing:
    """An SVG picture on white paper, so that it can be read on a dark page too."""

    def __init__(self, width: int, height: int, title: str):
        self.size, self.title, self.parts = (width, height), title, []

    def box(self, x, y, width, height, text: str, colour: str = PLAIN, small: str = ""):
        """A box with a line of text, and another of small text below it."""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{colour}" '
                          f'stroke="{INK}" stroke-width="1"/>')
        middle = x + width / 2
        self.text(middle, y + height / 2 + (5 if not small else -3), text, anchor="middle")
        if small:
            self.text(middle, y + height / 2 + 13, small, anchor="middle", size=11, colour=FAINT)

    def text(self, x, y, text: str, *, anchor="start", size=13, colour=INK, bold=False):
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>'
                          f"{escape(text)}</text>")

    def arrow(self, *points, colour=INK, dashed=False):
        """A line through the points, with a head at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes} '
                          'marker-end="url(#head)"/>')

    def svg(self) -> str:
        width, height = self.size
        head = ('<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>')
        paper = f'<rect width="{width}" height="{height}" fill="{PAPER}"/>'
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif">', f"<title>{escape(self.title)}</title>", head, paper,
            *self.parts, "</svg>", ""])


def step() -> Drawing:
    """The lanes of one step, and what passes between them."""
    d = Drawing(900, 380, "One step: the guidance branch makes the mask, the generation branch uses it")
    d.box(20, 165, 110, 50, "noisy latent z", small="[B, 128, 128, 4]")
    d.text(190, 28, "guidance branch: the text alone", bold=True)
    d.box(190, 42, 190, 50, "UNet (z | text)", GUIDANCE, "guidance lane")
    d.box(430, 42, 180, 50, "maps of the target", GUIDANCE, "70 layers, [B, R, h_l, w_l]")
    d.box(660, 42, 120, 50, "mask M", MASK, "[B, R, 64, 64]")
    d.text(190, 168, "generation branch: text and image", bold=True)
    d.box(190, 182, 420, 50, "UNet (z | text + M ⊙ vision tokens)", GENERATION, "generation lane")
    d.box(190, 252, 420, 50, "UNet (z | negative text + M ⊙ tokens of a black picture)", NEGATIVE, "negative lane")
    d.box(660, 217, 120, 50, "guided", small="n + 3.5 (g − n)")
    d.box(800, 217, 80, 50, "solver", small="next z")
    d.arrow((130, 180), (155, 180), (155, 67), (188, 67))
    d.arrow((130, 190), (165, 190), (165, 207), (188, 207))
    d.arrow((130, 200), (155, 200), (155, 277), (188, 277))
    d.arrow((380, 67), (428, 67))
    d.arrow((610, 67), (658, 67))
    d.arrow((720, 92), (720, 135), (500, 135), (500, 180), colour=MASK_LINE)
    d.arrow((720, 135), (632, 135), (632, 290), (612, 290), colour=MASK_LINE)
    d.arrow((610, 207), (645, 207), (645, 235), (658, 235))
    d.arrow((610, 268), (645, 268), (645, 250), (658, 250))
    d.arrow((780, 242), (798, 242))
    d.arrow((840, 267), (840, 345), (75, 345), (75, 217), dashed=True)
    d.text(400, 364, "the next step", anchor="middle", size=11, colour=FAINT)
    d.text(610, 128, "where the reference acts", anchor="middle", size=11, colour=FAINT)
    return d


def orders() -> Drawing:
    """Which lanes are one UNet call, in both orders."""
    d = Drawing(900, 362, "Which lanes run in one UNet call, step by step, in the sequential and in the fused order")
    lanes = (("guidance", GUIDANCE), ("generation", GENERATION), ("negative", NEGATIVE))
    for i, (name, colour) in enumerate(lanes):
        d.box(20 + 130 * i, 14, 120, 24, name, colour)
    d.text(425, 31, "a frame is one UNet call; below it, the mask that it uses", size=12, colour=FAINT)

    def call(x, y, colours, used):
        width = 26 * len(colours) + 8
        d.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="4" fill="none" stroke="{INK}" '
                       'stroke-width="1.5"/>')
        for i, colour in enumerate(colours):
            d.parts.append(f'<rect x="{x + 5 + 26 * i}" y="{y + 5}" width="24" height="24" fill="{colour}" '
                           f'stroke="{FAINT}" stroke-width="0.5"/>')
        if used:
            d.text(x + width / 2, y + 48, used, anchor="middle", size=11)
        return x + width + 6

    g, c, n = GUIDANCE, GENERATION, NEGATIVE
    shown = (("0", 0), ("1", 1), ("2", 2), ("…", None), ("11", 11), ("12", 12), ("…", None), ("24", 24))
    starts = (110, 232, 354, 476, 500, 622, 712, 736)
    for title, lane_y, fused in (("sequential", 90, False), ("fused", 240, True)):
        d.text(20, lane_y + 20, title, bold=True)
        d.text(20, lane_y + 38, "(as released)" if not fused else "(the default)", size=11, colour=FAINT)
        for (label, i), x in zip(shown, starts, strict=True):
            d.text(x + 4, lane_y - 10, f"step {label}" if i is not None else "…", size=11, colour=FAINT)
            if i is None:
                continue
            if i > 11:
                call(x, lane_y, (c, n), "m₁₁")
            elif fused and i > 0:
                call(x, lane_y, (g, c, n), f"m{_subscript(i - 1)}")
            else:
                call(call(x, lane_y, (g,), ""), lane_y, (c, n), f"m{_subscript(i)}")
        d.text(110, lane_y + 78, "37 calls, 62 lanes: m_i comes from this step's maps, before it is used" if not fused
               else "26 calls, 62 lanes: steps 1 to 11 use the mask of the step before, and make the next", size=12)
    d.text(20, 350, "T = 25 steps, the mask frozen from step K = 12 on. Calls: T + K sequential, T + 1 fused. "
           "Lanes: K + 2T in both.", size=12, colour=FAINT)
    return d


def _subscript(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def projector() -> Drawing:
    """From a reference to vision tokens."""
    d = Drawing(930, 440, "The CCP projector: from a reference to vision tokens")
    d.box(10, 165, 130, 50, "reference", small="any size → 768 × 768")
    d.box(190, 60, 130, 50, "whole", small="[1, 384, 384, 3]")
    d.box(190, 270, 130, 50, "4 parts", small="[4, 384, 384, 3]")
    d.box(370, 60, 130, 50, "SigLIP ‖ DINOv2", small="frozen; 1152 + 1024")
    d.box(370, 270, 130, 50, "SigLIP ‖ DINOv2", small="the same two")
    d.box(550, 20, 150, 50, "shallow", GUIDANCE, "[729, 2176] a layer")
    d.box(550, 110, 150, 50, "deep", GENERATION, "[729, 2176]")
    d.box(550, 270, 150, 50, "local", MASK, "[4 · 729, 2176]")
    d.arrow((140, 180), (165, 180), (165, 85), (188, 85))
    d.arrow((140, 200), (165, 200), (165, 295), (188, 295))
    d.arrow((320, 85), (368, 85))
    d.arrow((320, 295), (368, 295))
    d.arrow((500, 75), (525, 75), (525, 45), (548, 45))
    d.arrow((500, 95), (525, 95), (525, 135), (548, 135))
    d.arrow((500, 295), (548, 295))
    d.box(745, 20, 140, 50, "structure", GUIDANCE, "Q deep, KV shallow")
    d.box(745, 110, 140, 50, "base", GENERATION, "Linear(deep)")
    d.box(745, 270, 140, 50, "detail", MASK, "Q deep, KV local")
    d.arrow((700, 45), (743, 45))
    d.arrow((700, 135), (743, 135))
    d.arrow((700, 295), (743, 295))
    d.arrow((722, 135), (722, 60), (743, 60), dashed=True)
    d.arrow((722, 135), (722, 282), (743, 282), dashed=True)
    d.text(632, 212, "dashed: deep asks", anchor="middle", size=11, colour=FAINT)
    d.box(370, 365, 515, 50, "vision tokens [1, R, L, 2048]", PLAIN,
          "highres: base + detail, L = 729 · shallow: base ‖ structure · paper: (base + detail) ‖ structure, L = 1458")
    d.arrow((815, 320), (815, 363))
    d.arrow((885, 45), (920, 45), (920, 402), (887, 402))
    d.arrow((885, 135), (905, 135), (905, 380), (887, 380))
    return d


def mask() -> Drawing:
    """From maps to a mask."""
    d = Drawing(900, 152, "From the maps of all layers to the mask of each reference")
    stages = (
        ("maps", GUIDANCE, "10 of 64², 60 of 32²", "[B, R, h_l, w_l]"),
        ("mean", GUIDANCE, "resized, averaged", "[B, R, 64, 64]"),
        ("refine", PLAIN, "a ← S a, if asked", "S: [B, 4096, 4096]"),
        ("normalise", PLAIN, "a / max a", "0 … 1"),
        ("overlap", PLAIN, "one owner a place", "if R > 1"),
        ("scope", PLAIN, "the strongest quarter", "1024 of 4096"),
        ("mask M", MASK, "strength, or 0 and 1", "[B, R, 64, 64]"))
    for i, (name, colour, what, shape) in enumerate(stages):
        x = 12 + 126 * i
        d.box(x, 60, 118, 54, name, colour, what)
        d.text(x + 59, 134, shape, anchor="middle", size=11)
        if i:
            d.arrow((x - 8, 87), (x - 1, 87))
    d.text(12, 36, "rc.subject_mask(maps, size=(64, 64), scope=0.25, normalize=\"max_norm\", select=\"topk\", "
           "overlap=\"argmax\", …)", size=12)
    return d


DIAGRAMS = {"step": step, "orders": orders, "projector": projector, "mask": mask}


if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg())
