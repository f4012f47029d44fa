"""Stage 3: the text-to-image model: UNet and text encoder together, on latents painted and encoded ahead."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from realcustom_jax.conditioning.references import grid
from realcustom_jax.model_files import weights
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling import solvers
from realcustom_jax.sampling.sampler import Conditioning, sample_text_only
from realcustom_jax.training.losses import denoising_loss


@dataclasses.dataclass
class BaseTask:
    """Trains a UNet and the text encoder to predict noise.

    `batches` give latents [B,h,w,C] (unit variance), the subjects' coverage [B,h,w] and two texts, input_ids [B,T] and
    description_ids [B,T]: a caption, and one that also names the first subject's attributes and takes its place with
    probability `described`. A model that has learnt what those words look like has something for the adapter to call
    on, as a published model has. The adapter can only call on what cross-attention does, and a small model would rather
    learn attributes from the pooled text; so that keeps to the caption, but for a share `pooled_described` of the
    descriptions. `empty_ids` [T] is the encoded empty prompt, which replaces either text with probability
    `text_dropout`, for classifier-free guidance. `start` are parameters to start from instead of random ones.
    """

    unet_config: Mapping[str, Any]
    text_encoder: ClipText
    batches: Sequence[dict[str, np.ndarray]]
    empty_ids: np.ndarray
    decode: Any
    image_size: int
    prediction: str
    start: Any = None
    described: float = 0.75
    pooled_described: float = 0.25
    text_dropout: float = 0.1
    frozen: None = None

    def __post_init__(self):
        self.unet = UNet(UNetConfig.from_config(self.unet_config))
        self.betas = solvers.betas()

    def init(self, key):
        if self.start is not None:
            return self.start
        args, kwargs = weights.unet_inputs(self.unet.config)
        text = jax.jit(self.text_encoder.init)(key, self.empty_ids[None])["params"]
        return {"unet": jax.jit(self.unet.init)(key, *args, **kwargs)["params"], "text_encoder": text}

    def batch(self, step):
        return self.batches[step]

    def conditioning(self, params, input_ids) -> Conditioning:
        """Text tokens and pooled text of prompts; one-layer penultimate states are the unmixed token embeddings."""
        text = self.text_encoder.apply({"params": params["text_encoder"]}, input_ids)
        return Conditioning(text.penultimate, text.pooled, time_ids(self.image_size, len(input_ids)))

    def loss(self, params, frozen, batch, key):
        describe_key, pooled_key, drop_key, noise_key = jax.random.split(key, 4)
        each = (len(batch["input_ids"]), 1)
        described = jax.random.bernoulli(describe_key, self.described, each)
        pooled_described = described & jax.random.bernoulli(pooled_key, self.pooled_described, each)
        dropped = jax.random.bernoulli(drop_key, self.text_dropout, each)

        def encoded(described):
            ids = jnp.where(described, batch["description_ids"], batch["input_ids"])
            return self.conditioning(params, jnp.where(dropped, self.empty_ids, ids))

        text = encoded(described).replace(pooled=encoded(pooled_described).pooled)

        def predict(noisy, t):
            return self.unet.apply({"params": params["unet"]}, noisy, t, text.text, pooled=text.pooled,
                                   time_ids=text.time_ids).noise

        return denoising_loss(predict, batch["latents"], noise_key, betas=self.betas, prediction=self.prediction,
                              coverage=batch["coverage"]), {}

    def preview(self, params) -> Image.Image:
        """Pictures of the first captions (odd rows) and descriptions (even rows), from the same fixed noise."""
        batch = {k: v[:16] for k, v in self.batches[0].items()}
        solver = solvers.make_solver(steps=20, betas=self.betas, prediction=self.prediction)

        @jax.jit
        def sample(params, input_ids):
            noise = jax.random.normal(jax.random.key(0), batch["latents"].shape)
            negative = self.conditioning(params, jnp.broadcast_to(self.empty_ids, input_ids.shape))
            return sample_text_only(self.unet, params["unet"], noise, self.conditioning(params, input_ids), negative,
                                    solver=solver, guidance_scale=3.5)

        plain, described = (self.decode(sample(params, batch[key])) for key in ("input_ids", "description_ids"))
        return grid(np.concatenate([plain[:8], described[:8], plain[8:], described[8:]]), columns=8)


def time_ids(size: int, batch: int) -> jax.Array:
    """SDXL's size conditioning in the released order (w, h, 0, 0, w, h), float32 [B,6]."""
    return jnp.broadcast_to(jnp.asarray([size, size, 0, 0, size, size], jnp.float32), (batch, 6))

