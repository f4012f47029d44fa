"""What a program costs is counted in its trace, whichever kernel computes it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.attention_kernels import attend

from fresh_process import run

SHAPE = (2, 1024, 3, 40)
ONE = 2 * 2 * 3 * 1024 * 1024 * 40  # a product of all queries and keys


def counted(function, *arguments):
    return flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in arguments)).jaxpr)


def backward(platform):
    def step(query, key, value):
        return jax.vjp(functools.partial(attend, platform=Platform.of(platform)), query, key, value)[1](query)

    return step


def test_a_tpus_kernel_counts_once_for_each_tile():
    """Two products forward; in its backward kernels four, for keys and values, and three, for queries, of which two are
    the same, and the product of each output with its gradient."""
    assert counted(functools.partial(attend, platform=Platform.of("tpu")), *[SHAPE] * 3) == 2 * ONE
    assert counted(backward("cpu"), *[SHAPE] * 3) == (2 + 4) * ONE
    assert counted(backward("tpu"), *[SHAPE] * 3) == (2 + 4 + 3) * ONE + ONE // 1024


def test_cudnns_kernel_counts(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_compute_capability", lambda _: True)
    assert counted(functools.partial(attend, platform=Platform.of("gpu")), *[SHAPE] * 3) == 2 * ONE
    assert counted(backward("gpu"), *[SHAPE] * 3) == (2 + 5) * ONE


@pytest.mark.slow
def test_a_mesh_does_not_change_the_count():
    """Four devices compute a part each, in a kernel that XLA does not divide."""
    script = """
from test_jaxprs import *
from realcustom_jax.devices.sharding import make_mesh
mesh = make_mesh(data=2, tensor=2)
with jax.set_mesh(mesh):
    print(counted(backward("tpu"), *[(2, 1024, 4, 40)] * 3))
"""
    assert int(run(script, devices=4).split()[-1]) == counted(backward("tpu"), *[(2, 1024, 4, 40)] * 3)


def test_a_scan_counts_its_rounds_and_alternatives_the_largest():
    def rounds(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert counted(rounds, (4, 4)) == 5 * 2 * 4**3 and counted(either, (4, 4)) == 2 * 4**3
