"""Stage 2: the two image encoders, by contrast, as their models are at full size.

The SigLIP-style encoder tells which description belongs to a picture (arXiv 2303.15343), against a small text tower
that is dropped afterwards. It also says the description of a reference through a small decoder that is dropped too, as
SigLIP 2 does (arXiv 2502.14786): contrast alone needs only what tells a batch's subjects apart, and leaves patterns and
second colours out. The DINOv2-style encoder tells which two pictures show the same subject: a whole picture and either
another whole one or a full-resolution part of it, the two scales at which the projector reads references.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from realcustom_jax.conditioning.images import grid
from realcustom_jax.conditioning.references import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    normalize,
    prepare_reference,
)
from realcustom_jax.data.sprites.composition import compose
from realcustom_jax.models.clip_text import ClipText
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.training.losses import sigmoid_contrastive_loss
from realcustom_jax.training.miniature.pictures import HeldOut, PictureBatches


class Head(nn.Module):
    """Mean of the tokens, projected: [B, L, C] → [B, width]."""

    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(self.width)(nn.LayerNorm()(tokens.mean(axis=1)))


class Captioner(nn.Module):
    """All tokens of a caption at once (parallel prediction: CapPa, arXiv 2306.07915): image tokens [B, L, C] →
    logits [B, length, vocab_size]."""

    length: int
    vocab_size: int
    width: int = 128

    @nn.compact
    def __call__(self, tokens):
        places = self.param("places", nn.initializers.normal(1.0), (self.length, self.width))
        x, tokens = jnp.broadcast_to(places, (len(tokens), *places.shape)), nn.LayerNorm()(tokens)
        # The words of one phrase depend on each other's places, so that there are two rounds of reading.
        for _ in range(2):
            x = x + self._attend(nn.LayerNorm()(x), tokens)
            x = x + self._attend(nn.LayerNorm()(x), nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocab_size)(nn.LayerNorm()(x))

    def _attend(self, to, tokens):
        query, key, value = (nn.Dense(self.width)(x).reshape(*x.shape[:-1], 4, -1) for x in (to, tokens, tokens))
        return nn.Dense(self.width)(nn.dot_product_attention(query, key, value).reshape(to.shape))


@dataclasses.dataclass
class EncodersTask(HeldOut):
    """Trains both encoders on the two views of `batches.views`; `said` in the report is the share of the
    description's words that the captioner says right."""

    siglip_config: Mapping[str, Any]
    dinov2_config: Mapping[str, Any]
    text_tower: ClipText
    batches: PictureBatches

    def __post_init__(self):
        self.siglip = VisionTransformer(VitConfig.from_config(self.siglip_config))
        self.dinov2 = VisionTransformer(VitConfig.from_config(self.dinov2_config))
        self.size = self.siglip.config.img_size[0]
        self.captioner = Captioner(self.batches.spelling.length, self.text_tower.config.vocab_size)
        self.frozen = {"paintings": self.batches.paintings}

    def init(self, key):
        return jax.jit(self._fresh)(key)

    def _fresh(self, key):
        keys = jax.random.split(key, 7)
        image, ids = jnp.zeros((1, self.size, self.size, 3)), jnp.zeros((1, self.batches.spelling.length), jnp.int32)
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
        return self.batches.views(step)

    def loss(self, params, frozen, batch, key):
        first, second = (compose(frozen["paintings"], batch[name])[0] for name in ("first", "second"))
        whole, parts = self._prepared(first)
        ids = batch["description_ids"]
        tokens = self._tokens(params, "siglip", jnp.concatenate([whole, parts]))
        of_whole, of_parts = tokens[: len(whole)], tokens[len(whole) :]

        text = self.text_tower.apply({"params": params["text"]}, ids).pooled
        text = Head().apply({"params": params["text_head"]}, text[:, None])
        same_text = (ids[:, None] == ids[None]).all(axis=-1)
        siglip = self._contrast(params, "siglip", self._head(params, "siglip", of_whole), text, same_text)

        # Half of the second views are seen in part, at full resolution.
        half, edge = len(first) // 2, self.size // 2
        centre = second[half:, edge : edge + self.size, edge : edge + self.size]
        others = jnp.concatenate([self._prepared(second[:half])[0], centre])
        views = self._tokens(params, "dinov2", jnp.concatenate([whole, others]))
        views = self._head(params, "dinov2", views).reshape(2, len(first), -1)
        # Where the first view shows two things, it may be told from the others by either of them.
        dinov2 = self._contrast(params, "dinov2", *views, jnp.eye(len(first), dtype=bool))

        seen = jnp.concatenate([of_whole, of_parts.reshape(len(first), -1, of_parts.shape[-1])], axis=1)
        logits = self.captioner.apply({"params": params["captioner"]}, seen)
        words = ids != ids[:, -1:]  # the last token is padding
        caption = optax.softmax_cross_entropy_with_integer_labels(logits, ids).sum(axis=-1).mean()
        said = ((logits.argmax(axis=-1) == ids) & words).sum() / words.sum()
        return siglip + dinov2 + caption, {"siglip": siglip, "dinov2": dinov2, "caption": caption, "said": said}

    def _contrast(self, params, name, a, b, positive):
        logits = params[f"{name}_logits"]
        return sigmoid_contrastive_loss(a, b, positive, logits["log_scale"], logits["bias"])

    def _prepared(self, pictures):
        """The whole pictures and their parts, as the encoders see them."""
        return prepare_reference(pictures, size=2 * self.size, encoder_size=self.size, local="tiles")

    def _tokens(self, params, name, images):
        module, mean, std = {"siglip": (self.siglip, SIGLIP_MEAN, SIGLIP_STD),
                             "dinov2": (self.dinov2, DINO_MEAN, DINO_STD)}[name]
        last = module.config.depth - 1
        return module.apply({"params": params[name]}, normalize(images, mean, std), layers=(last,))[0]

    def _head(self, params, name, tokens):
        return Head().apply({"params": params[f"{name}_head"]}, tokens)

    def preview(self, params) -> Image.Image:
        """Queries (first column) and, left to right, the pictures most like them to the DINOv2-style encoder; the
        true match is framed by a white border."""
        batch = jax.tree.map(lambda x: x[:32], self.batches.views(0))
        views = [np.array(self.batches.compose(batch[name])) for name in ("first", "second")]
        a, b = (np.asarray(self._head(params, "dinov2", self._tokens(params, "dinov2", self._prepared(x)[0])))
                for x in views)
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        rows = []
        for i, order in enumerate(np.argsort(-(a @ b.T), axis=1)[:12, :5]):
            found = [views[1][j].copy() for j in order]
            for j, picture in zip(order, found, strict=True):
                if j == i:
                    picture[[0, 1, -2, -1]] = 1
                    picture[:, [0, 1, -2, -1]] = 1
            rows += [views[0][i], *found]
        return grid(np.stack(rows) * 2 - 1, columns=6)
