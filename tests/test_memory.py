"""The memory report: counts that can be checked by hand, and bounds that hold."""

import jax
import jax.numpy as jnp
import pytest

from realcustom_jax.memory import Memory, peak_bytes, sampler_memory
from realcustom_jax.pipeline import Pipeline

from mini_bundle import SIDE


def test_the_peak_is_what_is_alive_at_once():
    def chain(x):
        for _ in range(10):
            x = jnp.sin(x)
        return x.sum()

    def fan(x):
        return sum(jnp.sin(x * i).sum() for i in jnp.ones(3)) + jnp.concatenate([x + 1, x + 2, x + 3]).sum()

    x = jnp.zeros(1000)
    assert 8000 <= peak_bytes(jax.make_jaxpr(chain)(x).jaxpr) <= 8100
    assert peak_bytes(jax.make_jaxpr(fan)(x).jaxpr) >= 6 * 4000


def test_a_loop_needs_what_one_round_needs():
    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(jnp.cos(c)), None), x, None, length=50)[0]

    assert peak_bytes(jax.make_jaxpr(loop)(jnp.zeros(1000)).jaxpr) < 5 * 4000


def test_a_larger_picture_needs_more_and_xla_needs_about_the_estimate(mini_pipeline):
    small, large = (sampler_memory(mini_pipeline, width=side, height=side) for side in (SIDE, 2 * SIDE))
    assert small.sampler < large.sampler and small.parameters == large.parameters
    assert 0.5 < sampler_memory(mini_pipeline, compiled=True).sampler / small.sampler < 2
    assert small.fits and "UNet" in str(small)
    assert small.parameters["UNet"] == 4 * sum(x.size for x in jax.tree.leaves(mini_pipeline.unet.params))


def test_the_cpu_needs_more_than_it_was_given_in_half_precision(mini_folder):
    pipeline = Pipeline.load(mini_folder, dtype="bfloat16")
    estimate, measured = (sampler_memory(pipeline, compiled=compiled).sampler for compiled in (False, True))
    assert 0.5 < measured / estimate < 2


def test_what_does_not_fit_is_said():
    assert not Memory({"UNet": 10}, 1, 1, available=11).fits
    assert Memory({"UNet": 10}, 1, 1, available=None).fits
    assert Memory({"UNet": 10}, 1, 1, available=12).needed == pytest.approx(12)
