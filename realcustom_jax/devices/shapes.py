"""Arrays as shapes alone, for programs that are traced or compiled and not run."""

import jax
import jax.numpy as jnp


def array_shape(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    """An array of this shape."""
    return jax.ShapeDtypeStruct(shape, dtype)


def tree_shapes(tree, dtype=None):
    """The arrays (or shapes) of a tree as shapes; `dtype` instead of their own."""
    return jax.tree.map(lambda x: array_shape(*x.shape, dtype=dtype or x.dtype), tree)


def batch_shapes(tree, count: int):
    """A batch of `count` examples of which one has the shapes of `tree`."""
    return jax.tree.map(lambda x: array_shape(count, *x.shape, dtype=x.dtype), tree)
