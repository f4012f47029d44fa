"""Size conditioning, and conditions that are dropped in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.conditioning.size import time_ids
from realcustom_jax.training.dropout import draw_dropped, replace_dropped


@pytest.mark.parametrize("order, whole, cropped", [
    ("width_first", [640, 480, 0, 0, 640, 480], [1000, 800, 7, 5, 640, 480]),
    ("height_first", [480, 640, 0, 0, 480, 640], [800, 1000, 5, 7, 480, 640]),
])
def test_size_conditioning_is_ordered_as_asked(order, whole, cropped):
    found = time_ids((480, 640), order=order)
    assert found.dtype == np.float32 and found.tolist() == whole
    found = time_ids((480, 640), original=[[800, 1000]] * 2, corner=[[5, 7]] * 2, order=order)
    assert found.tolist() == [cropped] * 2


def test_an_example_loses_all_of_a_condition_or_nothing():
    dropped = jnp.array([True, False])
    condition = {"text": jnp.ones((2, 3, 4), jnp.bfloat16), "pooled": jnp.ones((2, 4))}
    nothing = {"text": np.zeros((3, 4), np.float16), "pooled": np.zeros(4, np.float32)}
    found = replace_dropped(dropped, condition, nothing)
    assert found["text"].dtype == jnp.bfloat16
    for values in found.values():
        assert (values[0] == 0).all() and (values[1] == 1).all()


def test_as_many_are_dropped_as_asked():
    assert not draw_dropped(jax.random.key(0), 0.0, 1000).any() and draw_dropped(jax.random.key(0), 1.0, 1000).all()
    assert 0.07 < draw_dropped(jax.random.key(0), 0.1, 10_000).mean() < 0.13
