"""The autoencoder against diffusers' AutoencoderKL (golden)."""

import realcustom_jax as rc

from goldens import FIXTURES, assert_close, golden, nchw, nhwc


def test_encode_and_decode():
    data = golden("vae")
    module, params = rc.load_autoencoder(FIXTURES / "vae.json", FIXTURES / "vae.safetensors")
    latents = module.apply({"params": params}, nhwc(data["image"]), method="encode")
    assert_close(nchw(latents.mean), data["mean"])
    assert_close(nchw(latents.logvar), data["logvar"])
    images = module.apply({"params": params}, nhwc(data["latent"]), method="decode")
    assert_close(nchw(images), data["decoded"])
