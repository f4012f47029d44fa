"""How two phrases share a picture: whose place is whose, by each way of `masks.SHARING`.

    python -m benchmarks.experiments.sharing

Painted pictures of two test identities are noised, and the base model's maps of the two nouns divide 8 × 8 places. Of
what both things cover, the table says how much goes to the right phrase, and in how many pictures a phrase gets less
than a third; with maps as they are, and refined by self-attention. It is the last table of docs/evidence.md.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import realcustom_jax as rc
from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.data.sprites.bank import BankConfig, paint_bank
from realcustom_jax.data.sprites.captions import caption
from realcustom_jax.data.sprites.composition import compose_few
from realcustom_jax.data.sprites.draws import draw_layout, draw_things
from realcustom_jax.data.sprites.world import SCENES
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.masks import SHARING

TIMESTEPS = (990, 900, 800, 700, 500)
GRID = (8, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    options = parser.parse_args()
    pipeline = rc.Pipeline.load("mini")
    latents, coverage, conditioning, marks = painted(pipeline, options.pictures)
    things = np.asarray(average_pixels(coverage, GRID))
    unet = pipeline.unet

    @jax.jit
    def maps(params, noisy, t):
        return unet.module.apply(
            {"params": params}, noisy, t, conditioning.text, pooled=conditioning.pooled,
            time_ids=conditioning.time_ids, target=marks, self_maps_at=GRID)

    print("| t | way | right | below a third | right, refined | below a third, refined |\n|--:|---|--:|--:|--:|--:|")
    for t in TIMESTEPS:
        times = jnp.full(len(latents), t)
        noise = jax.random.normal(jax.random.key(t), latents.shape)
        out = maps(unet.params, solvers.add_noise(latents, noise, times, pipeline.betas), times)
        for way in SHARING:
            cells = []
            for self_maps in (None, out.self_maps):
                kept = rc.subject_mask(out.maps, size=GRID, scope=1.0, overlap=way, self_maps=self_maps)
                cells += scores(np.asarray(kept) > 0, things)
            print(f"| {t} | {way} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


def painted(pipeline: rc.Pipeline, count: int):
    """(latents [N, h, w, C], coverage [N, 2, P, P], the captions' conditioning, the nouns' marks [N, 2, T])."""
    bank = paint_bank(BankConfig(identities=180, poses=2, scenes=8, split="test"))
    rng = np.random.default_rng(0)
    things = draw_things(rng, bank, np.arange(len(bank.cut_outs)), count, 1.0)
    layout = draw_layout(rng, bank, things)
    pictures, coverage = compose_few(bank.cut_outs, bank.scenes, layout)
    vae = pipeline.vae
    encode = jax.jit(lambda params, images: vae.module.apply({"params": params}, images, method="encode").mean)
    latents = encode(vae.params, from_uint8(255 * pictures)) * vae.module.config.scaling_factor
    identities = [[bank.identity(thing) for thing in pair] for pair in things]
    prompts = [str(caption([(identity, ()) for identity in pair], SCENES[scene]))
               for pair, scene in zip(identities, bank.scene_names[layout.scene], strict=True)]
    marks = np.stack([[rc.target_tokens(pipeline.tokenizer, prompt, identity.noun) for identity in pair]
                      for prompt, pair in zip(prompts, identities, strict=True)])
    return latents, coverage, pipeline.encode_prompts(prompts), jnp.asarray(marks)


def scores(kept: np.ndarray, things: np.ndarray) -> list[float]:
    """The share of the things' places [N, 2, h, w] that the right phrase keeps, and how often one keeps less than a
    third of what both cover."""
    right = (kept * things).sum((1, 2, 3)) / things.sum((1, 2, 3))
    both = things.sum(1, keepdims=True)
    shares = (kept * both).sum((2, 3)) / both.sum((2, 3))
    return [float(right.mean()), float((shares.min(1) < 1 / 3).mean())]


if __name__ == "__main__":
    main()
