"""What users may give the sampler beside a prompt: strengths by block, guidance by text and image, masks, a picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.models.context import project_tokens, scale_vision
from realcustom_jax.models.resize import resize_bilinear

from goldens import assert_close
from test_sampling import BATCH, OPTIONS, REFERENCES, apply, operations, sample, small_case

BOX = np.zeros((BATCH, 8, 8), np.float32)
BOX[:, 2:7, 1:5] = 1


@pytest.fixture(scope="module")
def tokens():
    unet, params, _, positive, *_ = small_case()
    return project_tokens(unet, params, positive.text, positive.vision)


def ratios(tokens, scale):
    """By which number the visual values of each layer are multiplied, [R] for each layer; all else must stay."""
    scaled, found = scale_vision(tokens, scale, REFERENCES), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tokens):
        layer, *_, name = [key.key for key in path]
        ours = scaled
        for key in path:
            ours = ours[key.key]
        if name == "to_v_vision":
            attention = path[1].key if path[1].key.startswith("attentions") else ""
            ratio = np.asarray(ours / leaf)  # [layers, B, R, …]
            assert np.ptp(np.moveaxis(ratio, 2, 0).reshape(REFERENCES, -1), axis=1).max() < 1e-5
            found[f"{layer}.{attention}"] = np.moveaxis(ratio, 2, 0).reshape(REFERENCES, -1)[:, 0]
        else:
            assert np.array_equal(ours, leaf)
    return found


@pytest.mark.parametrize("scale, expected", [
    (0.5, [0.5, 0.5, 0.5, 0.5]),
    ({"up": 0.25}, [1, 1, 0.25, 0.25]),
    ({"down": 0.5, "mid": 0.75, "up": 2.0}, [0.5, 0.75, 2, 2]),
    ({"down_blocks.0": 0.5, "mid_block": 3}, [0.5, 3, 1, 1]),
    ({"up": 0.5, "up_blocks.0.attentions.1": 0.0}, [1, 1, 0.5, 0]),
    ({"up_blocks_0": 0.5}, [1, 1, 0.5, 0.5]),
])
def test_strength_by_block(tokens, scale, expected):
    found = ratios(tokens, scale)
    layers = ["down_blocks_0.attentions_0", "mid_block.attentions_0", "up_blocks_0.attentions_0",
              "up_blocks_0.attentions_1"]
    assert sorted(found) == layers
    np.testing.assert_allclose([found[layer][0] for layer in layers], expected, rtol=1e-5)


def test_strength_of_each_reference_by_block(tokens):
    found = ratios(tokens, {"mid": [0.5, 2.0]})
    np.testing.assert_allclose(found["mid_block.attentions_0"], [0.5, 2.0], rtol=1e-5)
    np.testing.assert_allclose(found["up_blocks_0.attentions_0"], [1, 1], rtol=1e-5)


@pytest.mark.parametrize("scale, message", [
    ({"middle": 1.0}, "the block 'middle', which has no visual attention; there are down, mid, up, down_blocks.0, "
                      "mid_block, up_blocks.0"),
    ({"up_blocks.1": 1.0}, "'up_blocks_1'"), ({"": 1.0}, "the block ''"), ({"u": 1.0}, "the block 'u'"),
    ({"up": [1.0, 1.0, 1.0]}, r"vision_scale has shape \(3,\)"),
])
def test_blocks_that_are_not_there(tokens, scale, message):
    with pytest.raises(ValueError, match=message):
        scale_vision(tokens, scale, REFERENCES)


@pytest.mark.slow
@pytest.mark.parametrize("branches", ["fused", "sequential"])
@pytest.mark.parametrize("mode, text_scale, rescale", [
    ("none", 2.0, 0.0), ("naive", 2.0, 0.7), ("naive_global", None, 1.0), ("naive_global_direct", None, 0.5)])
def test_guidance_of_the_released_modes(mode, text_scale, rescale, branches):
    """The loop in the words of the design, with `classifier_free_guidance`, which goldens and the original check."""
    unet, params, noise, positive, negative, target = small_case()
    solver, config = OPTIONS["solver"], OPTIONS["mask"]
    ours = sample(*small_case(), **OPTIONS | dict(branches=branches),
                  guidance=rc.Guidance(mode, text_scale, rescale))
    state, newest = solver.init(noise), None
    for i, t in enumerate(solver.timesteps):
        text = apply(unet, params, state.x, t, positive.text, target=target)
        used = newest
        if i < OPTIONS["freeze_mask_step"]:
            newest = config.masks_of(text, (4, 4))
            used = newest if i == 0 or branches == "sequential" else used
        generation, uncond = (
            apply(unet, params, state.x, t, c.text, vision=c.vision, mask=used).noise for c in (positive, negative))
        region = resize_bilinear(used.max(1)[..., None], (8, 8))
        state = solver.step(state, i, rc.classifier_free_guidance(
            text=text.noise, text_image=generation, uncond=uncond, text_scale=3.5 if text_scale is None else text_scale,
            image_scale=3.5, rescale=rescale, mode=mode, mask=region))
    assert_close(ours.latents, state.x0, 1e-4)


@pytest.mark.slow
def test_only_a_cascade_keeps_the_guidance_lane():
    direct = operations()
    assert operations(guidance=rc.Guidance("naive_global_direct", rescale=0.7)) == pytest.approx(direct, rel=1e-2)
    assert operations(guidance=rc.Guidance("none")) > 1.1 * direct


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["sum", "argmax"])
def test_a_given_mask_beside_one_of_attention(overlap):
    given = np.zeros((BATCH, 4, 4), np.float32)
    given[:, :2] = 1
    options = OPTIONS | dict(mask=rc.MaskConfig(overlap=overlap, scope=0.5), freeze_mask_step=9)
    ours = np.asarray(sample(*small_case(), masks=[None, given], **options).masks)
    unet, params, noise, positive, _, target = small_case()
    out = apply(unet, params, noise, options["solver"].timesteps[0], positive.text, target=target)
    free = np.stack([1 - given, 0 * given], axis=1) if overlap == "argmax" else None
    made = np.asarray(options["mask"].masks_of(out, (4, 4), free))[:, 0]
    assert np.array_equal(ours[:, :, 1], np.broadcast_to(given, (4, *given.shape)))
    np.testing.assert_allclose(ours[0, :, 0], made, atol=1e-4)
    assert (ours[:, :, 0] * given).any() == (overlap == "sum")
    assert ours[:, :, 0].max((-1, -2)).min() > 0 and np.abs(ours[0, :, 0] - ours[-1, :, 0]).max() > 1e-3


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("overlap", ["sum", "argmax", "argmax_plain", "argmax_mean", "split_first", "seeds"])
@pytest.mark.parametrize("normalize", ["max_norm", "min_max_norm", "min_max_per_channel", "none"])
def test_no_mask_leaves_what_is_allowed(normalize, overlap, binary):
    """Refinement does not spread it, nor do ones and zeros fill up the scope where less than that is allowed."""
    rng = np.random.default_rng(0)
    maps = [rng.uniform(size=(2, 2, 8, 8)), rng.uniform(size=(2, 2, 4, 4))]
    self_maps = [rng.uniform(size=(2, 1, 64, 64))]
    allowed = np.zeros((2, 2, 8, 8), np.float32)
    allowed[:, 0, 1:3, 2:5] = 1
    allowed[:, 1, 1:5, 4:8] = 0.5
    mask = np.asarray(rc.subject_mask(maps, size=(8, 8), scope=0.25, normalize=normalize, binary=binary,
                                      overlap=overlap, self_maps=self_maps, allowed=allowed))
    assert not mask[allowed == 0].any() and (mask > 0).any((2, 3)).all()
    everywhere = {"normalize": normalize, "binary": binary, "overlap": overlap, "self_maps": self_maps}
    np.testing.assert_array_equal(rc.subject_mask(maps, size=(8, 8), allowed=np.ones((2, 2, 8, 8)), **everywhere),
                                  rc.subject_mask(maps, size=(8, 8), **everywhere))


@pytest.mark.slow
@pytest.mark.parametrize("branches", ["fused", "sequential"])
def test_a_picture_to_begin_with_and_what_of_it_stays(branches):
    """Outside of the region the latents stay to the bit, inside they are made; masks lie in the region."""
    picture = np.random.default_rng(3).standard_normal((BATCH, 8, 8, 4)).astype(np.float32)
    solver = rc.make_solver(steps=6, start=2)
    options = OPTIONS | dict(solver=solver, branches=branches, freeze_mask_step=4)
    ours = sample(*small_case(), init_latents=picture, region=BOX, **options)
    assert ours.masks.shape[0] == solver.steps == 4
    outside = BOX == 0
    assert np.array_equal(np.asarray(ours.latents)[outside], picture[outside])
    assert np.abs(np.asarray(ours.latents) - picture)[~outside].mean() > 0.1
    reach = np.asarray(resize_bilinear(BOX[..., None], (4, 4)))[..., 0] > 0
    assert not np.asarray(ours.masks).max((0, 2))[~reach].any()

    free = sample(*small_case(), init_latents=picture, **options)
    unet, params, noise, positive, negative, target = small_case()
    state = solver.init(np.float32(solver.levels[0, 0]) * picture + np.float32(solver.levels[0, 1]) * noise)
    for i, t in enumerate(solver.timesteps):
        generation, uncond = (apply(unet, params, state.x, t, c.text, vision=c.vision, mask=free.masks[i]).noise
                              for c in (positive, negative))
        state = solver.step(state, i, uncond + 3.5 * (generation - uncond))
    assert_close(free.latents, state.x0, 1e-4)
    # The mask freezes with the same step of the whole schedule: 4 − 2.
    assert np.array_equal(free.masks[1 if branches == "sequential" else 2], free.masks[-1])


def test_noise_levels_of_a_start():
    whole, rest = rc.make_solver("dpm_multi", 8), rc.make_solver("dpm_multi", 8, start=3)
    assert rest.steps == 5 and rest.start == 3 and np.array_equal(rest.timesteps, whole.timesteps[3:])
    assert np.array_equal(rest.levels, whole.levels[3:])
    x0, noise = jnp.ones((2, 3)), jnp.full((2, 3), 2.0)
    np.testing.assert_allclose(rest.noisy(x0, noise, 0), rc.make_solver("ddim", 8).levels[3] @ [1, 2], rtol=1e-6)
    np.testing.assert_allclose((whole.levels ** 2).sum(1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="start leaves out 8 of 8 steps; expected 0 to 7"):
        rc.make_solver(steps=8, start=8)


@pytest.mark.parametrize("change, words", [
    (dict(guidance=rc.Guidance("cascade")), "Unknown guidance mode 'cascade'"),
    (dict(guidance=rc.Guidance("none"), guidance_scale=None), "guidance_scale is None, but the guidance mode 'none'"),
    (dict(region=BOX), "region is given, but init_latents"),
    (dict(solver=rc.make_solver(steps=4, start=1)), "leaves out its first 1 steps, but init_latents"),
    (dict(init_latents=np.ones((BATCH, 8, 8, 4))), "nothing would be left of them"),
    (dict(init_latents=np.ones((1, 8, 8, 4)), region=BOX), "init_latents have shape"),
    (dict(init_latents=np.ones((BATCH, 8, 8, 4)), region=BOX[..., None]), "region has shape"),
    (dict(masks=[None]), "give one mask for each reference"),
    (dict(masks=[None, np.ones((1, 4, 4))]), "give one mask for each reference"),
    (dict(masks=[None, np.ones((BATCH, 1, 4, 4))]), "give one mask for each reference"),
    (dict(vision_scale={"upper": 1.0}), "names the block 'upper'"),
])
def test_mistakes_are_named(change, words):
    names = ("unet", "params", "noise", "positive", "negative", "target")
    arguments = dict(zip(names, small_case(), strict=True)) | OPTIONS | change
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: rc.sample_latents(**arguments))


@pytest.mark.parametrize("one", [1, *(pytest.param(one, marks=pytest.mark.slow) for one in (
    1.0, np.float32(1), jnp.float32(1), np.array(1.0)))])
def test_a_scale_of_one_needs_no_negative_lane(one):
    assert rc.Guidance().needed(one) is None
    assert rc.Guidance("none", 3.0).needed(one) is one, "the text may guide in a cascade"
    unet, params, noise, positive, negative, target = small_case()
    inputs = unet, params, noise, positive, None, target
    made = jax.eval_shape(lambda: rc.sample_latents(*inputs, **OPTIONS | dict(guidance_scale=one)).latents)
    alone = jax.eval_shape(lambda: rc.sample_text_only(*inputs[:5], solver=OPTIONS["solver"], guidance_scale=one))
    assert made.shape == alone.shape == noise.shape
    traced = jax.jit(lambda scale: rc.Guidance().needed(scale) is scale)
    assert traced(one), "a number that is not known may be another one"


@pytest.mark.slow
def test_masks_that_are_all_none_are_those_of_attention():
    assert_close(sample(*small_case(), masks=[None, None], **OPTIONS).latents, sample(*small_case(), **OPTIONS).latents,
                 1e-6)
