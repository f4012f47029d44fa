"""The public pure functions under JAX's transformations: jit, vmap, grad and eval_shape."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.sampling.guidance import MODES

from goldens import FIXTURES
from test_sampling import OPTIONS, small_case

pytestmark = pytest.mark.usefixtures("quickly_compiled")
RNG = np.random.default_rng(0)


def uniform(*shape) -> np.ndarray:
    return RNG.uniform(0.1, 1, size=shape).astype(np.float32)


def denoise(x, t):
    """A prediction that depends on the latent and the time, smoothly."""
    return jnp.tanh(x) * (0.5 + t / 2000)


def integrated(name, x):
    solver = rc.make_solver(name, steps=4)
    noise = jnp.ones((4, *x.shape)) if name in ("lcm", "euler_ancestral") else None
    return rc.integrate(denoise, x, solver, noise=noise)


SELF_MAPS = uniform(1, 2, 16, 16)
GUIDANCE = functools.partial(rc.classifier_free_guidance, text_scale=2.0, image_scale=3.5, rescale=0.3)
OTHER, THIRD, MASK = uniform(1, 4, 4, 3), uniform(1, 4, 4, 3), uniform(1, 4, 4, 1)

# Each a function of one array, and the array.
FUNCTIONS = {
    "subject_mask": (lambda x: rc.subject_mask((x, x[..., ::2, ::2]), size=(4, 4)), uniform(1, 2, 8, 8)),
    "subject_mask, threshold": (
        lambda x: rc.subject_mask((x,), size=(4, 4), select="threshold", scope=0.6), uniform(1, 2, 8, 8)),
    "subject_mask, refined": (
        lambda x: rc.subject_mask((x,), size=(4, 4), self_maps=(SELF_MAPS,), normalize="min_max_norm"),
        uniform(1, 2, 8, 8)),
    "prepare_reference": (
        lambda x: rc.prepare_reference(x, size=8, encoder_size=4, quantize=False), uniform(1, 6, 5, 3)),
    "prepare_reference, tiles": (
        lambda x: rc.prepare_reference(x, size=8, encoder_size=4, quantize=False, local="tiles"), uniform(1, 6, 5, 3)),
} | {
    f"classifier_free_guidance, {mode}": (
        lambda x, mode=mode: GUIDANCE(text=OTHER, text_image=x, uncond=THIRD, mode=mode, mask=MASK),
        uniform(1, 4, 4, 3)) for mode in MODES
} | {
    f"integrate, {name}": (functools.partial(integrated, name), uniform(1, 4, 4, 3))
    for name in ("dpm_single", "dpm_multi", "ddim", "euler", "euler_ancestral", "lcm")
}


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def assert_transforms(function, x, *, tolerance=3e-2):
    """vmap gives the function's own values, eval_shape its shapes, and the gradient predicts its change."""
    function = jax.jit(function)
    value = function(x)
    shapes = jax.eval_shape(function, x)
    assert [(s.shape, s.dtype) for s in jax.tree.leaves(shapes)] == [(v.shape, v.dtype) for v in jax.tree.leaves(value)]

    two = np.stack([x, x[..., ::-1]])
    together = jax.jit(jax.vmap(function))(two)
    for i, part in enumerate(two):
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda v, i=i: v[i], together)), flat(function(part)), rtol=1e-4, atol=1e-5)

    weights = np.random.default_rng(1).normal(size=flat(value).shape)

    @jax.jit
    def loss(x):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(function(x))]) @ weights

    gradient = jax.jit(jax.grad(loss))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    along, step = gradient / np.linalg.norm(gradient), 1e-3
    measured = (loss(x + step * along) - loss(x - step * along)) / (2 * step)
    np.testing.assert_allclose(measured, np.linalg.norm(gradient), rtol=tolerance)


# One of each kind is quick.
QUICK = "subject_mask", "prepare_reference", "classifier_free_guidance, naive_global_direct", "integrate, dpm_single"


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS])
def test_functions_of_arrays(name):
    function, x = FUNCTIONS[name]
    assert_transforms(function, x)
    np.testing.assert_allclose(flat(function(x)), flat(jax.jit(function)(x)), rtol=1e-4, atol=1e-5)


def test_tables_can_be_made_within_a_traced_function():
    @jax.jit
    def noisy(x):
        solver = rc.make_solver("dpm_multi", steps=3, betas=rc.betas("cosine"))
        return rc.integrate(denoise, x, solver)[1]

    x = uniform(1, 4, 4, 3)
    solver = rc.make_solver("dpm_multi", steps=3, betas=rc.betas("cosine"))
    np.testing.assert_allclose(noisy(x), rc.integrate(denoise, x, solver)[1], rtol=1e-4)


def test_a_solver_is_an_argument_of_a_traced_function():
    """So that another number of steps is another shape, and another table of the same length no new program."""
    run = jax.jit(lambda x, solver: rc.integrate(denoise, x, solver)[1])
    x = uniform(1, 4, 4, 3)
    for name in ("ddim", "euler"):
        solver = rc.make_solver(name, steps=4)
        np.testing.assert_allclose(run(x, solver), rc.integrate(denoise, x, solver)[1], rtol=1e-4)


@pytest.mark.slow
def test_the_sampler_as_a_function_of_the_noise():
    """The masks are a selection of the strongest places, so that only a small step keeps to what the gradient says."""
    unet, params, noise, positive, negative, target = small_case()
    options = OPTIONS | {"solver": rc.make_solver(steps=2), "freeze_mask_step": 1}

    def sampled(noise):
        return rc.sample_latents(unet, params, noise, positive, negative, target, **options).latents

    assert_transforms(sampled, noise, tolerance=0.1)


@pytest.mark.slow
def test_the_sampler_as_a_function_of_the_vision_tokens():
    unet, params, noise, positive, negative, target = small_case()
    options = OPTIONS | {"solver": rc.make_solver(steps=2), "freeze_mask_step": 1, "branches": "sequential"}

    def sampled(vision):
        given = rc.Conditioning(positive.text, vision=vision)
        return rc.sample_latents(unet, params, noise, given, negative, target, **options).latents

    assert_transforms(sampled, positive.vision, tolerance=0.1)


@pytest.mark.slow
def test_text_alone_as_a_function_of_the_text():
    unet, params, noise, positive, negative, _ = small_case()

    def sampled(text):
        return rc.sample_text_only(
            unet, params, noise, rc.Conditioning(text), rc.Conditioning(negative.text), solver=rc.make_solver(steps=2))

    assert_transforms(sampled, positive.text, tolerance=0.1)


def network(load, name: str, **options):
    """A loaded network as a function of (parameters, inputs …)."""
    module, params = load(FIXTURES / f"{name}.json", FIXTURES / f"{name}.safetensors")

    def apply(changed, *inputs, **more):
        return module.apply({"params": params | changed}, *inputs, **options, **more)

    return apply, params


@pytest.mark.slow
def test_the_image_networks():
    """Through the loaders, on the tests' small weights."""
    unet, params, noise, positive, _, _ = small_case()
    assert_transforms(lambda x: unet.apply({"params": params}, x, 500, positive.text).noise, noise)
    vae, _ = network(rc.load_autoencoder, "vae")
    assert_transforms(lambda x: vae({}, x, method="encode").mean, uniform(1, 16, 16, 3))
    assert_transforms(lambda x: vae({}, x, method="decode"), uniform(1, 4, 4, 4))
    vision, _ = network(rc.load_vision_encoder, "vit_siglip", layers=(0, 1))
    side = json.loads((FIXTURES / "vit_siglip.json").read_text())["img_size"]
    assert_transforms(lambda x: vision({}, x), uniform(1, *np.broadcast_to(side, 2), 3))


@pytest.mark.slow
def test_the_text_encoder_and_the_projector():
    text, params = network(rc.load_text_encoder, "clip_text_quickgelu")
    ids = np.arange(10)[None]

    known = params["text_model"]

    def encoded(table):
        embeddings = known["embeddings"] | {"token_embedding": {"embedding": table}}
        return text({"text_model": known | {"embeddings": embeddings}}, ids).last

    assert_transforms(encoded, known["embeddings"]["token_embedding"]["embedding"])
    projector, _ = network(rc.load_projector, "unet_sdxl")
    width = json.loads((FIXTURES / "unet_sdxl.json").read_text())[
        "image_prompt_settings"]["vision_projection_config"]["params"]["vision_dim"]
    local = uniform(1, 16, width)
    assert_transforms(lambda deep: projector({}, (deep, local)), uniform(1, 4, width))
