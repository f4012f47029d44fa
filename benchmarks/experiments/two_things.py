"""Painted pictures of two things under noise, and the base model's maps of their two nouns: what `sharing` and
`place_ceiling` look at."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import realcustom_jax as rc
from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.data.sprites.bank import Bank, BankConfig, paint_bank
from realcustom_jax.data.sprites.captions import caption
from realcustom_jax.data.sprites.composition import compose_few
from realcustom_jax.data.sprites.draws import draw_layout, draw_things
from realcustom_jax.data.sprites.world import SCENES
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.models.unet import UNetOutput
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.lanes import Conditioning

GRID = (8, 8)
"""The places of the miniature's masks."""
_AT_ONCE = 64  # pictures that are composed and encoded together


@dataclasses.dataclass(frozen=True)
class TwoThings:
    """N pictures of two things each.

    Attributes:
        things: int32 [N, 2], the bank's cut-outs that they show.
        nouns: int32 [N, 2], indices into `NOUNS`. scenes: int32 [N], indices into `SCENES`.
        latents: float32 [N, h, w, C], of unit variance.
        coverage: float32 [N, 2, h, w] in [0, 1], how much of each latent place each thing fills.
    """

    things: np.ndarray
    nouns: np.ndarray
    scenes: np.ndarray
    latents: np.ndarray
    coverage: np.ndarray

    def part(self, some: slice | np.ndarray) -> "TwoThings":
        """Some of the pictures, or those of an array of rows."""
        return TwoThings(**{name: x[some] for name, x in vars(self).items()})

    def left_to_right(self) -> "TwoThings":
        """The same pictures, with the thing that is further to the left as each one's first."""
        x = (self.coverage * np.arange(self.coverage.shape[-1])).sum((2, 3)) / self.coverage.sum((2, 3))
        order = np.argsort(x, axis=1)
        things, nouns = (np.take_along_axis(x, order, 1) for x in (self.things, self.nouns))
        coverage = np.take_along_axis(self.coverage, order[:, :, None, None], 1)
        return TwoThings(things, nouns, self.scenes, self.latents, coverage)


def draw(pipeline: rc.Pipeline, bank: Bank, count: int, seed: int = 0) -> TwoThings:
    """So many pictures of the bank's things, encoded by the pipeline's autoencoder."""
    rng = np.random.default_rng(seed)
    things = draw_things(rng, bank, np.arange(len(bank.cut_outs)), count, 1.0)
    layout = draw_layout(rng, bank, things)
    vae = pipeline.vae
    encode = jax.jit(lambda params, images: vae.module.apply({"params": params}, images, method="encode").mean)
    latents, coverage = [], []
    with tqdm(total=count, desc="encoding pictures", unit="picture", mininterval=2) as bar:
        for start in range(0, count, _AT_ONCE):
            part = jax.tree.map(lambda x, start=start: x[start : start + _AT_ONCE], layout)
            pictures, covered = compose_few(bank.cut_outs, bank.scenes, part)
            encoded = encode(vae.params, from_uint8(255 * pictures)) * vae.module.config.scaling_factor
            latents.append(np.asarray(encoded))
            coverage.append(np.asarray(average_pixels(covered, encoded.shape[1:3])))
            bar.update(len(encoded))
    return TwoThings(things, bank.identities[things, 0], bank.scene_names[layout.scene], np.concatenate(latents),
                     np.concatenate(coverage))


def held_out_bank() -> Bank:
    """Things of the test split, which nothing was trained on."""
    return paint_bank(BankConfig(identities=180, poses=2, scenes=8, split="test"))


def noised(betas: np.ndarray, latents: np.ndarray, t: int) -> jax.Array:
    """Latents [N, h, w, C] at a timestep of a schedule, always with the same noise."""
    noise = jax.random.normal(jax.random.key(t), latents.shape)
    return solvers.add_noise(latents, noise, jnp.full(len(latents), t), betas)


def told(pipeline: rc.Pipeline, bank: Bank, pictures: TwoThings) -> tuple[Conditioning, np.ndarray]:
    """The conditioning by captions that name both things and the scene, and nothing of what they look like; and the
    nouns' marks [N, 2, T]."""
    identities = [[bank.identity(thing) for thing in pair] for pair in pictures.things]
    prompts = [str(caption([(identity, ()) for identity in pair], SCENES[scene]))
               for pair, scene in zip(identities, pictures.scenes, strict=True)]
    marks = np.stack([[rc.target_tokens(pipeline.tokenizer, prompt, identity.noun) for identity in pair]
                      for prompt, pair in zip(prompts, identities, strict=True)])
    return pipeline.encode_prompts(prompts), marks


def maps_of(pipeline: rc.Pipeline, noisy: jax.Array, t: int, conditioning: Conditioning, marks: np.ndarray
            ) -> UNetOutput:
    """The base model's output with the cross-attention maps of the marked nouns and self-attention maps at `GRID`."""
    unet = pipeline.unet
    return _maps(unet.module, unet.params, noisy, jnp.full(len(noisy), t), conditioning, marks)


@functools.partial(jax.jit, static_argnums=0)
def _maps(unet, params, noisy, t, conditioning, marks):
    return unet.apply({"params": params}, noisy, t, conditioning.text, pooled=conditioning.pooled,
                      time_ids=conditioning.time_ids, target=marks, self_maps_at=GRID)
