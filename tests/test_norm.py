"""Group normalisation against Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.norm import GroupNorm

from goldens import assert_close


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 12), (2, 7, 12), (1, 32, 16, 12)])
def test_it_is_flaxs(shape, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # which decides how the sums are made
    rng = np.random.default_rng(0)
    x = 100 + rng.normal(size=shape).astype(np.float32)
    theirs = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), theirs.init(jax.random.key(0), x))
    assert jax.tree.structure(params) == jax.tree.structure(GroupNorm(4).init(jax.random.key(0), x))
    assert_close(GroupNorm(4).apply(params, x), theirs.apply(params, x), 1e-4)
    weights = rng.normal(size=shape).astype(np.float32)
    ours, expected = (
        jax.grad(lambda x, norm=norm: (norm.apply(params, x) * weights).sum())(x) for norm in (GroupNorm(4), theirs))
    assert_close(ours, expected, 1e-4)
    half = GroupNorm(4, dtype=jnp.bfloat16).apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="12 channels cannot be divided into 5 groups"):
        GroupNorm(5).init(jax.random.key(0), x)
