"""The lanes of each image, which are the batch of its UNet call; module `sampler` says what they are."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from realcustom_jax.arrays import Array
from realcustom_jax.devices.programs import jit_kept
from realcustom_jax.devices.sharding import vmapped_axes
from realcustom_jax.models import context
from realcustom_jax.models.unet import UNet, UNetOutput
from realcustom_jax.sampling.solvers import Solver

VisionScale = ArrayLike | Sequence[float] | Mapping[str, ArrayLike]
"""The strength of the visual term: one number, one for each reference [R], or either of them by block, see
`context.scale_vision`."""


@flax.struct.dataclass
class Conditioning:
    """What the UNet sees beside the latents. `conditioning.replace(vision=tokens)` is a copy with other tokens.

    Attributes:
        text: [B, T, D] text tokens.
        pooled: [B, P] pooled text; None but for SDXL's kind of UNet, as the miniature's is.
        time_ids: [B, 6] size conditioning; likewise.
        vision: [B, R, L, D] projected tokens of R references; None: no visual term.
    """

    text: Array
    pooled: Array | None = None
    time_ids: Array | None = None
    vision: Array | None = None


@functools.partial(jit_kept, returns=(Conditioning,))
def zero_conditioning(conditioning: Conditioning) -> Conditioning:
    """Zeros in the place of all that a conditioning holds."""
    return jax.tree.map(jnp.zeros_like, conditioning)


@functools.partial(jit_kept, static_argnums=0, returns=(Conditioning,))
def conditionings_of_images(
    count: int, positive: Conditioning, negative: Conditioning, vision: jax.Array, marks: jax.Array,
) -> tuple[Conditioning, Conditioning, jax.Array]:
    """(positive, negative, marked target tokens [B, R, T]) for B images of the texts of one, the marks [R, T] and the
    tokens [N, L, D] of references, the last of which is the negative lane's."""
    # A single reference may stand for several phrases.
    subjects = jnp.tile(vision[:-1], (len(marks) // (len(vision) - 1), 1, 1))[None]
    nothing = jnp.broadcast_to(vision[-1], subjects.shape)
    of_one = positive.replace(vision=subjects), negative.replace(vision=nothing), marks[None]
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), of_one)


@flax.struct.dataclass
class Lanes:
    """The lanes of each image, which are the batch of its UNet call. The first `guided` of them make maps and have no
    visual term.

    All arrays have a leading axis of images. texts: of the lanes. vision: of those with a visual term. tokens: the
    context that no step changes. shifts: the context of every step.
    """

    guided: int = flax.struct.field(pytree_node=False)
    texts: Conditioning
    vision: jax.Array | None
    tokens: dict
    shifts: dict

    @classmethod
    def make(
        cls, unet: UNet, params, positive: Conditioning, negative: Conditioning | None, solver: Solver,
        vision_scale: VisionScale = 1.0,
    ) -> "Lanes":
        """Guidance, generation and, where there is one, negative."""
        generating = [positive] if negative is None else [positive, negative]
        for field in dataclasses.fields(Conditioning):
            given, other = (getattr(c, field.name) for c in (positive, generating[-1]))
            if (shape := getattr(given, "shape", None)) != (other_shape := getattr(other, "shape", None)):
                raise ValueError(f"positive and negative differ in the shape of {field.name}: {shape}, {other_shape}.")

        def image(generating):
            texts = (c.replace(vision=None) for c in (generating[0], *generating))
            texts = jax.tree.map(lambda *x: jnp.stack(x), *texts)
            vision = None if generating[0].vision is None else jnp.stack([c.vision for c in generating])
            tokens = context.project_tokens(unet, params, texts.text, vision)
            if vision is not None:
                tokens = context.scale_vision(tokens, vision_scale, vision.shape[1])

            def shifts(t):
                each = jnp.broadcast_to(t, len(texts.text))
                return context.project_time(unet, params, each, texts.pooled, texts.time_ids)

            return cls(1, texts, vision, tokens, jax.vmap(shifts)(jnp.asarray(solver.timesteps)))

        return jax.vmap(image)(generating)

    def guidance(self) -> "Lanes":
        """The guidance lane alone."""
        return self._take(slice(None, 1), guided=1, vision=None)

    def generating(self) -> "Lanes":
        """All lanes but the guidance lane."""
        return self._take(slice(1, None), guided=0) if self.guided else self

    def _take(self, lanes: slice, **changes) -> "Lanes":
        def of_text(path, tokens):
            return tokens if path[-1].key.endswith("vision") else tokens[..., lanes, :, :]

        return self.replace(
            texts=jax.tree.map(lambda x: x[:, lanes], self.texts),
            tokens=jax.tree_util.tree_map_with_path(of_text, self.tokens),
            shifts=jax.tree.map(lambda x: x[:, :, lanes], self.shifts), **changes)

    def evaluate(self, unet: UNet, params, x, step, mask, target, self_maps_at=None) -> UNetOutput:
        """One UNet call, on the latents x [B, H, W, C] in every lane; mask [B, R, h, w], target [B, R, T].

        noise [B, lanes, H, W, C]; maps and self maps are of the guidance lane, [B, …], and none without a target.
        """
        mapped = self.guided > 0 and target is not None

        def image(lanes, x, mask, target):
            count = len(lanes.texts.text)
            known = context.merge(lanes.tokens, jax.tree.map(lambda shift: shift[step], lanes.shifts))
            if lanes.vision is None:
                mask = None
            else:
                mask = jnp.broadcast_to(mask, (count - self.guided, *mask.shape))
            maps_of = {"target": target[None], "self_maps_at": self_maps_at} if mapped else {}
            out = unet.apply(
                {"params": params, "context": known}, jnp.broadcast_to(x, (count, *x.shape)), None, lanes.texts.text,
                vision=lanes.vision, mask=mask, guidance_lanes=self.guided, **maps_of)
            return jax.tree.map(lambda maps: maps[0], out).replace(noise=out.noise)

        along = vmapped_axes(len(x), self.texts.text.shape[1])
        return jax.vmap(image, spmd_axis_name=along)(self, x, mask, target)
