"""The losses of all stages, as pure functions of predictions and targets."""

import jax
import jax.numpy as jnp


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


def denoising_loss(noise: jax.Array, predicted: jax.Array, snr: jax.Array, *, gamma: float | None) -> jax.Array:
    """Noise-prediction MSE; with `gamma`, weighted by min(SNR, γ) / SNR (min-SNR-γ, arXiv 2303.09556).

    noise, predicted [B,h,w,C]; snr [B] of the sampled timesteps.
    """
    error = ((noise.astype(jnp.float32) - predicted.astype(jnp.float32)) ** 2).mean(axis=(1, 2, 3))
    if gamma is not None:
        error = error * jnp.minimum(snr, gamma) / snr
    return error.mean()
