"""Attention by its kernels: all give the numbers of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu

from realcustom_jax.model_files import weights
from realcustom_jax.models import attend
from realcustom_jax.models.attend import attention_weights, target_maps, tpu_attention
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.sampling.sampler import Conditioning, sample_latents
from realcustom_jax.sampling.solvers import make_solver

from goldens import assert_close


def inputs(pixels, tokens, heads=2, head_size=8, batch=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, n, heads, head_size)).astype(np.float32) for n in (pixels, tokens, tokens)]


def plain(query, key, value):
    return jnp.einsum("bhqk,bkhd->bqhd", attention_weights(query, key), value)


@pytest.mark.parametrize("tokens", [pytest.param(128, marks=pytest.mark.slow), 200])
def test_the_tpu_kernel_and_its_gradient(tokens):
    """Interpreted on the CPU; 200 tokens are filled up to 256."""
    query, key, value = inputs(128, tokens, batch=1)
    with pltpu.force_tpu_interpret_mode():
        ours = tpu_attention(query, key, value)
        gradient = jax.grad(lambda *x: (tpu_attention(*x) ** 2).sum(), argnums=(0, 1, 2))(query, key, value)
    assert_close(ours, plain(query, key, value), 1e-5)
    expected = jax.grad(lambda *x: (plain(*x) ** 2).sum(), argnums=(0, 1, 2))(query, key, value)
    for a, b in zip(gradient, expected, strict=True):
        assert_close(a, b, 1e-4)


def test_which_kernel_is_chosen(monkeypatch):
    """By the platform that the program is lowered for, and by what the kernels can do."""
    def of(platform, *shapes):
        wanted = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
        exported = jax.export.export(jax.jit(attend.attend), platforms=[platform])(*wanted)
        return "tpu_custom_call" in exported.mlir_module()

    long, short, wide = [(1, 1024, 2, 64)] * 3, [(1, 64, 2, 64)] * 3, [(1, 1024, 2, 160)] * 3
    odd = [(1, 1000, 2, 64)] * 3
    assert of("tpu", *long) and of("tpu", (1, 1024, 2, 64), *[(1, 729, 2, 64)] * 2)
    assert not any([of("cpu", *long), of("tpu", *short), of("tpu", *wide), of("tpu", *odd)])

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [type("Gpu", (), {"compute_capability": "9.0"})])
    able = [attend._cudnn_can(jnp.zeros((1, 8, 2, size), dtype)) for dtype, size in (
        (jnp.bfloat16, 64), (jnp.float16, 40), (jnp.float32, 64), (jnp.bfloat16, 160))]
    assert able == [True, True, False, False]


@pytest.mark.slow
def test_the_sampler_traces_with_cudnn_where_there_is_one(monkeypatch):
    """With JAX's own rules for cuDNN's kernel, of which vmap takes only some axes; two images of two references."""
    machine = {
        "check_cudnn_version": 91200, "check_compute_capability": True, "is_cuda_compute_capability_equal": False}
    for check, answer in machine.items():
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda *_, answer=answer: answer)
    monkeypatch.setattr(attend, "_cudnn_can", lambda query: True)
    config = UNetConfig(
        block_out_channels=(16,), layers_per_block=1, cross_attention=(True,), transformer_layers=(2,), heads=(2,),
        cross_attention_dim=8, norm_num_groups=4, use_linear_projection=True, vision=True)
    unet = UNet(config, jnp.bfloat16)
    args, kwargs = weights.unet_inputs(config, size=(8, 8))
    params = weights.parameter_shapes(unet, *args, **kwargs)
    condition = Conditioning(jnp.zeros((2, 5, 8)), vision=jnp.zeros((2, 2, 6, 8)))

    def sample(params):
        return sample_latents(unet, params, jnp.zeros((2, 8, 8, 4)), condition, condition, jnp.ones((2, 2, 5)),
                              solver=make_solver(steps=4), freeze_mask_step=3).latents

    jaxpr = jax.make_jaxpr(sample)(params)
    assert "dot_product_attention_fwd" in str(jaxpr)


TARGET = np.array([[[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]])


@pytest.mark.parametrize("pixels, batch", [(12, 2), (2048, 2), (1500, 2), (12, 3)])
def test_maps_are_the_mean_over_heads_of_the_targets_weights(pixels, batch):
    """Of the first rows, where there are more."""
    query, key, _ = inputs(pixels, 5, batch=batch)
    maps = jax.jit(target_maps)(query, key, TARGET)
    weights = attention_weights(query, key).mean(axis=1)[:2]
    assert_close(maps, jnp.einsum("bqk,brk->brq", weights, TARGET.astype(np.float32)), 1e-5)
    np.testing.assert_allclose(maps[1, 1], 1, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 3])
def test_maps_by_attending_to_marks(monkeypatch, batch):
    """As on NVIDIA GPUs, of half precision; cuDNN's part is XLA's here."""
    monkeypatch.setattr(attend, "_cudnn_can", lambda query: True)
    monkeypatch.setattr(attend, "_cudnn", attend.plain_attention)
    query, key, _ = (x.astype(jnp.bfloat16) for x in inputs(12, 5, batch=batch))
    maps = jax.jit(target_maps)(query, key, TARGET)
    weights = attention_weights(query, key).mean(axis=1)[:2]
    assert maps.dtype == jnp.float32
    assert_close(maps, jnp.einsum("bqk,brk->brq", weights, TARGET.astype(np.float32)), 1e-2)


@pytest.mark.parametrize("pixels, parts", [(64 * 64, 4), (72 * 56, 4)])
def test_weights_are_never_whole(pixels, parts):
    """Of the pixels of SDXL at 1024 x 1024 and at 1152 x 896, no array holds all heads' weights."""
    query, key = (jax.ShapeDtypeStruct((1, n, 10, 4), jnp.bfloat16) for n in (pixels, 77))
    target = jax.ShapeDtypeStruct((1, 1, 77), jnp.float32)
    jaxpr = jax.make_jaxpr(target_maps)(query, key, target)
    sizes = [var.aval.size for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars]
    loops = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert max(sizes) < 10 * pixels * 77 / 4 and [loop.params["length"] for loop in loops] == [parts]
