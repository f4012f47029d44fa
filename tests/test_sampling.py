"""The sampler against the released loop (goldens), a plain loop, and the structure of its jaxpr."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.model_files import weights
from realcustom_jax.models import context
from realcustom_jax.models.unet import UNet, UNetConfig

import fresh_process
from goldens import FIXTURES, assert_close, golden, nchw, nhwc

STATIC = ("unet", "mask", "freeze_mask_step", "branches")
BATCH, REFERENCES, TOKENS, VISION_TOKENS, WIDTH = 3, 2, 5, 6, 12  # no other dimension of the small UNet is 12
ATTENTION_LAYERS = 4
traces = []


def jit(function, **kwargs):
    # Compiling is most of a test's time; unoptimised code takes half of it.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **kwargs)


@functools.partial(jit, static_argnames=STATIC)
def sample(unet, params, noise, positive, negative, target, **options):
    traces.append(options)
    return rc.sample_latents(unet, params, noise, positive, negative, target, **options)


# -------------------- the released loop


@functools.cache
def golden_case():
    data, files = golden("pipeline"), (FIXTURES / "unet_sdxl.json", FIXTURES / "unet_sdxl.safetensors")
    unet, params = rc.load_unet(*files)
    projector, projector_params = rc.load_projector(*files)

    def conditioning(prefix):
        features = [data[f"{prefix}vision_0"], data[f"{prefix}vision_1"]]
        tokens = projector.apply({"params": projector_params}, features)[:, None]
        return rc.Conditioning(data[f"{prefix}text"], data[f"{prefix}pooled"], data["time_ids"], tokens)

    target = np.broadcast_to(data["target_token"][:, None], (2, 1, 77))
    return data, (unet, params, nhwc(data["noise"]), conditioning(""), conditioning("neg_"), target)


@pytest.mark.parametrize("branches, prefix", [
    pytest.param("sequential", "", marks=pytest.mark.slow), ("fused", "fused_")])
def test_golden(branches, prefix):
    data, arguments = golden_case()
    ours = sample(*arguments, solver=rc.make_solver(steps=8), freeze_mask_step=4, branches=branches)
    assert_close(ours.masks, data[f"{prefix}masks"], 1e-3)
    assert_close(nchw(ours.latents), data[f"{prefix}x0"], 1e-3)


# -------------------- a plain loop, on a UNet of one level


@functools.cache
def small_case():
    config = UNetConfig(
        block_out_channels=(8,), layers_per_block=1, cross_attention=(True,), transformer_layers=(1,), heads=(2,),
        cross_attention_dim=WIDTH, norm_num_groups=4, use_linear_projection=True, vision=True)
    unet, rng = UNet(config), np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    args, kwargs = weights.unet_inputs(config, size=(8, 8))
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *args, **kwargs)["params"]
    params = jax.tree.map(lambda p: 0.4 * normal(*p.shape), shapes)
    positive, negative = (
        rc.Conditioning(normal(BATCH, TOKENS, WIDTH), vision=normal(BATCH, REFERENCES, VISION_TOKENS, WIDTH))
        for _ in range(2))
    target = np.zeros((BATCH, REFERENCES, TOKENS))
    target[:, 0, 1:3] = target[:, 1, 4] = 1
    return unet, params, normal(BATCH, 8, 8, 4), positive, negative, target


apply = functools.partial(jit, static_argnames=("unet", "self_maps_at"))(
    lambda unet, params, x, t, text, **inputs: unet.apply({"params": params}, x, t, text, **inputs))


def plain_loop(unet, params, noise, positive, negative, target, *, solver, freeze_mask_step, guidance_scale, mask,
               branches):
    """(x_0, masks) in the words of the design; K = 0 has masks of ones."""
    state, masks = solver.init(noise), []
    newest = jnp.ones((*target.shape[:2], 4, 4))
    for i, t in enumerate(solver.timesteps):
        used = newest
        if i < freeze_mask_step:
            maps = apply(unet, params, state.x, t, positive.text, target=target, self_maps_at=mask.refine_at)
            newest = mask.masks_of(maps, (4, 4))
            used = newest if i == 0 or branches == "sequential" else used
        masks.append(used)
        generation, uncond = (
            apply(unet, params, state.x, t, c.text, vision=c.vision, mask=used).noise for c in (positive, negative))
        state = solver.step(state, i, uncond + guidance_scale * (generation - uncond))
    return state.x0, jnp.stack(masks)


# Every value is given, so that the tests share what is compiled.
OPTIONS = dict(
    solver=rc.make_solver(steps=4), freeze_mask_step=2, guidance_scale=3.5, mask=rc.MaskConfig(), branches="fused")


def assert_is_plain_loop(ours, *case, **options):
    latents, masks = plain_loop(*case, **options)
    assert_close(ours.masks, masks, 1e-4)
    assert_close(ours.latents, latents, 1e-4)


@pytest.mark.parametrize("branches, freeze, distinct", [
    ("fused", 2, [0, 0, 1, 1]), ("fused", 9, [0, 0, 1, 2]), ("sequential", 2, [0, 1, 1, 1]),
])
@pytest.mark.slow
def test_orders(branches, freeze, distinct):
    """The frozen mask is that of step K − 1's own latents, in both orders; before, fused masks are one step old."""
    options = OPTIONS | dict(freeze_mask_step=freeze, branches=branches)
    ours = sample(*small_case(), **options)
    assert_is_plain_loop(ours, *small_case(), **options)
    for i, j in np.ndindex(4, 4):
        assert np.array_equal(ours.masks[i], ours.masks[j]) == (distinct[i] == distinct[j])


@pytest.mark.parametrize("on_step", [None, lambda step: None], ids=["as a whole", "step by step"])
@pytest.mark.slow
def test_as_on_a_gpu(on_step):
    options = OPTIONS | dict(freeze_mask_step=3)
    scanned = sample(*small_case(), **options)
    unet, params, *inputs = small_case()
    unet = unet.clone(platform="gpu")
    if on_step is None:
        apart = sample(unet, params, *inputs, **options)
    else:
        apart = rc.sample_latents(unet, context.layers_apart(params), *inputs, **options, on_step=on_step)
    assert_close(apart.masks, scanned.masks, 1e-4)
    assert_close(apart.latents, scanned.latents, 1e-4)


@pytest.mark.slow
def test_refined_by_self_attention_and_frozen_at_once():
    options = OPTIONS | dict(solver=rc.make_solver(steps=2), freeze_mask_step=1)
    plain = rc.MaskConfig(overlap="argmax")
    refined = dataclasses.replace(plain, refine_at=(8, 8))
    ours = sample(*small_case(), **options | dict(mask=refined))
    assert_is_plain_loop(ours, *small_case(), **options | dict(mask=refined))
    _, unrefined = plain_loop(*small_case(), **options | dict(mask=plain))
    assert not np.allclose(ours.masks, unrefined, atol=1e-2)


@pytest.mark.slow
def test_no_mask_is_a_mask_of_ones_and_steps_are_reported():
    seen = []
    ours = rc.sample_latents(*small_case(), **OPTIONS | dict(mask=None), on_step=seen.append)
    assert_is_plain_loop(ours, *small_case(), **OPTIONS | dict(freeze_mask_step=0))
    assert sorted(seen) == [0, 1, 2, 3]


# -------------------- lanes that nobody needs, and what users give


def operations(**changes):
    unet, params, noise, positive, negative, target = small_case()
    options = dict(solver=rc.make_solver(steps=25), freeze_mask_step=12, mask=rc.MaskConfig()) | changes
    return flops(jax.make_jaxpr(lambda params: rc.sample_latents(
        unet, params, noise, positive, negative, target, **options))(params).jaxpr)


@pytest.mark.slow
def test_without_guidance_there_is_no_negative_lane():
    *inputs, negative, target = small_case()
    ours = sample(*inputs, None, target, **OPTIONS | dict(guidance_scale=None))
    same = sample(*small_case(), **OPTIONS | dict(guidance_scale=1.0))
    assert_close(ours.latents, same.latents, 1e-4)
    assert_close(ours.masks, same.masks, 1e-4)
    for branches in ("fused", "sequential"):
        assert operations(guidance_scale=None, branches=branches) <= 0.62 * operations(branches=branches)


@pytest.mark.slow
@pytest.mark.parametrize("branches", ["fused", "sequential"])
def test_given_masks_need_no_guidance_lane(branches):
    masks = np.random.default_rng(1).uniform(size=(BATCH, REFERENCES, 6, 3)).astype(np.float32)
    unet, params, noise, positive, negative, target = small_case()
    options = OPTIONS | dict(branches=branches)
    ours = sample(*small_case(), masks=masks, **options)
    state = options["solver"].init(noise)
    for i, t in enumerate(options["solver"].timesteps):
        generation, uncond = (apply(unet, params, state.x, t, c.text, vision=c.vision, mask=masks).noise
                              for c in (positive, negative))
        state = options["solver"].step(state, i, uncond + 3.5 * (generation - uncond))
    assert_close(ours.latents, state.x0, 1e-4)
    assert np.array_equal(ours.masks, np.broadcast_to(masks, (4, *masks.shape)))
    assert operations(masks=masks, branches=branches) <= 0.83 * operations(branches=branches)


@pytest.mark.slow
def test_the_strength_of_each_reference():
    *inputs, positive, negative, target = small_case()
    text_only = jit(rc.sample_text_only, static_argnums=0)(*inputs, positive, negative, solver=OPTIONS["solver"])
    assert_close(sample(*small_case(), vision_scale=0.0, **OPTIONS).latents, text_only, 1e-4)
    alone, first = (c.replace(vision=c.vision[:, :1]) for c in (positive, negative)), target[:, :1]
    expected = sample(*inputs, *alone, first, vision_scale=np.float32(0.7), **OPTIONS)
    ours = sample(*small_case(), vision_scale=np.float32([0.7, 0.0]), **OPTIONS)
    assert_close(ours.latents, expected.latents, 1e-4)
    assert_close(ours.masks[:, :, :1], expected.masks, 1e-4)  # masks are returned as they are, not by strength


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler_ancestral", "lcm"])
def test_solvers_that_draw_noise_in_each_step(name):
    unet, params, noise, positive, negative, target = small_case()
    solver = rc.make_solver(name, 4)
    fresh = np.random.default_rng(2).standard_normal((4, *noise.shape)).astype(np.float32)
    ours = sample(*small_case(), **OPTIONS | dict(solver=solver), noise_per_step=fresh, vision_scale=0.0)

    state = solver.init(noise)
    for i, t in enumerate(solver.timesteps):
        made, uncond = (apply(unet, params, state.x, t, c.text).noise for c in (positive, negative))
        state = solver.step(state, i, uncond + 3.5 * (made - uncond), fresh[i])
    assert_close(ours.latents, state.x0, 1e-4)
    alone = rc.sample_latents(*small_case(), **OPTIONS | dict(solver=solver), noise_per_step=fresh, vision_scale=0.0,
                              on_step=lambda step: None)
    assert_close(alone.latents, ours.latents, 1e-4)


# -------------------- references


@pytest.mark.slow
def test_empty_phrases_are_text_only():
    *inputs, target = small_case()
    ours = sample(*inputs, np.zeros_like(target), **OPTIONS)
    text_only = jit(rc.sample_text_only, static_argnums=0)(*inputs, solver=OPTIONS["solver"])
    assert not ours.masks.any()
    assert_close(ours.latents, text_only, 1e-4)
    assert np.abs(sample(*small_case(), **OPTIONS).latents - text_only).max() > 0.1


@pytest.mark.slow
def test_second_reference_without_phrase_does_nothing():
    *inputs, positive, negative, target = small_case()
    target = target * np.array([1, 0])[:, None]
    two = sample(*inputs, positive, negative, target, **OPTIONS)
    positive, negative = (c.replace(vision=c.vision[:, :1]) for c in (positive, negative))
    latents, masks = plain_loop(*inputs, positive, negative, target[:, :1], **OPTIONS)
    assert_close(two.masks[:, :, :1], masks, 1e-4)
    assert_close(two.latents, latents, 1e-4)


@pytest.mark.slow
def test_order_of_references_does_not_matter():
    *inputs, positive, negative, target = small_case()
    ours = sample(*inputs, positive, negative, target, **OPTIONS)
    positive, negative = (c.replace(vision=c.vision[:, ::-1]) for c in (positive, negative))
    swapped = sample(*inputs, positive, negative, target[:, ::-1], **OPTIONS)
    assert_close(swapped.masks[:, :, ::-1], ours.masks, 1e-4)
    assert_close(swapped.latents, ours.latents, 1e-4)


# -------------------- structure


@pytest.mark.slow
def test_one_trace_for_equal_settings():
    unet, params, noise, *inputs = small_case()
    sample(unet, params, noise, *inputs, **OPTIONS)
    before = len(traces)
    others = dict(mask=rc.MaskConfig(), guidance_scale=2.0, solver=rc.make_solver(steps=4, prediction="v_prediction"))
    sample(UNet(unet.config), params, noise + 1, *inputs, **OPTIONS | others)
    assert len(traces) == before


def equations(jaxpr, *, into_loops=True):
    """All equations of a jaxpr and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        if into_loops or equation.primitive.name != "scan":
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                if hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner), into_loops=into_loops)


def convolutions(jaxpr):
    return sum(e.primitive.name == "conv_general_dilated" for e in equations(jaxpr))


def embeddings_of_time(jaxpr):
    return sum(e.primitive.name in ("sin", "cos") for e in equations(jaxpr))


def embedding_projections(jaxpr, pixels):
    """Products of a kernel with anything that has no axis of pixels (or tokens), which `pixels` axes imply."""
    return sum(e.primitive.name == "dot_general" and e.invars[1].aval.ndim == 2 and e.invars[0].aval.ndim < pixels
               for e in equations(jaxpr))


def token_projections(jaxpr):
    """Products that contract the width of the text and vision tokens."""

    def contracted(e):
        (axes, _), _ = e.params["dimension_numbers"]
        return [e.invars[0].aval.shape[axis] for axis in axes]

    return sum(WIDTH in contracted(e) for e in equations(jaxpr) if e.primitive.name == "dot_general")


@functools.cache
def single_call():
    unet, params, noise, positive, *_ = small_case()
    run = functools.partial(unet.apply, {"params": params}, noise, 0, positive.text, vision=positive.vision)
    return jax.make_jaxpr(run)().jaxpr


@pytest.mark.parametrize("branches, freeze, calls_before, calls_in_loops", [
    ("fused", 4, 2, [1, 1]), pytest.param("fused", 1, 2, [1], marks=pytest.mark.slow),
    pytest.param("fused", 99, 2, [1], marks=pytest.mark.slow), ("sequential", 4, 0, [2, 1]),
])
def test_calls_of_the_unet(branches, freeze, calls_before, calls_in_loops):
    """One call in each fused loop; tokens are projected once in every layer, and no loop knows of the timestep."""
    unet, *arrays = small_case()
    options = dict(solver=rc.make_solver(steps=8), freeze_mask_step=freeze, branches=branches)
    jaxpr = jax.make_jaxpr(functools.partial(rc.sample_latents, unet, **options))(*arrays).jaxpr
    loops = [e.params["jaxpr"].jaxpr for e in equations(jaxpr, into_loops=False)
             if e.primitive.name == "scan" and e.params["length"] > 1]
    one = convolutions(single_call())
    assert [convolutions(loop) for loop in loops] == [one * calls for calls in calls_in_loops]
    assert convolutions(jaxpr) == one * (calls_before + sum(calls_in_loops))
    assert token_projections(jaxpr) == token_projections(single_call()) == 4 * ATTENTION_LAYERS
    assert not any(token_projections(loop) or embeddings_of_time(loop) for loop in loops)
    assert embeddings_of_time(jaxpr) == embeddings_of_time(single_call()) > 0
    assert embedding_projections(single_call(), pixels=3) and not any(
        embedding_projections(loop, pixels=4) for loop in loops)


def products(jaxpr):
    """How much the matrix products of a jaxpr make, weighted with what they sum over."""
    def size(e):
        (axes, _), _ = e.params["dimension_numbers"]
        return e.outvars[0].aval.size * np.prod([e.invars[0].aval.shape[axis] for axis in axes])

    return sum(size(e) for e in equations(jaxpr) if e.primitive.name == "dot_general")


@pytest.mark.slow
def test_no_lane_pays_for_anothers_work():
    """A fused step makes as many products as guidance, generation and negative alone: maps of one, vision of two."""
    unet, *arrays = small_case()

    def first_loop(branches):
        options = dict(solver=rc.make_solver(steps=8), freeze_mask_step=4, branches=branches)
        jaxpr = jax.make_jaxpr(functools.partial(rc.sample_latents, unet, **options))(*arrays).jaxpr
        return next(e.params["jaxpr"].jaxpr for e in equations(jaxpr, into_loops=False)
                    if e.primitive.name == "scan" and e.params["length"] > 1)

    assert products(first_loop("fused")) == products(first_loop("sequential")) > 0


def test_compute_dtype_is_the_unets_and_the_solver_is_float32():
    unet, params, *arrays = small_case()
    run = functools.partial(rc.sample_latents, UNet(unet.config, jnp.bfloat16), solver=rc.make_solver(steps=2))
    out = jax.eval_shape(run, params, *arrays)
    assert out.latents.dtype == out.masks.dtype == jnp.float32


# -------------------- mistakes


@pytest.mark.parametrize("change, words", [
    (dict(branches="fuse"), "did you mean 'fused'"),
    (dict(freeze_mask_step=0), "freeze_mask_step is 0; it must be at least 1"),
    (dict(guidance_scale=float("nan")), "guidance_scale is nan"),
    (dict(target=np.ones((BATCH, 1, TOKENS))), "one target phrase for each reference"),
    (dict(noise=np.ones((8, 8, 4))), "expected \\[B,H,W,C\\]"),
    (dict(noise=np.ones((BATCH, 1, 8, 4))), "too small for a mask"),
    (dict(positive=rc.Conditioning(np.ones((BATCH, TOKENS, WIDTH)))), "use sample_text_only"),
    (dict(negative=rc.Conditioning(np.ones((BATCH, TOKENS, WIDTH)))), "differ in the shape of vision: .*, None"),
    (dict(mask=rc.MaskConfig(refine_at=(6, 6))), "no self-attention layer has that size; there are \\[\\(8, 8\\)\\]"),
    (dict(negative=None), "negative is None, but a guidance_scale is given"),
    (dict(masks=np.ones((BATCH, 1, 4, 4))), "give one mask for each reference"),
    (dict(vision_scale=[1.0, 1.0, 1.0]), "vision_scale has shape \\(3,\\); .* each of the 2 reference"),
    (dict(solver=rc.make_solver("lcm", 4)), "has shape None; this solver adds fresh noise .* \\(4, 3, 8, 8, 4\\)"),
    (dict(noise_per_step=np.ones((4, BATCH, 8, 8, 4))), "draws none, so give none"),
    (dict(mask=rc.MaskConfig(normalize="max")), "Unknown normalize 'max'"),
])
def test_mistakes_are_named(change, words):
    names = ("unet", "params", "noise", "positive", "negative", "target")
    arguments = dict(zip(names, small_case(), strict=True)) | OPTIONS | change
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: rc.sample_latents(**arguments))


ON_FOUR_DEVICES = """
import jax, numpy as np
import realcustom_jax as rc
from realcustom_jax.devices import sharding
from test_sampling import sample, small_case

unet, params, *inputs = small_case()
inputs = jax.tree.map(lambda x: x[np.array([0, 1, 2, 1])], inputs)
mesh = sharding.make_mesh(data=2, fsdp=2)
options = {"solver": rc.make_solver(steps=3), "freeze_mask_step": 2}
alone = sample(unet, params, *inputs, **options)
placed = jax.device_put(params, sharding.shardings(params, mesh))
rows = jax.device_put(tuple(inputs), sharding.batch_sharding(mesh, len(inputs[0])))
with jax.set_mesh(mesh):
    divided = sample(unet, placed, *rows, **options)
assert len(divided.latents.addressable_shards[0].data) == 1
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4), divided, alone)
"""


@pytest.mark.slow
def test_on_a_mesh_every_device_makes_its_own_images():
    fresh_process.run(ON_FOUR_DEVICES, devices=4)
