"""Whole pictures against diffusers' own pipelines, from the same files and the same noise.

A model whose visual values are zero makes what its base model makes: the reference is encoded and attended to, and adds
nothing. What is left must be diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline: tokenizer, text encoders,
size conditioning, guidance, solver, autoencoder. Needs torch and diffusers.
"""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.files import write_json
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.decoding import encode_pictures

from mini_bundle import SIDE, write_mini_bundle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimised")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

PROMPT, TARGET = "a dog and a cat on the beach", "dog"
REFERENCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
SCHEDULES = {
    "epsilon": {"prediction_type": "epsilon"},
    "v": {"prediction_type": "v_prediction"},
    "v from pure noise": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
# Both libraries return the last prediction of x_0: ours as released, diffusers' by a last step to no noise at all.
SCHEDULERS = {"ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
              "dpm_multi": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"})}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def folder(request, tmp_path_factory):
    """A model of random weights whose adapter adds nothing."""
    folder = write_mini_bundle(tmp_path_factory.mktemp(request.param), request.param)
    file = folder / "adapter" / "realcustom.safetensors"
    tensors = safetensors.numpy.load_file(file)
    silent = {name: value * (0 if ".to_v_vision." in name else 1) for name, value in tensors.items()}
    safetensors.numpy.save_file(silent, file)
    write_json(folder / "preset.json", {"pooled": "projected", "size_order": "height_first"})
    return folder


def part(cls, folder):
    """A network of diffusers from one of our folders, which names only what is not the default."""
    config = json.loads((folder / "config.json").read_text())
    if cls is diffusers.AutoencoderKL:
        levels = len(config["block_out_channels"])
        config |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    module = cls.from_config(config)
    (file,) = folder.glob("*.safetensors")
    module.load_state_dict({name: torch.from_numpy(x.astype(np.float32)) for name, x in
                            safetensors.numpy.load_file(file).items()})
    return module.eval()


def originals(folder, scheduler):
    """diffusers' pipeline of the folder's base model."""
    def text(name, cls):
        return cls.from_pretrained(folder / name, dtype=torch.float32).eval()

    parts = {
        "vae": part(diffusers.AutoencoderKL, folder / "vae"),
        "unet": part(diffusers.UNet2DConditionModel, folder / "unet"),
        "text_encoder": text("text_encoder", transformers.CLIPTextModel),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"), "scheduler": scheduler}
    if (folder / "text_encoder_2").is_dir():
        return diffusers.StableDiffusionXLPipeline(
            **parts, text_encoder_2=text("text_encoder_2", transformers.CLIPTextModelWithProjection),
            tokenizer_2=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer_2"), add_watermarker=False)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (2 * SIDE, SIDE)])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_pictures_are_those_of_diffusers(folder, solver, schedule, size):
    assert_equal(*both(folder, solver, schedule, size))


@pytest.mark.parametrize("negative", ["", "snow"])
def test_negative_prompts_are_those_of_diffusers(folder, negative):
    """None, above, is not the empty text: diffusers' SDXL reads zeros for it."""
    assert_equal(*both(folder, "ddim", "epsilon", (SIDE, SIDE), negative))


def assert_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("strength, inpaint", [(0.6, False), (1.0, True), (0.7, True)])
def test_pictures_that_begin_with_one_are_those_of_diffusers(folder, monkeypatch, solver, strength, inpaint):
    """Image to image and painting anew, from the same latents of the picture and the same noise."""
    pipe, pipeline = loaded(folder, solver, "epsilon")
    kind = "Inpaint" if inpaint else "Img2Img"
    cls = getattr(diffusers, type(pipe).__name__.replace("Pipeline", f"{kind}Pipeline"))
    pipe = cls(**{name: x for name, x in pipe.components.items() if name != "image_encoder"}, **(
        {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}))
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(2)
    picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:12, 6:16] = True  # as the pixels of the latents lie
    noise = rng.standard_normal((1, *pipeline.latent_shape())).astype(np.float32)
    made = pipeline(REFERENCE, PROMPT, TARGET, steps=8, guidance_scale=4.0, solver=solver, latents=noise,
                    init_image=picture, strength=strength, mask_image=mask if inpaint else None)
    begun = encode_pictures(pipeline.vae.module, pipeline.vae.params, from_uint8(np.asarray(picture)[None]))
    of_torch = {name: torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())
                for name, x in {"noise": noise, "begun": begun}.items()}
    given = {"image": of_torch["begun"], "strength": strength}
    if inpaint:
        given |= {"mask_image": Image.fromarray(mask), "masked_image_latents": of_torch["begun"], "width": SIDE,
                  "height": SIDE}
    monkeypatch.setattr(importlib.import_module(cls.__module__), "randn_tensor", lambda *_, **__: of_torch["noise"])
    with torch.no_grad():
        theirs = pipe(PROMPT, num_inference_steps=8, guidance_scale=4.0, output_type="latent", **given).images
    assert_equal(made.latents, theirs.numpy().transpose(0, 2, 3, 1))


def loaded(folder, solver, schedule):
    """(diffusers' pipeline, ours) of the folder with this solver's scheduler and a schedule of `SCHEDULES`."""
    name, options = SCHEDULERS[solver]
    scheduler = getattr(diffusers, name)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
        **SCHEDULES[schedule], **options)
    pipe = originals(folder, scheduler)
    pipe.set_progress_bar_config(disable=True)
    scheduler_config = dict(scheduler.config) | {"_class_name": name}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config)
    write_json(folder / "model_index.json", {
        "_class_name": type(pipe).__name__,
        "force_zeros_for_empty_prompt": pipe.config.get("force_zeros_for_empty_prompt", False)})
    pipeline = Pipeline.load(folder)
    if solver == "dpm_multi" and "rescale_betas_zero_snr" in SCHEDULES[schedule]:
        # There diffusers replaces the ᾱ of 0, whose logarithm its formulas take, by 2⁻²⁴. Ours go to the limit.
        levels = scheduler.alphas_cumprod.double().numpy()
        pipeline = dataclasses.replace(pipeline, betas=1 - levels / np.concatenate([[1], levels[:-1]]))
    return pipe, pipeline


def both(folder, solver, schedule, size, negative=None):
    """(our latents, diffusers' latents) [1, h, w, C] after 8 steps from the same noise."""
    pipe, pipeline = loaded(folder, solver, schedule)
    width, height = size
    noise = np.random.default_rng(1).standard_normal((1, *pipeline.latent_shape(width, height))).astype(np.float32)
    made = pipeline(REFERENCE, PROMPT, TARGET, width=width, height=height, steps=8, guidance_scale=4.0,
                    solver=solver, negative_prompt=negative, latents=noise, freeze_mask_step=4)
    with torch.no_grad():
        latents = pipe(PROMPT, negative_prompt=negative, width=width, height=height, num_inference_steps=8,
                      guidance_scale=4.0, latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)) * 1.0,
                      output_type="latent").images
        if size == (SIDE, SIDE):  # larger ones are decoded in tiles
            picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample[0].clamp(-1, 1)
            levels = ((picture + 1) * 127.5).numpy().transpose(1, 2, 0)
            np.testing.assert_allclose(np.asarray(made.images[0], np.float32), levels, atol=0.6)  # it is rounded
    return made.latents, latents.numpy().transpose(0, 2, 3, 1)
