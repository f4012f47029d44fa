"""Trains the adapter of a published model (SD-1.5, SDXL; the miniature too) on your own pictures.

The model's parts are frozen, in `dtype`; latents, texts and image features are computed within the step. The run's
folder gets `data/` (the pictures as a dataset), `fresh/adapter/` (what a new adapter begins with), the loop's
checkpoints, metrics and samples, and at the end `adapter/`, for `sample.py --adapter`.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from realcustom_jax import bundle, sharding, weights
from realcustom_jax.adapter import find_adapter, merge_unet, split_unet, vision_from_text_tensors
from realcustom_jax.adapter import to_torch as adapter_tensors
from realcustom_jax.choices import check_choice
from realcustom_jax.compilation import enable_compilation_cache
from realcustom_jax.curriculum import Curriculum
from realcustom_jax.data import folder
from realcustom_jax.data.bucketed import BucketBatches
from realcustom_jax.images import VisionSettings, from_uint8, grid, reference_features
from realcustom_jax.locate import local_model
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.pipeline import ASSETS, DTYPES, Network, Pipeline, text_states
from realcustom_jax.processes import by_the_first
from realcustom_jax.stages.backbone import BackboneLoss
from realcustom_jax.tensors import read_files
from realcustom_jax.text import encode_prompt
from realcustom_jax.training import TrainSettings, fit

_PREVIEWS = 4


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.train` (see configs/sdxl.py) in `workdir`; the same command resumes.

    Raises FileNotFoundError, ValueError: the pictures, the model or the settings cannot be used; names which.
    """
    enable_compilation_cache()
    train = config.train
    check_choice("dtype", train.dtype, DTYPES[:2])
    if not train.data.folder:
        raise ValueError("config.train.data.folder is empty: the folder of your pictures and their manifest.jsonl, "
                         "see docs/scale.md.")
    settings = TrainSettings(on_existing=train.on_existing, **train.optimization)
    mesh = sharding.make_mesh(**train.mesh)
    sizes = {"side": train.side, "reference_side": train.fresh.vision_settings.size}
    by_the_first(lambda: folder.write(data_dir=workdir / "data", **sizes, **train.data))
    data = folder.write(data_dir=workdir / "data", **sizes, **train.data)
    start = Path(train.adapter) if train.adapter else workdir / "fresh" / "adapter"
    if not train.adapter:
        by_the_first(lambda: write_fresh_adapter(train.model, train.vision, train.fresh.to_dict(), start))
    # The parts lie in the host's memory until `fit` shares them out: no single chip has to hold all of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if _has_cpu() else contextlib.nullcontext():
        pipeline = Pipeline.load(train.model, start, vision=train.vision or None, tokenizer=train.tokenizer or None,
                                 preset=train.preset.to_dict(), dtype=train.dtype, offload=True)
    batches = BucketBatches(data, batch_size=settings.batch_size, seed=settings.seed, steps=settings.steps,
                            curriculum=Curriculum(**train.curriculum))
    task = PublishedTask(pipeline, batches, snr_limit=train.snr_limit or None)
    params = fit("adapter", task, settings, workdir, mesh=mesh)
    given = find_adapter(start)
    adapter = {"image_prompt_settings": given.settings, "vision_settings": dataclasses.asdict(given.vision)}
    tensors = bundle.to_half(adapter_tensors(params["projector"], params["vision"]))
    by_the_first(lambda: bundle.save_part(workdir, "adapter", adapter, tensors))


def write_fresh_adapter(model: str, vision: str, settings: Mapping[str, Any], path: Path) -> None:
    """Writes what an adapter begins with to `path`, a folder named adapter, unless it is there: a random projector, and
    visual keys and values that are copies of the text's.

    settings: `variant`, `dim_head` and `vision_settings`; the widths are those of the model and of its image encoders.
    """
    if (path / "config.json").is_file():
        return
    base = ASSETS / "mini" if model == "mini" else local_model(model)
    encoders = local_model(vision) if vision else base
    config, *files = bundle.part_files(base, "unet")
    widths = [weights.read_config(bundle.part_files(encoders, f"image_encoder_{name}")[0])["embed_dim"]
              for name in ("siglip", "dinov2")]
    params = {"vision_dim": sum(widths), "out_dim": weights.read_config(config)["cross_attention_dim"],
              "dim_head": settings["dim_head"]}
    image_prompt = {"vision_projection_type": "custom", "image_prompt_mode": "naive",
                    "vision_projection_config": {"variant": settings["variant"], "params": params}}
    vision_settings = VisionSettings.from_config(settings["vision_settings"])
    module = Projector(ProjectorConfig.from_config(image_prompt))
    one = jnp.zeros((1, 1, sum(widths)))
    features = (one,) * (2 if settings["variant"] == "highres" else len(vision_settings.siglip_layers) + 1)
    projector = jax.jit(module.init)(jax.random.key(0), features)["params"]
    unet = read_files(files) if isinstance(files[0], Path) else files[0]
    bundle.save_part(path.parent, "adapter", {
        "image_prompt_settings": image_prompt, "vision_settings": dataclasses.asdict(vision_settings),
    }, vision_from_text_tensors(unet) | weights.to_torch(jax.device_get(projector), weights.PROJECTOR_PREFIX))


class PublishedTask:
    """The task of `training.fit`: {"projector", "vision"} of a pipeline, everything else frozen; see `BackboneLoss`.

    Conditions are dropped, for classifier-free guidance, before they are encoded, as often as `BackboneLoss` says.
    """

    def __init__(self, pipeline: Pipeline, batches: BucketBatches, snr_limit: float | None = None):
        self._pipeline, self._batches = pipeline, batches
        vision, base = split_unet(pipeline.unet.params)
        self._fresh = jax.tree.map(lambda x: np.asarray(x, np.float32),
                                   {"projector": pipeline.projector.params, "vision": vision})
        self.frozen = {
            "unet": base, "vae": pipeline.vae.params, "siglip": pipeline.siglip.params, "dinov2": pipeline.dino.params,
            "text_encoders": tuple(encoder.network.params for encoder in pipeline.text_encoders)}
        self._loss = BackboneLoss(pipeline.unet.module, pipeline.projector.module, pipeline.prediction,
                                  snr_limit=snr_limit, betas=pipeline.betas)

    def init(self, key):
        return self._fresh

    def batch(self, step):
        """Pictures uint8, token ids [encoders,B,T] and size conditioning [B,6] as the preset orders it."""
        batch = self._batches[step]
        size = np.broadcast_to(np.array(batch["target"].shape[1:3]), (len(batch["target"]), 2))
        sizes = [batch["original_size"], batch["crop_top_left"], size]
        if self._pipeline.preset.size_order == "width_first":
            sizes = [pair[:, ::-1] for pair in sizes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long captions are cut in every epoch again
            ids = [encode_prompt(encoder.tokenizer, batch["caption"]) for encoder in self._pipeline.text_encoders]
            empty = [encode_prompt(encoder.tokenizer, "", allow_empty=True) for encoder in self._pipeline.text_encoders]
        return {"target": batch["target"], "reference": batch["reference"], "ids": np.stack(ids, axis=1),
                "empty_ids": np.stack([np.broadcast_to(e, i.shape) for e, i in zip(empty, ids, strict=True)], axis=1),
                "time_ids": np.concatenate(sizes, axis=1).astype(np.float32)}

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        size = len(batch["target"])
        no_text = jax.random.bernoulli(text_key, self._loss.text_dropout, (size, 1, 1))
        no_image = jax.random.bernoulli(image_key, self._loss.image_dropout, (size, 1, 1, 1))
        pipeline = self._pipeline

        ids = jnp.where(no_text, batch["empty_ids"], batch["ids"])
        outputs = [encoder.network.module.apply({"params": own}, ids[:, i]) for i, (encoder, own) in enumerate(
            zip(pipeline.text_encoders, frozen["text_encoders"], strict=True))]
        text, pooled = text_states(outputs, pipeline.unet.module.config, pipeline.preset.pooled)
        features = reference_features(
            pipeline.siglip.module, frozen["siglip"], pipeline.dino.module, frozen["dinov2"],
            jnp.where(no_image, 0.0, batch["reference"] / 255.0), pipeline.vision_settings)
        vae = pipeline.vae.module
        found = vae.apply({"params": frozen["vae"]}, from_uint8(batch["target"]), method="encode")
        noise = jax.random.normal(latents_key, found.mean.shape)
        latents = (found.mean + jnp.exp(0.5 * found.logvar) * noise) * vae.config.scaling_factor
        known = {"latents": latents, "text": text, "features": features}
        if pooled is not None:
            known |= {"pooled": pooled, "time_ids": batch["time_ids"]}
        known = jax.lax.stop_gradient(known)
        return self._loss.denoising(params, frozen["unet"], known, noise_key), {}

    def preview(self, params) -> Image.Image:
        """References (above) and what is made of them (below) with the captions of the first batch."""
        pipeline = dataclasses.replace(
            self._pipeline, vocabulary=None,
            unet=Network(self._pipeline.unet.module, merge_unet(params["vision"], self.frozen["unet"])),
            projector=Network(self._pipeline.projector.module, params["projector"]))
        batch = self._batches[0]
        made, references = [], []
        side = pipeline.picture_size(None, None)[0]
        for picture, caption, word in zip(batch["reference"], batch["caption"], batch["word"], strict=True):
            if len(made) == _PREVIEWS:
                break
            reference = Image.fromarray(picture)
            made.append(pipeline(reference, caption, word, steps=20).images[0])
            references.append(reference.resize((side, side)))
        rows = np.stack([np.asarray(image) for image in references + made])
        return grid(rows / 127.5 - 1.0, columns=len(made))


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
