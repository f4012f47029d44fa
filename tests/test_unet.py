"""The UNet against the released torch UNet (goldens), and the properties of its visual term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import realcustom_jax as rc
from realcustom_jax.model_files import weights
from realcustom_jax.models import context

from goldens import FIXTURES, assert_close, golden, nchw, nhwc

NAMES = ("unet_sdxl", "unet_sdxl_shallow", "unet_sd15")


def load(name):
    """(module, params, golden arrays, positional inputs, keyword inputs, vision tokens, target) of one golden."""
    data = golden(name)
    module, params = rc.load_unet(FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors")
    args = (nhwc(data["sample"]), data["timestep"], data["text"])
    kwargs = {"pooled": data["text_embeds"], "time_ids": data["time_ids"]} if "text_embeds" in data else {}
    target = np.broadcast_to(data["target_token"][:, None], (2, 1, 77))
    return module, params, data, args, kwargs, data["vision_tokens"][:, None], target


def apply(case, **extra):
    module, params, _, args, kwargs, *_ = case
    return jax.jit(lambda inputs, extra: module.apply({"params": params}, *inputs[0], **inputs[1], **extra))(
        (args, kwargs), extra)


@pytest.fixture(scope="module")
def case():
    return load("unet_sdxl")


@pytest.fixture(scope="module")
def known(case):
    """What the UNet makes of text, image, mask and target together."""
    return apply(case, vision=case[5], mask=case[2]["mask"], target=case[6])


@pytest.mark.parametrize("name", [
    "unet_sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "unet_sdxl")])
def test_golden(name):
    case = load(name)
    data, vision, target = case[2], case[5], case[6]
    text_only = apply(case, target=target)
    assert_close(nchw(text_only.noise), data["out_text"])
    expected = [data[k] for k in sorted(data) if k.startswith("map_")]
    assert len(text_only.maps) == len(expected)
    for ours, theirs in zip(text_only.maps, expected, strict=True):
        assert_close(ours[:, 0], theirs)
    without_mask = apply(case, vision=vision)
    assert without_mask.maps == ()
    assert_close(nchw(without_mask.noise), data["out_vision_nomask"])
    assert_close(nchw(apply(case, vision=vision, mask=data["mask"]).noise), data["out_vision_mask"])


@pytest.mark.slow
def test_mask_of_zeros_is_no_image(case):
    mask = jnp.zeros((2, 1, 8, 8))
    assert_close(apply(case, vision=case[5], mask=mask).noise, apply(case).noise, 1e-6)


@pytest.mark.slow
def test_empty_second_reference_is_one_reference(case):
    data, vision = case[2], case[5]
    two = jnp.concatenate([vision, vision[::-1] + 1], axis=1)
    mask = jnp.concatenate([data["mask"], jnp.zeros_like(data["mask"])], axis=1)
    assert_close(apply(case, vision=two, mask=mask).noise, apply(case, vision=vision, mask=data["mask"]).noise, 1e-5)


@pytest.mark.slow
def test_order_of_references_does_not_matter(case):
    data, vision, target = case[2], case[5], case[6]
    two = jnp.concatenate([vision, vision[::-1] + 1], axis=1)
    mask = jnp.concatenate([data["mask"], 1 - data["mask"]], axis=1)
    targets = jnp.concatenate([target, jnp.roll(target, 1, axis=-1)], axis=1)
    one = apply(case, vision=two, mask=mask, target=targets)
    other = apply(case, vision=two[:, ::-1], mask=mask[:, ::-1], target=targets[:, ::-1])
    assert_close(other.noise, one.noise, 1e-5)
    assert_close(other.maps[0][:, ::-1], one.maps[0], 1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["layers scanned", "layers apart"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.slow
def test_context_computed_ahead_is_exact(case, known, apart, platform):
    """On every platform: norms, shifts and kept tokens are arranged in other ways."""
    module, params, data, (sample, timestep, text), kwargs, vision, target = case
    extra = dict(vision=vision, mask=data["mask"], target=target)
    module = module.clone(platform=platform)
    if apart:
        params = context.layers_apart(params)
        assert not any("transformer_blocks" in path for path in flatten_dict(params))
    times = jnp.broadcast_to(jnp.asarray(timestep), len(sample))

    @jax.jit
    def project(params):
        return context.merge(
            context.project_tokens(module, params, text, vision),
            context.project_time(module, params, times, kwargs.get("pooled"), kwargs.get("time_ids")))

    @jax.jit
    def run(params, ahead):
        return module.apply({"params": params, "context": ahead}, sample, None, text, **extra)

    out = run(params, project(params))
    assert_close(out.noise, known.noise, 1e-5)
    for ours, theirs in zip(out.maps, known.maps, strict=True):
        assert_close(ours, theirs, 1e-5)


def test_without_a_timestep_every_shift_must_come_from_the_context(case):
    """Without them, a UNet would run as if there were no timestep: no context, tokens alone, and one block's shift."""
    module, params, data, (sample, _, text), kwargs, vision, _ = case
    times = jnp.full(len(sample), 500)
    tokens = context.project_tokens(module, params, text, vision)
    shifts = flatten_dict(context.project_time(module, params, times, kwargs.get("pooled"), kwargs.get("time_ids")))
    lost = next(path for path in shifts if path[0] == "mid_block")
    broken = unflatten_dict({path: leaf for path, leaf in shifts.items() if path != lost})
    for known, named in (
            ({}, "blocks"), ({"context": tokens}, "blocks"), ({"context": context.merge(tokens, broken)}, "mid_block")):
        with pytest.raises(ValueError, match=f"timestep is None, and the context lacks the shifts of .*{named}.*give"):
            jax.eval_shape(lambda known=known: module.apply({"params": params, **known}, sample, None, text))


@pytest.mark.slow
def test_guidance_lanes_are_two_calls_in_one(case):
    """The first lane as text alone with maps, the second with the image and without maps."""
    module, params, data, args, kwargs, vision, target = case

    def run(rows, **extra):
        inputs = [x if np.ndim(x) == 0 else x[rows] for x in args]
        return jax.jit(lambda: module.apply(
            {"params": params}, *inputs, **{k: v[rows] for k, v in kwargs.items()}, **extra))()

    visual = {"vision": vision[1:], "mask": data["mask"][1:]}
    one = run(slice(None), guidance_lanes=1, target=target[:1], self_maps_at=(8, 8), **visual)
    guidance = run(slice(1), target=target[:1], self_maps_at=(8, 8))
    generation = run(slice(1, None), **visual)
    assert_close(one.noise[:1], guidance.noise, 1e-5)
    assert_close(one.noise[1:], generation.noise, 1e-5)
    for ours, theirs in zip(one.maps + one.self_maps, guidance.maps + guidance.self_maps, strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.slow
def test_self_maps(case):
    module, params, _, args, kwargs, *_ = case
    maps = jax.jit(lambda: module.apply({"params": params}, *args, **kwargs, self_maps_at=(8, 8)).self_maps)()
    assert maps and all(m.shape == (2, 1, 64, 64) for m in maps)
    for m in maps:
        np.testing.assert_allclose(m.sum(-1), 1, atol=1e-5)


def test_odd_sizes_pass_through():
    """A size that does not halve evenly is upsampled to its skip connection's size, as in diffusers."""
    module, params = rc.load_unet(FIXTURES / "unet_sdxl.json", FIXTURES / "unet_sdxl.safetensors")
    args, kwargs = weights.unet_inputs(module.config, size=(10, 14))
    out = jax.eval_shape(lambda: module.apply({"params": params}, *args, **kwargs))
    assert out.noise.shape == (1, 10, 14, 4)


@pytest.mark.parametrize("change, words", [
    (dict(pooled=None), "pooled is missing"),
    (dict(mask=np.ones((2, 3, 8, 8))), "mask has shape"),
    (dict(target=np.ones((2, 1, 5))), "target has shape"),
    (dict(vision=np.ones((2, 1, 9, 7))), "vision has shape"),
    (dict(guidance_lanes=3), "guidance_lanes is 3; expected 0 to 2"),
    (dict(guidance_lanes=1, vision=None, target=np.ones((2, 1, 77))), "target has shape .*; expected \\[1,R,2\\]"),
])
def test_wrong_inputs_are_named(change, words):
    module, params = rc.load_unet(FIXTURES / "unet_sdxl.json", FIXTURES / "unet_sdxl.safetensors")
    args, kwargs = weights.unet_inputs(module.config, batch=2)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.apply({"params": params}, *args, **(kwargs | change)))
