"""What a UNet reads of its text encoders."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from realcustom_jax.models.clip_text import TextOutput
from realcustom_jax.models.unet import UNetConfig


def text_states(outputs: Sequence[TextOutput], unet: UNetConfig, pooled: str) -> tuple[jax.Array, jax.Array | None]:
    """(tokens [B, T, D], pooled [B, P] or None) that a UNet reads of what each text encoder gives.

    SD-1.5's kind reads the last states of its one encoder; SDXL's the penultimate ones of all encoders, side by side,
    and the last encoder's pooled text, `pooled` "unprojected" or "projected".
    """
    if not unet.addition_embed:
        return outputs[0].last, None
    chosen = outputs[-1].projected if pooled == "projected" else outputs[-1].pooled
    if chosen is None:
        raise ValueError('the preset asks for pooled="projected" text, but the last text encoder has no '
                         'text_projection; choose pooled="unprojected".')
    return jnp.concatenate([output.penultimate for output in outputs], axis=-1), chosen
