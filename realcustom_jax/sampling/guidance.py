"""From the predictions of several lanes to one.

**Classifier-free guidance** (arXiv 2207.12598) moves from the unconditional prediction u past the conditional ones,
t (text) and c (text and image), either in a cascade or directly,

    u + s_t (t − u) + s_c (c − t)         or         u + s_c (c − u),

and then pulls the standard deviation of the result back by a share φ (arXiv 2305.08891, section 3.4). The modes are
those of the released `inference_utils.py`:

    none_direct            direct                   naive_global_direct    direct, pulled back
    none                   in a cascade             naive_global           in a cascade, pulled back
    naive                  in a cascade, pulled back inside and outside of the subjects' masks apart
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from realcustom_jax.arrays import Array
from realcustom_jax.errors import check_choice

MODES: tuple[str, ...] = ("none_direct", "none", "naive", "naive_global", "naive_global_direct")
"""How the lanes' predictions are combined, see ``classifier_free_guidance``."""


@flax.struct.dataclass
class Guidance:
    """How a sampler guides, beside its scale s_c.

    mode: of `MODES`. A cascade needs the prediction with text alone in every step, so that the guidance lane does not
        end where the mask freezes.
    text_scale: s_t of a cascade; None: as large as s_c.
    rescale: φ in [0, 1] of the modes that pull back.
    """

    mode: str = flax.struct.field(pytree_node=False, default="none_direct")
    text_scale: ArrayLike | None = None
    rescale: ArrayLike = 0.0

    @property
    def needs_text(self) -> bool:
        """Whether the prediction with text alone is used."""
        return not self.mode.endswith("direct")

    def needed(self, scale: ArrayLike | None) -> ArrayLike | None:
        """The scale s_c; None, which needs no negative lane, where it is known to be 1, which is no guidance. In a
        cascade, the text may guide all the same."""
        known = not self.needs_text and not isinstance(scale, jax.core.Tracer) and np.ndim(scale) == 0
        # numpy compares at once, also where JAX is tracing.
        return None if scale is None or known and np.asarray(scale) == 1 else scale

    def guided(self, predictions: jax.Array, scale: ArrayLike | None, mask: jax.Array) -> jax.Array:
        """The guided prediction float32 [B, H, W, C].

        Args:
            predictions: [B, lanes, H, W, C] of each image's lanes. Without a scale the last one is the generation's,
                else the last two are generation and negative; of a cascade the first one is the guidance lane's.
            scale: s_c, or None for no guidance.
            mask: [B, H, W, 1], where the subjects are.
        """
        if scale is None:
            return predictions[:, -1].astype(jnp.float32)
        generation, negative = predictions[:, -2:].astype(jnp.float32).swapaxes(0, 1)
        return classifier_free_guidance(
            text=predictions[:, 0] if self.needs_text else None, text_image=generation, uncond=negative,
            text_scale=scale if self.text_scale is None else self.text_scale, image_scale=scale,
            rescale=self.rescale, mode=self.mode, mask=mask)


def classifier_free_guidance(
    *,
    text: Array | None,
    text_image: Array,
    uncond: Array,
    text_scale: ArrayLike,
    image_scale: ArrayLike,
    rescale: ArrayLike = 0.0,
    mode: str = "naive_global_direct",
    mask: Array | None = None,
) -> jax.Array:
    """Combines the predictions of the lanes into the guided one.

    Args:
        text: [B, H, W, C], of the text alone; None where the mode is direct.
        text_image: [B, H, W, C], of text and image. uncond: likewise, of negative text and image.
        text_scale: s_t, of a cascade. image_scale: s_c.
        rescale: φ in [0, 1], which the modes that begin with naive use.
        mode: none and none_direct guide without rescaling, in a cascade or directly (which uses neither text nor
            text_scale). naive_global and naive_global_direct then pull each sample's deviation by the share `rescale`
            towards that of `text_image`; naive does so where the mask is 1, and towards that of `text` where it is 0.
        mask: [B, H, W, 1], where the subjects are; of the mode naive.
    Returns:
        float32 [B, H, W, C].
    Raises:
        ValueError: an unknown mode, or one whose text or mask is missing.

    >>> import jax.numpy as jnp
    >>> negative, generation = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))
    >>> guided = classifier_free_guidance(text=None, text_image=generation, uncond=negative, text_scale=3.5,
    ...                                   image_scale=3.5, mode="none_direct")
    >>> print(guided)
    [[[[3.5 3.5]]]]
    """
    check_choice("mode", mode, ("none", "none_direct", "naive", "naive_global", "naive_global_direct"))
    direct = mode.endswith("direct")
    if text is None and not direct:
        raise ValueError(f"mode {mode!r} needs the prediction with text alone, but text is None.")
    if mask is None and mode == "naive":
        raise ValueError("mode 'naive' rescales by region and needs a mask [B, H, W, 1], but mask is None.")

    text_image, uncond = jnp.asarray(text_image, jnp.float32), jnp.asarray(uncond, jnp.float32)
    if direct:
        guided = uncond + image_scale * (text_image - uncond)
    else:
        text = jnp.asarray(text, jnp.float32)
        guided = uncond + text_scale * (text - uncond) + image_scale * (text_image - text)

    if mode.startswith("none"):
        return guided
    factor = _rescale_factor(text_image, guided, rescale)
    if mode == "naive":
        factor = mask * factor + (1 - mask) * _rescale_factor(text, guided, rescale)
    return guided * factor


def _rescale_factor(reference: jax.Array, guided: jax.Array, rescale: ArrayLike) -> jax.Array:
    """[B, 1, 1, 1]; a constant prediction, which has no deviation to match, keeps factor 1."""
    target, current = (jnp.std(x, axis=(1, 2, 3), ddof=1, keepdims=True) for x in (reference, guided))
    return 1 + rescale * (jnp.where(current > 0, target / jnp.where(current > 0, current, 1), 1) - 1)
