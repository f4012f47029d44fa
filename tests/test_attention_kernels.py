"""Attention by its kernels: all give the numbers of the plain formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from realcustom_jax.devices.platform import Platform
from realcustom_jax.model_files import weights
from realcustom_jax.models import attention_kernels
from realcustom_jax.models.attention_kernels import attention_weights, target_maps
from realcustom_jax.models.tpu_attention import filled, tiles, tpu_attention
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.sampler import sample_latents
from realcustom_jax.sampling.solvers import make_solver

from fresh_process import run
from goldens import assert_close


def inputs(pixels, tokens, heads=2, head_size=8, batch=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, n, heads, head_size)).astype(np.float32) for n in (pixels, tokens, tokens)]


def plain(query, key, value):
    return jnp.einsum("bhqk,bkhd->bqhd", attention_weights(query, key), value)


@pytest.mark.slow
@pytest.mark.parametrize("pixels, tokens, head_size", [
    (200, 300, 40), (128, 128, 8), (1008, 1458, 64), (600, 130, 64), (256, 384, 128)])
def test_the_tpu_kernel_and_its_gradient(pixels, tokens, head_size):
    """Interpreted on the CPU, in float32; lengths that no tile divides are filled up."""
    inputs_ = inputs(pixels, tokens, head_size=head_size, batch=2)
    with pltpu.force_tpu_interpret_mode():
        ours, pull_back = jax.vjp(tpu_attention, *inputs_)
        gradients = pull_back(2 * ours)
    expected, pull_back = jax.vjp(plain, *inputs_)
    assert_close(ours, expected, 1e-5)
    for a, b in zip(gradients, pull_back(2 * expected), strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.slow
def test_the_tpu_kernel_in_half_precision():
    """As far from the exact numbers as rounding the inputs is: the factor 1/√40 is rounded once more."""
    inputs_ = [x.astype(jnp.bfloat16) for x in inputs(256, 300, head_size=40)]
    with pltpu.force_tpu_interpret_mode():
        ours = tpu_attention(*inputs_)
    assert ours.dtype == jnp.bfloat16
    assert_close(ours.astype(jnp.float32), plain(*(x.astype(jnp.float32) for x in inputs_)), 1e-2)


@pytest.mark.parametrize("pixels, tokens, head_size, stays, passes, queries_pass", [
    (4096, 4096, 64, (512, 512), 2048, 2048), (1024, 1024, 64, (512, 512), 1024, 1024),
    (4096, 4096, 40, (512, 512), 2048, 2048), (4096, 1536, 64, (512, 512), 1536, 2048),
    (4096, 4096, 80, (512, 512), 1024, 1024), (1024, 768, 128, (512, 384), 768, 1024),
    (128, 256, 64, (128, 256), 256, 128)])
def test_tiles_divide_the_lengths(pixels, tokens, head_size, stays, passes, queries_pass):
    made = tiles(pixels, tokens, head_size)
    assert (made.block_q, made.block_q_dq) == (stays[0],) * 2 and made.block_kv_dkv == stays[1]
    assert (made.block_kv, made.block_kv_dq, made.block_q_dkv) == (passes, passes, queries_pass)
    assert made.has_backward_blocks and not made.use_fused_bwd_kernel


def test_lengths_are_filled_up_so_that_tiles_are_not_small():
    """Of the pixels of every bucket of SDXL at 1024 x 1024, in both sizes of its attention."""
    for width in range(512, 2049, 64):
        for factor in (16, 32):
            pixels = width // factor * (round(1024**2 / width / 64) * 64 // factor)
            assert pixels <= filled(pixels) <= pixels + 255
            assert tiles(filled(pixels), filled(pixels), 64).block_q >= 256
    assert [filled(n) for n in (1, 77, 128, 129, 729, 1040, 4032, 4096)] == [128, 128, 128, 256, 768, 1152, 4096, 4096]


# With all of XLA's optimisations, as users compile it.
SLICE = """
import jax, jax.numpy as jnp, sys
jax.config.update("jax_disable_most_optimizations", False)
from jax.sharding import NamedSharding, PartitionSpec
from realcustom_jax.devices import sharding, topology
from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.attention_kernels import attend
devices = topology.tpu_devices("v5e:2x2")
mesh = sharding.make_mesh(data=2, fsdp=1, tensor=2, devices=devices)
for pixels, tokens, heads, size in eval(sys.argv[1]):
    query, key = (jax.ShapeDtypeStruct(
        (2, n, heads, size), jnp.bfloat16,
        sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))) for n in (pixels, tokens))
    step = lambda q, k, v: jax.vjp(lambda *x: attend(*x, Platform.of(devices[0])), q, k, v)[1](q)
    with jax.set_mesh(mesh):
        made = jax.jit(step).lower(query, key, key).compile()
    print(made.as_text().count('custom_call_target="tpu_custom_call"'), made.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
def test_published_shapes_compile_for_a_tpu():
    """Forward and two backward kernels on each chip's part of batch and heads, no array of weights: SDXL's two sizes
    of self-attention, SD-1.5's, with its head size of 40 and 80, pictures that are not square, and visual tokens."""
    pytest.importorskip("libtpu")
    shapes = [(4096, 4096, 10, 64), (1024, 1024, 20, 64), (4032, 4032, 10, 64), (4096, 4096, 8, 40),
              (1024, 1024, 8, 80), (4096, 1458, 10, 64), (1024, 729, 20, 64)]
    lines = [line.split() for line in run(SLICE, shapes).splitlines() if line[:1].isdigit()]
    for shape, (kernels, temporaries) in zip(shapes, lines, strict=True):
        pixels, tokens, heads, _ = shape
        assert int(kernels) == 3 and int(temporaries) < 2 * pixels * tokens * heads // 2 / 2, shape


def kernels(platform, query, key=None, dtype=jnp.bfloat16):
    """The attention that a platform is given, as a jaxpr's text."""
    query, key = (jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key or query))
    jaxpr = jax.make_jaxpr(functools.partial(attention_kernels.attend, platform=Platform.of(platform)))(query, key, key)
    return str(jaxpr)


def test_the_platform_chooses_the_kernel_where_the_shapes_suit_it(monkeypatch):
    long, short, wide, odd = (1, 1024, 2, 64), (1, 64, 2, 64), (1, 1024, 2, 160), (1, 1000, 2, 64)
    for pallas in (kernels("tpu", long), kernels("tpu", odd), kernels("tpu", long, (1, 729, 2, 64))):
        assert "pallas_call" in pallas
    text = kernels("tpu", (1, 4096, 2, 64), (1, 77, 2, 64))
    for plain in (kernels("cpu", long), text, *(kernels("tpu", shape) for shape in (short, wide))):
        assert "dot_general" in plain and "pallas_call" not in plain
    asked = []
    monkeypatch.setattr(attention_kernels, "_cudnn", lambda query, key, value: asked.append(query) or value)
    for dtype, size in ((jnp.bfloat16, 64), (jnp.float16, 40), (jnp.float32, 64), (jnp.bfloat16, 160)):
        kernels("gpu", (1, 8, 2, size), dtype=dtype)
    assert [(x.dtype, x.shape[-1]) for x in asked] == [(jnp.bfloat16, 64), (jnp.float16, 40)]


@pytest.mark.slow
def test_the_sampler_asks_cudnn_for_what_it_takes(monkeypatch):
    """Four axes of half precision, batched along the first alone: JAX's kernel cannot be vmapped over another one.
    XLA stands in for the kernel. Two images of two references."""
    @jax.custom_batching.custom_vmap
    def kernel(query, key, value):
        assert query.ndim == key.ndim == value.ndim == 4 and query.dtype == jnp.bfloat16
        asked.append(len(query))
        return attention_kernels.plain_attention(query, key, value)

    @kernel.def_vmap
    def _(size, batched, *inputs):
        assert batched == [True] * 3
        assert len({x.shape[:2] for x in inputs}) == 1, "as many rows of keys as of queries"
        out = kernel(*(x.reshape(-1, *x.shape[2:]) for x in inputs))
        return out.reshape(size, -1, *out.shape[1:]), True

    asked = []
    monkeypatch.setattr(attention_kernels, "_cudnn", kernel)
    config = UNetConfig(
        block_out_channels=(16,), layers_per_block=1, cross_attention=(True,), transformer_layers=(2,), heads=(2,),
        cross_attention_dim=8, norm_num_groups=4, use_linear_projection=True, vision=True)
    unet = UNet(config, jnp.bfloat16, "gpu")
    args, kwargs = weights.unet_inputs(config, size=(8, 8))
    params = weights.parameter_shapes(unet, *args, **kwargs)
    condition = Conditioning(jnp.zeros((2, 5, 8)), vision=jnp.zeros((2, 2, 6, 8)))

    def sample(params):
        return sample_latents(unet, params, jnp.zeros((2, 8, 8, 4)), condition, condition, jnp.ones((2, 2, 5)),
                              solver=make_solver(steps=4), freeze_mask_step=3).latents

    asked.clear()
    jax.eval_shape(sample, params)
    assert {2 * 3, 2 * 2 * 2} <= set(asked), "rows of three lanes, and references of two, of both images"


TARGET = np.array([[[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]])


@pytest.mark.parametrize("pixels, batch", [(12, 2), (2048, 2), (1500, 2), (12, 3)])
def test_maps_are_the_mean_over_heads_of_the_targets_weights(pixels, batch):
    """Of the first rows, where there are more."""
    query, key, _ = inputs(pixels, 5, batch=batch)
    maps = jax.jit(functools.partial(target_maps, platform=Platform()))(query, key, TARGET)
    weights = attention_weights(query, key).mean(axis=1)[:2]
    assert_close(maps, jnp.einsum("bqk,brk->brq", weights, TARGET.astype(np.float32)), 1e-5)
    np.testing.assert_allclose(maps[1, 1], 1, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 3])
def test_maps_by_attending_to_marks(monkeypatch, batch):
    """As on NVIDIA GPUs, of half precision; cuDNN's part is XLA's here."""
    monkeypatch.setattr(attention_kernels, "_cudnn", attention_kernels.plain_attention)
    query, key, _ = (x.astype(jnp.bfloat16) for x in inputs(12, 5, batch=batch))
    maps = jax.jit(functools.partial(target_maps, platform=Platform.of("gpu")))(query, key, TARGET)
    weights = attention_weights(query, key).mean(axis=1)[:2]
    assert maps.dtype == jnp.float32
    assert_close(maps, jnp.einsum("bqk,brk->brq", weights, TARGET.astype(np.float32)), 1e-2)


@pytest.mark.parametrize("pixels, parts", [(64 * 64, 4), (72 * 56, 4)])
def test_weights_are_never_whole(pixels, parts):
    """Of the pixels of SDXL at 1024 x 1024 and at 1152 x 896, no array holds all heads' weights."""
    query, key = (jax.ShapeDtypeStruct((1, n, 10, 4), jnp.bfloat16) for n in (pixels, 77))
    target = jax.ShapeDtypeStruct((1, 1, 77), jnp.float32)
    jaxpr = jax.make_jaxpr(functools.partial(target_maps, platform=Platform()))(query, key, target)
    sizes = [var.aval.size for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars]
    loops = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert max(sizes) < 10 * pixels * 77 / 4 and [loop.params["length"] for loop in loops] == [parts]
