"""Stage 5: a few-step form of the miniature, distilled from its own sampling of many steps.

The teacher is the finished model as it is used: T·n steps of a solver, with guidance, masks and a negative lane. From
the same noise it passes through latents x_0, …, x_T, one for each of the T steps that the student will make, each a
mean of n of the teacher's. A step of DDIM (arXiv 2010.02502) is linear in the x_0 that the network predicts, so there
is one prediction by which a single step leads from x_k to x_{k+1}; that is what the student learns, in its generation
lane alone. So it learns the teacher's solver and its guidance at once, and runs no negative lane: guidance distillation
(arXiv 2210.03142) and the distillation of a trajectory's sections, as in progressive distillation (arXiv 2202.00512),
in one regression on states that the teacher really comes through.

The student is the teacher with a low-rank change of its UNet (module `low_rank`), all else frozen. The queries and keys
of the text cross-attention are not changed, because the masks are made of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.model_files.adapter import merge_unet
from realcustom_jax.sampling.guidance import Guidance
from realcustom_jax.sampling.lanes import Conditioning, Lanes
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.sampling.solvers import make_solver
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.low_rank import init_low_rank, merge_low_rank
from realcustom_jax.training.miniature.adapter import AdapterTask
from realcustom_jax.training.miniature.pictures import HeldOut, compose_references

SOLVER = "ddim"
"""Of the student. Its step is linear in one prediction, and it draws no noise."""
BRANCHES = "sequential"
"""Of the student, as it is trained. A fused step's mask would be one of its few steps old."""
_MASKS = ("attn2", "to_q"), ("attn2", "to_k")


@dataclasses.dataclass
class DistillTask(HeldOut):
    """Trains {"A", "B"}, the low-rank change of the UNet, see `low_rank.init_low_rank`.

    `teacher` is the finished model: its `fresh` parameters are its trained ones. `steps` are the student's, `substeps`
    the teacher's for each of them, `rank` that of the change. `freeze` is the first of the student's steps without a
    mask of its own. `batches` counts pictures; each is seen at every one of the student's steps.
    """

    teacher: AdapterTask
    steps: int = 4
    substeps: int = 3
    rank: int = 24
    freeze: int = 2

    def __post_init__(self):
        teacher = self.teacher
        self.frozen = teacher.frozen | teacher.fresh
        options = {"betas": teacher.betas, "prediction": teacher.prediction}
        self.solver = make_solver(SOLVER, self.steps, **options)
        self.teaching_solver = make_solver("dpm_multi", self.steps * self.substeps, **options)

    def init(self, key):
        return init_low_rank(key, self.teacher.frozen["unet"], self.rank, lambda path: path[-3:-1] not in _MASKS)

    def batch(self, step):
        # Pairs of the end of a curriculum: the reference shows the subject elsewhere.
        batch = self.teacher.batches.pairs(
            step, 1, Curriculum("recontextualisation"), second=self.teacher.second)
        return {name: batch[name] for name in ("layout", "caption_ids", "marks", "reference", "cropped", "boxes")}

    def loss(self, params, frozen, batch, key):
        images = compose(frozen["paintings"], batch["layout"])[0]
        references = compose_references(frozen["paintings"], images, batch)
        positive, negative = self._conditionings(frozen, batch["caption_ids"], references)
        side = self.teacher.latent_size
        noise = jax.random.normal(key, (len(images), side, side, self.teacher.unet.config.in_channels))
        path, masks = jax.lax.stop_gradient(self.taught(frozen, noise, positive, negative, batch["marks"]))
        student = merge_unet(frozen["vision"], merge_low_rank(frozen["unet"], params))

        def of_all_steps(x):
            return jnp.concatenate([x] * self.steps)

        every = jax.tree.map(of_all_steps, positive)
        made = self.teacher.unet.apply(
            {"params": student}, path[:-1].reshape(-1, *noise.shape[1:]),
            jnp.repeat(jnp.asarray(self.solver.timesteps), len(noise)), every.text, pooled=every.pooled,
            time_ids=every.time_ids, vision=every.vision, mask=masks.reshape(-1, *masks.shape[2:])).noise
        errors = {}
        for k, prediction in enumerate(jnp.split(made, self.steps)):
            after = self.solver.step(self.solver.init(path[k]), k, prediction).x
            # An error of the prediction counts by its square root on the way to the next step: the first steps move
            # little, and all else follows from them.
            errors[f"step_{k}"] = ((after - path[k + 1]) ** 2).mean() / abs(float(self.solver.weights[k, 0]))
        return sum(errors.values()) / self.steps, errors

    def taught(self, frozen, noise, positive: Conditioning, negative: Conditioning, target
               ) -> tuple[jax.Array, jax.Array]:
        """What the teacher comes through from noise [B, h, w, C]: (the latents x_0 … x_T [T + 1, B, h, w, C], the masks
        of the student's steps [T, B, R, h', w'])."""
        teacher, solver = self.teacher, self.teaching_solver
        params = merge_unet(frozen["vision"], frozen["unet"])
        config = teacher.preset.mask_config(*noise.shape[1:3], target.shape[1])
        size = config.size_of(noise.shape[1:3])
        lanes = Lanes.make(teacher.unet, params, positive, negative, solver)

        def section(carry, k):
            state, mask = carry
            first = k * self.substeps

            def new_mask():
                found = lanes.guidance().evaluate(
                    teacher.unet, params, state.x, first, None, target, config.refine_at)
                return config.masks_of(found, size)

            mask = jax.lax.cond(k < self.freeze, new_mask, lambda: mask)

            def step(state, i):
                made = lanes.generating().evaluate(teacher.unet, params, state.x, i, mask, None).noise
                return solver.step(state, i, Guidance().guided(made, teacher.preset.guidance_scale, None)), None

            before = state.x
            state, _ = jax.lax.scan(step, state, first + jnp.arange(self.substeps))
            return (state, mask), (before, mask)

        first_mask = jnp.ones((*target.shape[:2], *size), jnp.float32)
        (state, _), (path, masks) = jax.lax.scan(section, (solver.init(noise), first_mask), jnp.arange(self.steps))
        # The student's last step goes to no noise at all, and its prediction is the picture.
        return jnp.concatenate([path, state.x0[None]]), masks

    def _conditionings(self, frozen, ids, references) -> tuple[Conditioning, Conditioning]:
        empty = jnp.broadcast_to(self.teacher.empty_ids, ids.shape)
        return (self.teacher.conditioning(frozen, frozen, ids, references),
                self.teacher.conditioning(frozen, frozen, empty, jnp.zeros_like(references)))

    def preview(self, params) -> Image.Image:
        """Pictures of the teacher (odd rows) and of the student (even rows), of the same noise."""
        batch = jax.tree.map(lambda x: x[:8], self.batch(0))
        references = self.teacher.batches.references(batch)

        @jax.jit
        def sample(params, frozen, ids, marks, references):
            positive, negative = self._conditionings(frozen, ids, references)
            side = self.teacher.latent_size
            noise = jax.random.normal(
                jax.random.key(0), (len(ids), side, side, self.teacher.unet.config.in_channels))
            path, _ = self.taught(frozen, noise, positive, negative, marks)
            student = merge_unet(frozen["vision"], merge_low_rank(frozen["unet"], params))
            made = sample_latents(
                self.teacher.unet, student, noise, positive, None, marks, solver=self.solver, guidance_scale=None,
                mask=self.teacher.preset.mask_config(side, side), freeze_mask_step=self.freeze).latents
            return [self.teacher.decode(frozen["autoencoder"], latents) for latents in (path[-1], made)]

        frozen: dict[str, Any] = {name: part for name, part in self.frozen.items() if name != "paintings"}
        made = sample(params, frozen, batch["caption_ids"], batch["marks"], references)
        return grid(np.concatenate([np.asarray(x) for x in made]), columns=8)
