"""Stage 2: the two image encoders, by contrast, as their models are at full size.

The SigLIP-style encoder tells which description belongs to a picture (arXiv 2303.15343), against a small text tower
that is dropped afterwards. It also says the description of a reference, whole and in parts, through a small decoder
that is dropped too, as SigLIP 2 does (arXiv 2502.14786): contrast alone needs only what tells a batch's subjects apart,
and leaves patterns and second colours out. The DINOv2-style encoder tells which two pictures show the same subject: a
whole picture and either another whole one or a full-resolution part of it, the two scales at which the projector reads
references.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from realcustom_jax.conditioning.references import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    grid,
    normalize,
    prepare_reference,
)
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.training.losses import sigmoid_contrastive_loss


class Head(nn.Module):
    """Mean of the tokens, projected: [B,L,C] → [B,width]."""

    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(self.width)(nn.LayerNorm()(tokens.mean(axis=1)))


class Captioner(nn.Module):
    """All tokens of a caption at once (parallel prediction: CapPa, arXiv 2306.07915): image tokens [B,L,C] →
    logits [B,length,vocab_size]."""

    length: int
    vocab_size: int
    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        places = self.param("places", nn.initializers.normal(1.0), (self.length, self.width))
        tokens = nn.LayerNorm()(tokens)
        q, k, v = (nn.Dense(self.width)(x).reshape(*x.shape[:-1], 4, -1) for x in (places[None], tokens, tokens))
        q = jnp.broadcast_to(q, (len(tokens), *q.shape[1:]))
        x = places + nn.Dense(self.width)(nn.dot_product_attention(q, k, v).reshape(*q.shape[:2], self.width))
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocab_size)(nn.LayerNorm()(x))


@dataclasses.dataclass
class EncodersTask:
    """Trains both encoders on `batches` of target, references [B,4,…] (uint8) and description_ids.

    `start` holds parameters of siglip and dinov2 to start from instead of random ones; `words` names places of the
    description's tokens, for which the share said right is reported.
    """

    siglip_config: Mapping[str, Any]
    dinov2_config: Mapping[str, Any]
    text_tower: ClipText
    batches: Sequence[dict[str, np.ndarray]]
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: Mapping[str, int] = dataclasses.field(default_factory=dict)
    frozen: None = None

    def __post_init__(self):
        self.siglip = VisionTransformer(VitConfig.from_config(self.siglip_config))
        self.dinov2 = VisionTransformer(VitConfig.from_config(self.dinov2_config))
        self.size = self.siglip.config.img_size[0]
        length = self.batches[0]["description_ids"].shape[1]
        self.captioner = Captioner(length, self.text_tower.config.vocab_size)

    def init(self, key):
        return jax.jit(self._fresh)(key) | self.start

    def _fresh(self, key):
        keys = jax.random.split(key, 7)
        image, ids = jnp.zeros((1, self.size, self.size, 3)), jnp.asarray(self.batches[0]["description_ids"][:1])
        width, text_width = self.siglip.config.embed_dim, self.text_tower.config.hidden_size
        scale = {"log_scale": jnp.log(10.0), "bias": jnp.asarray(-5.0)}
        return {
            "siglip": self.siglip.init(keys[0], image, layers=(0,))["params"],
            "dinov2": self.dinov2.init(keys[1], image, layers=(0,))["params"],
            "text": self.text_tower.init(keys[2], ids)["params"],
            "siglip_head": Head().init(keys[3], jnp.zeros((1, 1, width)))["params"],
            "dinov2_head": Head().init(keys[4], jnp.zeros((1, 1, self.dinov2.config.embed_dim)))["params"],
            "text_head": Head().init(keys[5], jnp.zeros((1, 1, text_width)))["params"],
            "captioner": self.captioner.init(keys[6], jnp.zeros((1, 1, width)))["params"],
            "siglip_logits": scale, "dinov2_logits": scale,
        }

    def batch(self, step):
        batch = self.batches[step]
        pairs = np.random.default_rng(step).permuted(np.arange(4)[None].repeat(len(batch["target"]), 0), axis=1)[:, :2]
        views = np.take_along_axis(batch["references"], pairs[:, :, None, None, None], axis=1)
        return {"target": batch["target"], "views": views, "description_ids": batch["description_ids"]}

    def loss(self, params, frozen, batch, key):
        def scaled(name, a, b, positive):
            logits = params[f"{name}_logits"]
            return sigmoid_contrastive_loss(a, b, positive, logits["log_scale"], logits["bias"])

        def whole(pictures):
            return prepare_reference(pictures / 255.0, size=2 * self.size, encoder_size=self.size)[0]

        ids = batch["description_ids"]
        text = self.text_tower.apply({"params": params["text"]}, ids).pooled
        text = Head().apply({"params": params["text_head"]}, text[:, None])
        same_text = (ids[:, None] == ids[None]).all(axis=-1)
        siglip = scaled("siglip", self._embed(params, "siglip", whole(batch["target"])), text, same_text)

        first, second = batch["views"][:, 0], batch["views"][:, 1]
        half, edge = len(first) // 2, self.size // 2
        centre = second[half:, edge : edge + self.size, edge : edge + self.size] / 255.0
        second = jnp.concatenate([whole(second[:half]), centre])
        same_subject = jnp.eye(len(first), dtype=bool)
        dinov2 = scaled("dinov2", self._embed(params, "dinov2", whole(first)), self._embed(params, "dinov2", second),
                        same_subject)
        caption, said = self._caption_loss(params, first / 255.0, ids)
        return siglip + dinov2 + caption, {"siglip": siglip, "dinov2": dinov2, "caption": caption, **said}

    def _caption_loss(self, params, references, ids):
        """Cross-entropy of the description's tokens together, from the whole reference and its parts; and the share
        of each of `words` that is said right."""
        whole, parts = prepare_reference(references, size=2 * self.size, encoder_size=self.size, local="tiles")
        count = len(references)
        views = jnp.concatenate([whole[:, None], parts.reshape(count, -1, *whole.shape[1:])], axis=1)
        tokens = self._tokens(params, "siglip", views.reshape(-1, *whole.shape[1:]))
        tokens = tokens.reshape(count, -1, tokens.shape[-1])
        logits = self.captioner.apply({"params": params["captioner"]}, tokens)
        right = (logits.argmax(axis=-1) == ids).mean(axis=0)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, ids).sum(axis=-1).mean(),
                {f"said_{word}": right[place] for word, place in self.words.items()})

    def _tokens(self, params, name, images):
        module, mean, std = {"siglip": (self.siglip, SIGLIP_MEAN, SIGLIP_STD),
                             "dinov2": (self.dinov2, DINO_MEAN, DINO_STD)}[name]
        last = module.config.depth - 1
        return module.apply({"params": params[name]}, normalize(images, mean, std), layers=(last,))[0]

    def _embed(self, params, name, images):
        return Head().apply({"params": params[f"{name}_head"]}, self._tokens(params, name, images))

    def preview(self, params) -> Image.Image:
        """Queries (first column) and, left to right, the pictures most like them to the DINOv2-style encoder; the
        true match is framed by a white border."""
        views = self.batch(0)["views"][:32]
        a, b = (np.asarray(self._embed(params, "dinov2", prepare_reference(
            views[:, i] / 255.0, size=2 * self.size, encoder_size=self.size)[0])) for i in range(2))
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        rows = []
        for i, order in enumerate(np.argsort(-(a @ b.T), axis=1)[:12, :5]):
            found = [views[j, 1].copy() for j in order]
            for j, picture in zip(order, found, strict=True):
                if j == i:
                    picture[[0, 1, -2, -1]] = 255
                    picture[:, [0, 1, -2, -1]] = 255
            rows += [views[i, 0], *found]
        return grid(np.stack(rows) / 127.5 - 1.0, columns=6)
