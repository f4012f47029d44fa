"""Group normalisation against Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.norm import GroupNorm

from goldens import assert_close


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 12), (2, 7, 12), (1, 32, 16, 12)])
def test_it_is_flaxs(shape, platform):
    """However the platform makes the sums."""
    ours = GroupNorm(4, platform=Platform.of(platform))
    rng = np.random.default_rng(0)
    x = 100 + rng.normal(size=shape).astype(np.float32)
    theirs = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), theirs.init(jax.random.key(0), x))
    assert jax.tree.structure(params) == jax.tree.structure(ours.init(jax.random.key(0), x))
    assert_close(ours.apply(params, x), theirs.apply(params, x), 1e-4)
    weights = rng.normal(size=shape).astype(np.float32)
    gradient, expected = (
        jax.grad(lambda x, norm=norm: (norm.apply(params, x) * weights).sum())(x) for norm in (ours, theirs))
    assert_close(gradient, expected, 1e-4)
    half = ours.clone(dtype=jnp.bfloat16).apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="12 channels cannot be divided into 5 groups"):
        GroupNorm(5).init(jax.random.key(0), x)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("place", [0, 300, 2**22 - 1])
def test_one_pixel_far_from_all_others_costs_no_digits(platform, place):
    """4.2 million values of which one is 1000: the variance is 0.2384, wherever it stands."""
    x = np.zeros((1, 2048, 2048, 1), np.float32)
    x.reshape(-1)[place] = 1000
    factor = 1 / np.sqrt(x.var(dtype=np.float64) + 1e-5)
    expected = (x - x.mean(dtype=np.float64)) * factor
    params = {"params": {"scale": np.ones(1), "bias": np.zeros(1)}}
    ours = jax.jit(GroupNorm(1, platform=Platform.of(platform)).apply)(params, x)
    assert x.var(dtype=np.float64) == pytest.approx(0.2384, abs=1e-4)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_equal_values_have_no_variance(platform):
    """Rounding makes none below 0, whose root would be no number, nor one that is far above."""
    norm = GroupNorm(1, epsilon=1e-9, platform=Platform.of(platform))
    ours = norm.apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, jnp.full((1, 1000, 3), 1 / 3))
    np.testing.assert_allclose(ours, 0, atol=1e-2)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_small_spread_far_from_zero_is_not_lost(platform):
    """Where E[x²] − E[x]² would hold no digit, groups whose channels differ keep all of theirs."""
    rng = np.random.default_rng(0)
    x = (1e4 * np.arange(1, 5) + 0.5 * rng.normal(size=(2, 64, 64, 4))).astype(np.float32)
    params = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    wide, exact = x.astype(np.float64), GroupNorm(4, platform=Platform.of(platform)).apply(params, x)
    expected = (wide - wide.mean((1, 2), keepdims=True)) / wide.std((1, 2), keepdims=True)
    np.testing.assert_allclose(exact, expected, atol=2e-2)
