"""Condition dropout: some examples are trained without their text, or without their reference, so that sampling can
guide away from "nothing" (classifier-free guidance, arXiv 2207.12598)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def draw_dropped(key: jax.Array, share: float, count: int) -> jax.Array:
    """Which of `count` examples lose a condition, bool [B]; each does with probability `share`."""
    return jax.random.bernoulli(key, share, (count,))


def replace_dropped(dropped: jax.Array, condition: Any, nothing: Any) -> Any:
    """A tree of conditions [B, ...] in which the dropped examples, bool [B], have what `nothing` gives instead: the
    same tree, whose leaves broadcast against the condition's. All of an example's leaves are replaced, or none."""
    def of_leaf(value: jax.Array, instead: ArrayLike) -> jax.Array:
        chosen = dropped.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(chosen, jnp.asarray(instead).astype(value.dtype), value)

    return jax.tree.map(of_leaf, condition, nothing)
