"""The losses as pure functions: what they are zero for, and what they weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.sampling.solvers import add_noise, betas
from realcustom_jax.training.losses import (
    add_training_noise,
    denoising_error,
    denoising_loss,
    placement_loss,
    right_place,
)

BETAS = betas()
LATENTS = jax.random.normal(jax.random.key(0), (64, 4, 4, 2))
KEY = jax.random.key(1)


def loss(predict, **options):
    return float(denoising_loss(predict, LATENTS, KEY, **{"betas": BETAS, "prediction": "epsilon"} | options)[0])


def noise_of(noisy, t):
    alpha, sigma = (add_noise(*x, t, BETAS) for x in ((jnp.ones_like(noisy), 0.0), (jnp.zeros_like(noisy), 1.0)))
    return (noisy - alpha * LATENTS) / sigma


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_right_prediction_has_no_loss(prediction):
    def predict(noisy, t):
        noise = noise_of(noisy, t)
        return noise if prediction == "epsilon" else add_noise(noise, -LATENTS, t, BETAS)

    assert loss(predict, prediction=prediction) < 1e-6
    assert loss(lambda noisy, t: predict(noisy, t) + 1, prediction=prediction) == pytest.approx(1, abs=1e-3)


def test_timesteps_are_everywhere_and_mostly_in_the_middle():
    seen = []
    loss(lambda noisy, t: seen.append(t) or noisy)
    t = np.sort(seen[0])
    assert t[0] < 150 and t[-1] > 850
    assert ((t > 250) & (t < 750)).sum() > 0.6 * len(t)


def test_an_error_on_the_subject_counts_more_the_less_noise_hides_it():
    coverage = jnp.zeros((64, 4, 4)).at[:, :2].set(1)
    on_subject, beside = (lambda noisy, t, part=part: noise_of(noisy, t) + part[..., None]
                          for part in (coverage, 1 - coverage))
    assert loss(on_subject) == pytest.approx(loss(beside), abs=1e-5)
    ratio = loss(on_subject, coverage=coverage, emphasis=3.0) / loss(beside, coverage=coverage, emphasis=3.0)
    assert 2 < ratio < 4
    nothing = loss(on_subject, coverage=jnp.zeros_like(coverage))
    assert nothing == pytest.approx(loss(on_subject), abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_by_the_timestep(prediction):
    """Of an error of 1 everywhere, the loss is the mean of the weights."""
    seen = []

    def off_by_one(noisy, t):
        seen.append(np.asarray(t))
        noise = noise_of(noisy, t)
        return 1 + (noise if prediction == "epsilon" else add_noise(noise, -LATENTS, t, BETAS))

    value = loss(off_by_one, prediction=prediction, snr_limit=0.5)
    alphas = np.cumprod(1 - np.asarray(BETAS, np.float64))[seen[0]]
    ratio = alphas / (1 - alphas)
    expected = np.minimum(ratio, 0.5) / (ratio if prediction == "epsilon" else ratio + 1)
    assert value == pytest.approx(expected.mean(), rel=1e-3) and value < 0.9


def test_a_teacher_takes_its_share_of_the_target():
    """Of a target that is 1 off in the share that a teacher gives, that share is what the right answer misses by."""
    def taught(teaching):
        return loss(noise_of, teacher=lambda noisy, t: noise_of(noisy, t) + 1, teaching=teaching)

    assert taught(0.0) < 1e-6 and taught(0.5) == pytest.approx(0.25, abs=1e-3)
    assert loss(noise_of, teacher=noise_of, teaching=1.0) < 1e-6
    gradient = jax.grad(lambda shift: denoising_loss(
        noise_of, LATENTS, KEY, betas=BETAS, prediction="epsilon", teacher=lambda noisy, t: noise_of(noisy, t) + shift),
        has_aux=True)
    assert gradient(1.0)[0] == 0, "the teacher learns nothing"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_error_of_a_noisy_sample_is_the_loss(prediction):
    """What two stages share: noise first, then the error; with the timesteps of either."""
    coverage = jax.random.uniform(jax.random.key(2), LATENTS.shape[:3])
    for timesteps in ((0.0, 1.0), (0.3, 1.25)):
        sample = add_training_noise(LATENTS, KEY, betas=BETAS, prediction=prediction, timesteps=timesteps)
        error, _ = denoising_error(0.5 * sample.noisy, sample, betas=BETAS, prediction=prediction, coverage=coverage)
        whole = loss(lambda noisy, t: 0.5 * noisy, prediction=prediction, coverage=coverage, timesteps=timesteps)
        assert float(error) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("options, number", [
    ({}, 0.470297247), ({"coverage": None}, 0.441281885), ({"prediction": "v_prediction"}, 1.224172115),
    ({"prediction": "v_prediction", "snr_limit": 5.0}, 0.428581059),
])
def test_the_numbers_are_those_of_the_loss_before_it_was_two(options, number):
    coverage = jax.random.uniform(jax.random.key(2), LATENTS.shape[:3])
    assert loss(lambda noisy, t: 0.5 * noisy, **{"coverage": coverage} | options) == pytest.approx(number, rel=1e-4)


def test_more_noise_is_asked_for_by_the_timesteps():
    middle, high = (add_training_noise(LATENTS, KEY, betas=BETAS, prediction="epsilon", timesteps=t).t.mean()
                    for t in ((0.0, 1.0), (1.0, 1.0)))
    assert 450 < middle < 550 and high > 650


# -------------------- where nouns look


LEFT = np.zeros((1, 1, 8, 8), np.float32)
LEFT[..., :4] = 1
HALVES = np.concatenate([LEFT, 1 - LEFT], axis=1)


def test_attention_inside_its_thing_has_no_placement_loss():
    inside = [HALVES[:, :, ::2, ::2], HALVES[:, :, ::4, ::4]]
    weight = np.ones((1, 2))
    assert placement_loss(inside, HALVES, weight) == pytest.approx(0, abs=2e-3)
    assert placement_loss([0.1 * x for x in inside], HALVES, weight) == pytest.approx(0, abs=2e-3), "shares count"
    everywhere = [np.ones((1, 2, 4, 4), np.float32)]
    assert placement_loss(everywhere, HALVES, weight) == pytest.approx(np.log(2), abs=3e-3)
    assert placement_loss([x[:, ::-1] for x in inside], HALVES, weight) == pytest.approx(-np.log(1e-3), abs=1e-2)


def test_only_nouns_with_a_thing_are_placed():
    maps = [np.concatenate([HALVES[:, :1], np.ones((1, 1, 8, 8))], axis=1)]
    assert placement_loss(maps, HALVES, np.array([[1, 0]])) == pytest.approx(0, abs=2e-3)
    assert placement_loss(maps, HALVES, np.array([[0, 1]])) == pytest.approx(np.log(2), abs=3e-3)
    assert placement_loss(maps, HALVES, np.array([[3, 1]])) == pytest.approx(np.log(2) / 4, abs=3e-3)
    assert placement_loss(maps, HALVES, np.zeros((1, 2))) == 0
    assert placement_loss(maps, 0 * HALVES, np.ones((1, 2))) == pytest.approx(-np.log(1e-3), abs=1e-2)


def test_the_right_place_is_known_by_the_difference_of_the_maps():
    maps = HALVES[:, :, ::2, ::2]
    assert right_place([maps], HALVES) == 1 and right_place([maps[:, ::-1]], HALVES) == 0
    assert right_place([np.ones((1, 2, 4, 4))], HALVES) == 0.5
    assert right_place([maps + 5 * np.ones((1, 2, 4, 4))], HALVES) == 1, "what both see alike does not count"
    # Of two places of each thing, one of the first's is as low as the second's best: 3 of 4 pairs and half of one.
    coverage = np.array([[[[1, 1, 0, 0]], [[0, 0, 1, 1]]]], np.float32)
    difference = np.array([[[[3, 1, 1, 0]], [[0, 0, 0, 0]]]], np.float32) + 1
    difference /= difference.sum((-2, -1), keepdims=True)
    assert right_place([difference], coverage) == pytest.approx(0.875)


def test_the_right_place_is_read_from_the_most_frequent_size_and_each_picture_has_its_own():
    good, bad = HALVES[:, :, ::2, ::2], HALVES[:, ::-1]
    assert right_place([good, bad, good], HALVES) == 1
    both = [np.concatenate([good, good[:, ::-1]])] * 2
    np.testing.assert_allclose(right_place(both, np.concatenate([HALVES, HALVES])), [1, 0])
    np.testing.assert_allclose(right_place(both, 0 * np.concatenate([HALVES, HALVES])), 0)
