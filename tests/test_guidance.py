import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.sampling.masks import SHARING, strongest_reference

from goldens import assert_close, golden, nchw, nhwc

MASKS, CFG = golden("masks"), golden("cfg")
MASK_CASES = [key for key in MASKS if key.startswith("mask")]
CFG_CASES = [key for key in CFG if "|" in key]
MODES = ("none", "none_direct", "naive", "naive_global", "naive_global_direct")


@functools.cache
def random_maps(batch=2, references=3):
    rng = np.random.default_rng(0)
    sizes = ((8, 12), (4, 6), (2, 3))
    return tuple(jnp.asarray(rng.random((batch, references, *size)), jnp.float32) for size in sizes)


def golden_maps():
    return [MASKS[key][:, None] for key in sorted(MASKS) if key.startswith("map_")]


@pytest.mark.parametrize("key", MASK_CASES)
def test_mask_golden(key):
    kind, modes, scope = key.split("|")
    modes = modes.split("+")
    (normalize,) = set(modes) & {"max_norm", "min_max_norm", "min_max_per_channel", "none"}
    ours = rc.subject_mask(
        golden_maps(),
        size=(8, 8),
        scope=float(scope),
        normalize=normalize,
        select="threshold" if "threshold" in modes else "topk",
        binary="binary" in modes,
        self_maps=None if kind == "mask" else [MASKS["self_0"]],
        normalize_self="min_max_per_channel" if kind == "maskselfnorm" else None,
    )
    assert_close(ours, MASKS[key], 1e-4)


@pytest.mark.parametrize("key", CFG_CASES)
def test_guidance_golden(key):
    mode, rescale = key.split("|")
    arrays = {name: nhwc(CFG[name]) for name in ("text", "text_image", "uncond", "mask")}
    ours = rc.classifier_free_guidance(
        **arrays, text_scale=7.5, image_scale=12.5, rescale=float(rescale), mode=mode
    )
    assert_close(nchw(ours), CFG[key], 1e-4)


@pytest.mark.parametrize("scope", [0.05, 0.2, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("normalize", ["max_norm", "min_max_norm", "min_max_per_channel", "none"])
def test_binary_topk_keeps_exactly_the_scope(scope, normalize):
    mask = rc.subject_mask(random_maps(), size=(8, 12), scope=scope, normalize=normalize, binary=True)
    assert mask.shape == (2, 3, 8, 12)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(mask.sum((2, 3)), int(8 * 12 * scope))


def test_equal_positions_are_kept_in_reading_order():
    mask = rc.subject_mask([jnp.ones((1, 1, 4, 4))], size=(4, 4), scope=0.3, binary=True)
    np.testing.assert_array_equal(mask.ravel(), [1] * 4 + [0] * 12)


def test_the_mask_lies_on_the_strongest_positions():
    values = np.zeros((1, 1, 4, 4), np.float32)
    values[0, 0, 1:3, 1:3] = [[2.0, 4.0], [6.0, 8.0]]
    mask = rc.subject_mask([values], size=(4, 4), scope=0.25)
    np.testing.assert_allclose(mask, values / 8, atol=1e-6)


@pytest.mark.slow
def test_references_are_independent_and_permute():
    maps = random_maps()
    order = jnp.array([2, 0, 1])
    mask = rc.subject_mask(maps, size=(4, 6))
    np.testing.assert_array_equal(rc.subject_mask([m[:, order] for m in maps], size=(4, 6)), mask[:, order])
    np.testing.assert_allclose(rc.subject_mask([m[:, 1:2] for m in maps], size=(4, 6)), mask[:, 1:2], atol=1e-6)
    np.testing.assert_allclose(rc.subject_mask([m[1:] for m in maps], size=(4, 6)), mask[1:], atol=1e-6)


@pytest.mark.parametrize("normalize", ["max_norm", "min_max_norm", "min_max_per_channel"])
def test_the_scale_of_the_maps_does_not_matter(normalize):
    maps = random_maps()
    np.testing.assert_allclose(
        rc.subject_mask([5.0 * m for m in maps], size=(8, 12), normalize=normalize),
        rc.subject_mask(maps, size=(8, 12), normalize=normalize),
        atol=1e-4,
    )


def test_identity_self_map_changes_nothing_and_a_uniform_one_erases_the_place():
    maps = random_maps(references=2)
    identity = jnp.tile(jnp.eye(24), (2, 1, 1, 1))
    uniform = jnp.full((2, 1, 24, 24), 1 / 24)
    plain = rc.subject_mask(maps, size=(4, 6))
    np.testing.assert_allclose(rc.subject_mask(maps, size=(4, 6), self_maps=[identity]), plain, atol=1e-5)
    flat = rc.subject_mask(maps, size=(4, 6), scope=1.0, self_maps=[uniform])
    np.testing.assert_allclose(flat, 1.0, atol=1e-4)


def test_self_maps_move_strength_along_their_rows():
    maps = np.zeros((1, 1, 2, 2), np.float32)
    maps[0, 0, 0, 0] = 1
    attends_to_first = np.zeros((1, 1, 4, 4), np.float32)
    attends_to_first[0, 0, 3, 0] = 1  # the last position looks only at the first
    mask = rc.subject_mask([maps], size=(2, 2), scope=0.25, binary=True, self_maps=[attends_to_first])
    np.testing.assert_array_equal(mask.ravel(), [0, 0, 0, 1])


@pytest.mark.parametrize("normalize_self", ["max_norm", "min_max_per_channel"])
def test_normalised_self_maps_forget_their_scale(normalize_self):
    maps = random_maps()
    self_maps = [np.random.default_rng(n).random((2, 2, n, n)) for n in (24, 6)]
    call = functools.partial(rc.subject_mask, maps, size=(4, 6), normalize_self=normalize_self)
    np.testing.assert_allclose(
        call(self_maps=[3 * m for m in self_maps]), call(self_maps=self_maps), rtol=1e-3, atol=1e-4
    )


def test_empty_self_maps_are_none():
    maps = random_maps()
    np.testing.assert_array_equal(
        rc.subject_mask(maps, size=(4, 6), self_maps=()), rc.subject_mask(maps, size=(4, 6), self_maps=None)
    )


def test_strongest_reference():
    strength = jnp.array([[[1.0, 5.0, 2.0], [3.0, 4.0, 2.0]]])
    np.testing.assert_array_equal(strongest_reference(strength), [[[0, 1, 1], [1, 0, 0]]])


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("select", "scope"), [("topk", 0.25), ("topk", 1.0), ("threshold", 0.7)])
def test_argmax_leaves_no_overlap(select, scope, binary):
    call = functools.partial(rc.subject_mask, random_maps(), size=(8, 12), normalize="min_max_norm")
    call = functools.partial(call, scope=scope, select=select, binary=binary)
    assert (np.asarray(call(overlap="sum")) > 0).sum(1).max() > 1
    mask = np.asarray(call(overlap="argmax"))
    assert (mask > 0).sum(1).max() == 1
    assert (mask > 0).any((2, 3)).all()


def test_argmax_gives_a_contested_position_to_the_stronger_and_lets_the_other_take_its_next_best():
    first = [[10.0, 9.0, 1.0, 1.0]]
    second = [[24.0, 6.0, 30.0, 9.0]]  # twice stronger at the first position, but not once normalised
    maps = [jnp.array([[first, second]])]
    kept = functools.partial(rc.subject_mask, maps, size=(1, 4), scope=0.5, binary=True)
    np.testing.assert_array_equal(kept(overlap="sum")[0, :, 0], [[1, 1, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(kept(overlap="argmax")[0, :, 0], [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_argmax_of_one_reference_is_the_plain_mask():
    maps = random_maps(references=1)
    np.testing.assert_array_equal(
        rc.subject_mask(maps, size=(8, 12), overlap="argmax"), rc.subject_mask(maps, size=(8, 12))
    )


def test_mask_under_jit_and_vmap():
    maps = random_maps()
    call = functools.partial(rc.subject_mask, size=(4, 6), overlap="argmax")
    expected = call(maps)
    np.testing.assert_allclose(jax.jit(call)(maps), expected, atol=1e-6)
    lanes = jax.vmap(call)(tuple(jnp.stack([m, 1 - m]) for m in maps))
    np.testing.assert_allclose(lanes[0], expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_scale_one_is_the_conditional_prediction(mode):
    text, text_image, uncond = np.random.default_rng(3).normal(size=(3, 2, 4, 4, 3))
    arrays = {"text": text, "text_image": text_image, "uncond": uncond, "mask": jnp.ones((2, 4, 4, 1))}
    ours = rc.classifier_free_guidance(**arrays, text_scale=1.0, image_scale=1.0, rescale=0.7, mode=mode)
    np.testing.assert_allclose(ours, text_image, atol=1e-5)


def test_full_rescale_restores_the_deviation_of_each_sample():
    text_image, uncond = np.random.default_rng(4).normal(size=(2, 3, 4, 4, 2))
    ours = rc.classifier_free_guidance(
        text=None, text_image=text_image, uncond=uncond, text_scale=0.0, image_scale=9.0, rescale=1.0
    )
    np.testing.assert_allclose(ours.std((1, 2, 3)), text_image.std((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_constant_predictions_do_not_give_nan(rescale):
    zeros = jnp.zeros((1, 2, 2, 1))
    ours = rc.classifier_free_guidance(
        text=zeros, text_image=zeros, uncond=zeros, text_scale=2.0, image_scale=2.0, rescale=rescale
    )
    np.testing.assert_array_equal(ours, zeros)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": 0.0}, "scope must be in \\(0, 1\\], got 0.0"),
        ({"scope": 1.5}, "got 1.5"),
        ({"scope": float("nan")}, "got nan"),
        ({"scope": 0.01}, "keeps none of 4 x 6 positions"),
        ({"normalize": "maxnorm"}, "did you mean 'max_norm'"),
        ({"select": "top"}, "known are topk, threshold"),
        ({"overlap": "max"}, "known are sum, argmax"),
        ({"normalize_self": "min_max_norm"}, "known are max_norm, min_max_per_channel"),
        ({"maps": ()}, "maps is empty"),
        ({"maps": np.zeros((2, 1, 8, 8))}, r"one array, of shape \(2, 1, 8, 8\); .* \[maps\] if there is one layer"),
        ({"self_maps": np.zeros((2, 1, 8, 8))}, r"\[self_maps\] if there is one layer"),
        ({"maps": (np.zeros((2, 8, 8)),)}, "B, R, h, w"),
        ({"maps": (np.zeros((2, 1, 8, 8)), np.zeros((2, 2, 4, 4)))}, "the same B and R"),
        ({"self_maps": (np.zeros((2, 1, 8, 4)),)}, "B, heads, n, n"),
    ],
)
def test_mask_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        rc.subject_mask(**{"maps": random_maps(), "size": (4, 6), **changes})


def test_a_traced_scope_is_refused():
    with pytest.raises(ValueError, match="scope decide how many places are kept.*static_argnames"):
        jax.jit(lambda scope: rc.subject_mask(random_maps(), size=(4, 6), scope=scope))(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "direct"}, "known are none, none_direct, naive"),
        ({"mode": "naive"}, "needs a mask"),
        ({"mode": "none", "text": None}, "text is None"),
    ],
)
def test_guidance_mistakes_are_named(changes, message):
    x = jnp.ones((1, 2, 2, 1))
    arguments = {"text": x, "text_image": x, "uncond": x, "text_scale": 1.0, "image_scale": 1.0}
    with pytest.raises(ValueError, match=message):
        rc.classifier_free_guidance(**{**arguments, **changes})


@pytest.mark.parametrize("way", SHARING)
def test_every_way_of_sharing_gives_each_place_to_one_reference(way):
    maps = [jax.random.uniform(jax.random.key(i), (2, 3, 4, 6)) for i in range(2)]
    self_maps = [jax.nn.softmax(jax.random.normal(jax.random.key(9), (2, 2, 24, 24)))]
    for refined in (None, self_maps):
        mask = rc.subject_mask(maps, size=(4, 6), scope=1.0, overlap=way, self_maps=refined)
        np.testing.assert_array_equal((np.asarray(mask) > 0).sum(1), 1)


def test_two_things_of_equal_size_share_the_picture_however_flat_a_map_is():
    """Each map is highest on its own half; the second is nearly flat and, normalised by its maximum, would win."""
    left = jnp.linspace(1, 0.05, 8)
    maps = [jnp.stack([jnp.tile(left, (8, 1)), 0.9 + 0.1 * jnp.tile(left[::-1], (8, 1))])[None]]
    shares = {way: (np.asarray(rc.subject_mask(maps, size=(8, 8), scope=1.0, overlap=way)) > 0).mean((0, 2, 3))
              for way in ("argmax", "argmax_mean", "split_first")}
    assert shares["argmax"].min() < 1 / 3
    assert shares["argmax_mean"].min() >= 1 / 3 and shares["split_first"].min() >= 1 / 3
