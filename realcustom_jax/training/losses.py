"""The losses of all stages, as pure functions of predictions and targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from realcustom_jax.choices import check_choice
from realcustom_jax.sampling import solvers


def reconstruction_loss(images: jax.Array, decoded: jax.Array, mean: jax.Array, logvar: jax.Array, *,
                        kl_weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Autoencoder loss: L1 of pixels and of their finite differences (edges), and the KL divergence to N(0, 1).

    images, decoded [B,H,W,3] in [-1, 1]; mean, logvar [B,h,w,C]. KL as in latent diffusion (arXiv 2112.10752).
    """
    error = decoded - images
    pixels = jnp.abs(error).mean()
    edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    return pixels + edges + kl_weight * kl, {"pixels": pixels, "edges": edges, "kl": kl}


def sigmoid_contrastive_loss(a: jax.Array, b: jax.Array, positive: jax.Array, log_scale: jax.Array,
                             bias: jax.Array) -> jax.Array:
    """Pairwise sigmoid loss of SigLIP (arXiv 2303.15343, eq. 1), with any number of positives.

    a, b: embeddings [B,D] (normalised here); positive: [B,B] bool, which pairs match.
    """
    a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) for x in (a, b))
    logits = jnp.exp(log_scale) * a @ b.T + bias
    signs = jnp.where(positive, 1.0, -1.0)
    return -jax.nn.log_sigmoid(signs * logits).sum(axis=-1).mean()


def denoising_loss(predict: Callable[[jax.Array, jax.Array], jax.Array], latents: jax.Array, key: jax.Array, *,
                   betas: ArrayLike, prediction: str, coverage: jax.Array | None = None,
                   emphasis: float = 3.0, snr_limit: float | None = None,
                   teacher: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
                   teaching: float = 1.0) -> jax.Array:
    """Mean squared error of the predicted noise or velocity, at one timestep for each latent.

    The timesteps are T·sigmoid(n), n ~ N(0, 1) (arXiv 2403.03206, section 3.1: most are in the middle, where a picture
    takes shape), one in each of B equally likely strata, which makes the loss less noisy than independent draws.

    Args:
        predict: (noisy latents [B,h,w,C], timesteps int32 [B]) → prediction.
        latents: [B,h,w,C] of unit variance.
        prediction: "epsilon" | "v_prediction" (arXiv 2202.00512), which weighs high noise, and so layout, more.
        coverage: [B,h,w] in [0, 1], how much of each place the subjects fill. A place's error counts
            1 + emphasis · √ᾱ_t · coverage times: small subjects would drown in the noise of the background's error, but
            where noise hides the subject, more weight for it would only make the model see subjects everywhere.
        snr_limit: γ of the min-SNR weights (arXiv 2303.09556), min(SNR, γ)/SNR of the noise's error and
            min(SNR, γ)/(SNR + 1) of the velocity's; None weighs all timesteps alike.
        teacher: as `predict`, of a model that knows more; a share `teaching` of the target is what it predicts, which
            has none of a sample's noise, so that a student learns in far fewer steps.
    """
    check_choice("prediction", prediction, ("epsilon", "v_prediction"))
    noise_key, time_key = jax.random.split(key)
    batch, num_steps = len(latents), len(betas)
    latents = jnp.asarray(latents, jnp.float32)
    noise = jax.random.normal(noise_key, latents.shape)
    strata = (jnp.arange(batch) + jax.random.uniform(time_key, (batch,))) / batch
    t = jnp.clip(num_steps * jax.nn.sigmoid(jax.scipy.special.ndtri(strata)), 0, num_steps - 1).astype(jnp.int32)
    target = noise if prediction == "epsilon" else solvers.velocity(latents, noise, t, betas)
    noisy = solvers.add_noise(latents, noise, t, betas)
    if teacher is not None:
        target = (1 - teaching) * target + teaching * jax.lax.stop_gradient(teacher(noisy, t))
    predicted = predict(noisy, t)
    error = ((predicted.astype(jnp.float32) - target) ** 2).mean(axis=-1)
    snr = solvers.snr(betas)[t]
    if snr_limit is not None:
        limited = jnp.minimum(snr, snr_limit) / (snr if prediction == "epsilon" else snr + 1)
        error = limited[:, None, None] * error
    if coverage is None:
        return error.mean()
    weight = 1 + emphasis * jnp.sqrt(snr / (1 + snr))[:, None, None] * coverage
    return (weight * error).sum() / weight.sum()
