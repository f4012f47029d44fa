"""How two phrases share a picture: whose place is whose, by each way of `masks.SHARING`.

    python -m benchmarks.experiments.sharing

Painted pictures of two test identities are noised, and the base model's maps of the two nouns divide 8 × 8 places. Of
what both things cover, the table says how much goes to the right phrase, and in how many pictures a phrase gets less
than a third; with maps as they are, and refined by self-attention. It is the last table of docs/evidence.md.
"""

import argparse

import numpy as np

import realcustom_jax as rc
from benchmarks.experiments.two_things import GRID, draw, held_out_bank, maps_of, noised, told
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.sampling.masks import SHARING

TIMESTEPS = (990, 900, 800, 700, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    options = parser.parse_args()
    pipeline = rc.Pipeline.load("mini")
    bank = held_out_bank()
    pictures = draw(pipeline, bank, options.pictures)
    things = average_pixels(pictures.coverage, GRID)
    conditioning, marks = told(pipeline, bank, pictures)
    print("| t | way | right | below a third | right, refined | below a third, refined |\n|--:|---|--:|--:|--:|--:|")
    for t in TIMESTEPS:
        out = maps_of(pipeline, noised(pipeline.betas, pictures.latents, t), t, conditioning, marks)
        for way in SHARING:
            cells = []
            for self_maps in (None, out.self_maps):
                kept = rc.subject_mask(out.maps, size=GRID, scope=1.0, overlap=way, self_maps=self_maps)
                cells += scores(np.asarray(kept) > 0, things)
            print(f"| {t} | {way} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


def scores(kept: np.ndarray, things: np.ndarray) -> list[float]:
    """The share of the things' places [N, 2, h, w] that the right phrase keeps, and how often one keeps less than a
    third of what both cover."""
    right = (kept * things).sum((1, 2, 3)) / things.sum((1, 2, 3))
    both = things.sum(1, keepdims=True)
    shares = (kept * both).sum((2, 3)) / both.sum((2, 3))
    return [float(right.mean()), float((shares.min(1) < 1 / 3).mean())]


if __name__ == "__main__":
    main()
