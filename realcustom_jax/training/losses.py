"""The losses of all stages, as pure functions of predictions and targets."""

import itertools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from realcustom_jax.errors import check_choice
from realcustom_jax.models.resize import average_pixels
from realcustom_jax.sampling import solvers


def reconstruction_loss(images: jax.Array, decoded: jax.Array, mean: jax.Array, logvar: jax.Array, *,
                        kl_weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Autoencoder loss: L1 of pixels and of their finite differences (edges), and the KL divergence to N(0, 1).

    images, decoded [B, H, W, 3] in [-1, 1]; mean, logvar [B, h, w, C]. KL as in latent diffusion (arXiv 2112.10752).
    """
    error = decoded - images
    pixels = jnp.abs(error).mean()
    edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    return pixels + edges + kl_weight * kl, {"pixels": pixels, "edges": edges, "kl": kl}


def sigmoid_contrastive_loss(a: jax.Array, b: jax.Array, positive: jax.Array, log_scale: jax.Array,
                             bias: jax.Array) -> jax.Array:
    """Pairwise sigmoid loss of SigLIP (arXiv 2303.15343, eq. 1), with any number of positives.

    a, b: embeddings [B, D] (normalised here); positive: [B, B] bool, which pairs match.
    """
    a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) for x in (a, b))
    logits = jnp.exp(log_scale) * a @ b.T + bias
    signs = jnp.where(positive, 1.0, -1.0)
    return -jax.nn.log_sigmoid(signs * logits).sum(axis=-1).mean()


@flax.struct.dataclass
class NoisyLatents:
    """What a denoiser is trained on: noisy latents [B, h, w, C], their timesteps t int32 [B], and the target
    [B, h, w, C] that it should predict."""

    noisy: jax.Array
    t: jax.Array
    target: jax.Array


def add_training_noise(latents: jax.Array, key: jax.Array, *, betas: ArrayLike, prediction: str,
                       timesteps: tuple[float, float] = (0.0, 1.0)) -> NoisyLatents:
    """Latents [B, h, w, C] of unit variance, each at a timestep of its own.

    The timesteps are T·sigmoid(n), n ~ N(m, s²) with m, s = `timesteps` (arXiv 2403.03206, section 3.1: most are in the
    middle, where a picture takes shape; a higher m moves them to where its layout does), one in each of B equally
    likely strata, which makes the loss less noisy than independent draws.

    prediction: "epsilon" | "v_prediction" (arXiv 2202.00512), which weighs high noise, and so layout, more.
    """
    check_choice("prediction", prediction, ("epsilon", "v_prediction"))
    noise_key, time_key = jax.random.split(key)
    batch, num_steps = len(latents), len(betas)
    latents = jnp.asarray(latents, jnp.float32)
    noise = jax.random.normal(noise_key, latents.shape)
    strata = (jnp.arange(batch) + jax.random.uniform(time_key, (batch,))) / batch
    normal = timesteps[0] + timesteps[1] * jax.scipy.special.ndtri(strata)
    t = jnp.clip(num_steps * jax.nn.sigmoid(normal), 0, num_steps - 1).astype(jnp.int32)
    target = noise if prediction == "epsilon" else solvers.velocity(latents, noise, t, betas)
    return NoisyLatents(solvers.add_noise(latents, noise, t, betas), t, target)


@flax.struct.dataclass
class Mean:
    """A mean that is put together from parts of batches and of steps: of `count` numbers with the sum `total`, float32
    scalars; of none where `count` is 0."""

    total: jax.Array
    count: jax.Array


def by_timestep(errors: jax.Array, t: jax.Array, num_steps: int) -> dict[str, Mean]:
    """The means of examples' errors [B] over each quarter of the timesteps: loss/t0-250 and so on, for timesteps t [B]
    below 1000."""
    ends = [round(num_steps * part / 4) for part in range(5)]
    found = {}
    for low, high in itertools.pairwise(ends):
        inside = (t >= low) & (t < high)
        # What is outside may be infinite, and 0 · ∞ is no number.
        found[f"loss/t{low}-{high}"] = Mean(jnp.where(inside, errors, 0).sum(), inside.sum().astype(jnp.float32))
    return found


def denoising_error(predicted: jax.Array, sample: NoisyLatents, *, betas: ArrayLike, prediction: str,
                    coverage: jax.Array | None = None, emphasis: float = 3.0,
                    snr_limit: float | None = None) -> tuple[jax.Array, dict[str, Mean]]:
    """Mean squared error of a prediction [B, h, w, C], a scalar; and, as it is weighed, `by_timestep`.

    Args:
        coverage: [B, h, w] in [0, 1], how much of each place the subjects fill. A place's error counts
            1 + emphasis · √ᾱ_t · coverage times: small subjects would drown in the noise of the background's error, but
            where noise hides the subject, more weight for it would only make the model see subjects everywhere.
        snr_limit: γ of the min-SNR weights (arXiv 2303.09556), min(SNR, γ)/SNR of the noise's error and
            min(SNR, γ)/(SNR + 1) of the velocity's; None weighs all timesteps alike.
    """
    error = ((predicted.astype(jnp.float32) - sample.target) ** 2).mean(axis=-1)
    snr = solvers.snr(betas)[sample.t]
    if snr_limit is not None:
        limited = jnp.minimum(snr, snr_limit) / (snr if prediction == "epsilon" else snr + 1)
        error = limited[:, None, None] * error
    if coverage is None:
        value, of_each = error.mean(), error.mean(axis=(1, 2))
    else:
        weight = 1 + emphasis * jnp.sqrt(snr / (1 + snr))[:, None, None] * coverage
        value = (weight * error).sum() / weight.sum()
        of_each = (weight * error).sum(axis=(1, 2)) / weight.sum(axis=(1, 2))
    return value, by_timestep(jax.lax.stop_gradient(of_each), sample.t, len(betas))


def denoising_loss(predict: Callable[[jax.Array, jax.Array], jax.Array], latents: jax.Array, key: jax.Array, *,
                   betas: ArrayLike, prediction: str,
                   teacher: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
                   teaching: float = 1.0, timesteps: tuple[float, float] = (0.0, 1.0),
                   **weights) -> tuple[jax.Array, dict[str, Mean]]:
    """`denoising_error` of `predict`, (noisy latents [B, h, w, C], timesteps int32 [B]) → prediction, on latents to
    which `add_training_noise` was added (`timesteps` are its); `weights` are the error's.

    teacher: as `predict`, of a model that knows more; a share `teaching` of the target is what it predicts, which has
    none of a sample's noise, so that a student learns in far fewer steps.
    """
    sample = add_training_noise(latents, key, betas=betas, prediction=prediction, timesteps=timesteps)
    if teacher is not None:
        told = jax.lax.stop_gradient(teacher(sample.noisy, sample.t))
        sample = sample.replace(target=(1 - teaching) * sample.target + teaching * told)
    return denoising_error(predict(sample.noisy, sample.t), sample, betas=betas, prediction=prediction, **weights)


def placement_loss(maps: Sequence[jax.Array], coverage: jax.Array, weight: jax.Array) -> jax.Array:
    """How far nouns' attention is from their things: −log of the share of a noun's map that lies inside its thing,
    the weighted mean over nouns, averaged over layers; a scalar.

    Args:
        maps: attention maps [B, R, h_l, w_l] of the layers.
        coverage: [B, R, P, P] in [0, 1], how much of each pixel the thing of each noun fills.
        weight: [B, R] ≥ 0, 0 where there is no thing.
    """
    total = jnp.maximum(weight.sum(), 1e-6)

    def of_layer(attention):
        attention = attention.astype(jnp.float32)
        inside = average_pixels(coverage, attention.shape[-2:])
        share = (attention * inside).sum((-2, -1)) / (attention.sum((-2, -1)) + 1e-9)
        return (-jnp.log(share + 1e-3) * weight).sum() / total

    return sum(map(of_layer, maps)) / len(maps)


def right_place(maps: Sequence[jax.Array], coverage: jax.Array) -> jax.Array:
    """Whether two nouns' maps tell *whose* place is whose: [B], ½ by chance.

    Of maps [B, 2, h_l, w_l], each with sum 1 and averaged over the layers of the most frequent size, the difference is
    compared between a place of the first thing and one of the second: the ROC area over all such pairs of places.

    coverage: [B, 2, P, P] of the two things.
    """
    sizes = [m.shape[-2:] for m in maps]
    h, w = max(set(sizes), key=sizes.count)
    mean = sum(m / (m.sum((-2, -1), keepdims=True) + 1e-9) for m in maps if m.shape[-2:] == (h, w))
    difference = (mean[:, 0] - mean[:, 1]).reshape(len(mean), -1)
    places = average_pixels(coverage, (h, w)).reshape(*coverage.shape[:2], -1)
    higher = (difference[:, :, None] > difference[:, None]) + 0.5 * (difference[:, :, None] == difference[:, None])
    pairs = places[:, 0, :, None] * places[:, 1, None]
    return (higher * pairs).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1e-9)
