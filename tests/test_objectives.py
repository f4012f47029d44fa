"""The losses as pure functions: what they are zero for, and what they weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.sampling.solvers import add_noise, betas
from realcustom_jax.training.losses import denoising_loss

BETAS = betas()
LATENTS = jax.random.normal(jax.random.key(0), (64, 4, 4, 2))
KEY = jax.random.key(1)


def loss(predict, **options):
    return float(denoising_loss(predict, LATENTS, KEY, **{"betas": BETAS, "prediction": "epsilon"} | options))


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
        noise_of, LATENTS, KEY, betas=BETAS, prediction="epsilon", teacher=lambda noisy, t: noise_of(noisy, t) + shift))
    assert gradient(1.0) == 0, "the teacher learns nothing"
