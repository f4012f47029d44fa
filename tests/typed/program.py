"""A user's program of the public face, for a type checker (tests/test_types.py); it is not run.

A line with an `ignore` is a mistake that the checker must find: with --warn-unused-ignores, an unfound one is an error.
"""

from pathlib import Path
from typing import cast

import jax
import numpy as np
from PIL import Image
from transformers import CLIPTokenizer

import realcustom_jax as rc


def pictures(photo: Image.Image, array: np.ndarray) -> list[Image.Image]:
    pipeline = rc.Pipeline.load("mini", loras=[("style.safetensors", 0.8), Path("hat.safetensors")], dtype="bfloat16")
    result: rc.Result = pipeline(photo, "a dog on the beach", "dog", seed=1, num_images=2, guidance_scale=None)
    more = pipeline([Path("dog.png"), array], "a dog and a car", ["dog", "car"], masks=[(0, 0, 64, 64), None],
                    vision_scale=[1.0, 0.5], solver="euler", steps=8, on_step=lambda step: print(step + 1))
    pipeline(b"bytes of a file", "a dog", "dog", init_image=photo, mask_image=array, strength=0.5)
    pipeline(photo, "a dog", "dog", seeds=3)  # type: ignore[call-arg]
    pipeline(photo, "a dog", 7)  # type: ignore[arg-type]
    masks: np.ndarray = more.masks
    print(masks.shape, result.latents.shape)
    return result.images


def loop(noise: jax.Array, text: np.ndarray, marks: np.ndarray) -> jax.Array:
    unet, params = rc.load_unet({"sample_size": 8}, "unet.safetensors", Path("adapter.safetensors"))
    projector, projector_params = rc.load_projector("config.json", "adapter.safetensors")
    tokens = cast(jax.Array, projector.apply({"params": projector_params}, (text, text)))
    positive = rc.Conditioning(text, vision=tokens)
    solver = rc.make_solver("dpm_multi", steps=8, betas=rc.betas("cosine"))
    made = rc.sample_latents(
        unet, params, noise, positive, None, marks, solver=solver, guidance_scale=None,
        mask=rc.MaskConfig(scope=0.2, binary=True), vision_scale={"up": 0.5})
    rc.sample_latents(unet, params, noise, positive, None, marks, solver="ddim")  # type: ignore[arg-type]
    alone = rc.sample_text_only(unet, params, noise, positive, None, solver=solver, guidance_scale=None)
    return made.latents + alone


def functions(maps: list[jax.Array], images: np.ndarray, tokenizer: CLIPTokenizer) -> jax.Array:
    marks: np.ndarray = rc.target_tokens(tokenizer, "a dog on the beach", "dog")
    whole, local = rc.prepare_reference(images, size=768, encoder_size=384)
    mask = rc.subject_mask(maps, size=(8, 8), scope=0.25, self_maps=None)
    rc.subject_mask(maps, size=8)  # type: ignore[arg-type]
    guided = rc.classifier_free_guidance(
        text=None, text_image=whole, uncond=local, text_scale=1.0, image_scale=3.5, mode="none_direct")
    x, x0 = rc.integrate(lambda x, t: x * t, guided, rc.make_solver(steps=4), noise=None)
    schedule: np.ndarray = rc.betas()
    print(marks, mask, schedule)
    return x - x0


def networks() -> None:
    vae, vae_params = rc.load_autoencoder("vae.json", "vae.safetensors")
    text, text_params = rc.load_text_encoder("text.json", "text.safetensors", loras=[("style.safetensors", 1.0)],
                                             prefix="te1")
    vision, vision_params = rc.load_vision_encoder("vit.json", "vit.safetensors", positions="dinov2")
    clip, clip_params = rc.load_clip_vision("clip/config.json", "clip/model.safetensors")
    print(clip, clip_params)
    print(vae, vae_params, text, text_params, vision, vision_params, rc.Preset(scope=0.2), rc.Guidance(mode="naive"))
