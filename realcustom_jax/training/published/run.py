"""Trains the adapter of a published model (SD-1.5, SDXL; the miniature too) on your own pictures.

The model's parts are frozen, in `dtype`; latents, texts and image features are computed within the step or, with
`precomputed`, once before the first. The run's folder gets `data/` (the pictures as a dataset), `features/` (what was
computed before), `fresh/adapter/` (what a new adapter begins with), the loop's checkpoints, metrics and samples, and at
the end `adapter/`, for `sample.py --adapter`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from realcustom_jax.conditioning.images import grid, to_uint8
from realcustom_jax.data.loader import Split
from realcustom_jax.data.pictures import folder
from realcustom_jax.data.pictures.bucketed import BucketBatches
from realcustom_jax.devices import sharding
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import adapter_tensors, find_adapter, merge_unet, split_unet
from realcustom_jax.model_files.network import Network
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.checkpoints import check_run
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.loop import fit
from realcustom_jax.training.published import features
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.features import Encoders, StoredFeatures
from realcustom_jax.training.published.initial_adapter import with_tokens_like_text, write_fresh_adapter
from realcustom_jax.training.published.loss import AdapterLoss
from realcustom_jax.training.published.shapes import example_shape, stored_shape
from realcustom_jax.training.scored import find_judge, scored_pictures

_PREVIEWS, _LOOKED_AT = 4, 4
_THE_RUN = ("kind", "side", "preset", "fresh", "curriculum", "snr_limit")
"""What of a configuration may not change while its run goes on; nor may the content of what its paths name."""


def train_adapter(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.train` (see configs/sdxl.py) in `workdir`; the same command resumes.

    Raises FileNotFoundError, ValueError: the pictures, the model or the settings cannot be used; names which.
    """
    enable_compilation_cache()
    plain = config.train.to_dict()
    train = PublishedConfig.from_config(plain)
    if not train.data.folder:
        raise ValueError("config.train.data.folder is empty: the folder of your pictures and their manifest.jsonl, "
                         "see docs/training/own_pictures.md.")
    settings = train.optimization
    mesh = sharding.make_mesh(**dataclasses.asdict(train.mesh))
    on_first_process(functools.partial(_find_parts, train))  # before the pictures take their hours
    judge = find_judge(settings.evaluate_pictures_every, ModelSource.open(train.model).root)
    vision = find_adapter(train.adapter).vision if train.adapter else train.fresh.vision_settings
    sizes = {"side": train.side, "reference_side": vision.size}
    pictures = dataclasses.asdict(train.data)
    on_first_process(lambda: folder.make_dataset(data_dir=workdir / "data", **sizes, **pictures))
    data = folder.make_dataset(data_dir=workdir / "data", **sizes, **pictures)
    start = Path(train.adapter) if train.adapter else workdir / "fresh" / "adapter"
    if not train.adapter:
        on_first_process(lambda: write_fresh_adapter(start, train.model, train.vision, train.fresh))
    # The parts lie in the host's memory until `fit` shares them out, so that no single chip has to hold all of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if _has_cpu() else contextlib.nullcontext():
        pipeline = Pipeline.load(train.model, start, vision=train.vision or None, tokenizer=train.tokenizer or None,
                                 preset=train.preset, dtype=train.dtype, offload=True, scan_layers=True)
        identity = _identity(plain, pipeline, data)
        if train.on_existing == "resume":
            check_run(workdir / "checkpoints", identity)  # before features take their hours
        if not train.adapter:
            rows = Split(data, "train", fields=("references", "caption"))
            rows = [rows[i] for i in range(min(len(rows), _LOOKED_AT))]
            pipeline = with_tokens_like_text(
                pipeline, [row["references"][0] for row in rows], [str(row["caption"]) for row in rows])
    shares = sharding.batch_sharding(mesh, settings.batch_size // settings.accumulate)
    batches = BucketBatches(data, batch_size=settings.batch_size, seed=settings.seed, steps=settings.steps,
                            curriculum=train.curriculum,
                            examples=sharding.examples_here(shares, settings.batch_size))
    task = _task(pipeline, data, batches, workdir, train)
    scored = scored_pictures(settings.evaluate_pictures_every, judge, task.trained_pipeline)
    params = fit("adapter", task, settings, workdir, mesh=mesh, run=identity, reports=scored)
    # "local" is None, because the adapter's own vision settings say it, as the preset may have changed them.
    preset = pipeline.preset
    conditioning = {"local": None, "pooled": preset.pooled, "size_order": preset.size_order}
    adapter = {"image_prompt_settings": find_adapter(start).settings, "conditioning": conditioning,
               "vision_settings": dataclasses.asdict(pipeline.vision_settings)}
    tensors = bundle.to_half(adapter_tensors(params["projector"], params["vision"]))
    on_first_process(lambda: bundle.save_part(workdir, "adapter", adapter, tensors))


def _identity(train: Mapping[str, Any], pipeline: Pipeline, data: Path) -> dict[str, Any]:
    """What the run is about. Paths are not: a model may be trained anew at its path, or moved. The precision stands
    beside a part's name, as the same files give other numbers in another precision."""
    parts = {f"the content of the {name} in {train['dtype']}": found for name, found in pipeline.fingerprints().items()}
    return {name: train[name] for name in _THE_RUN} | parts | {"the content of the pictures": folder.dataset_name(data)}


def _find_parts(train: PublishedConfig) -> None:
    """Raises FileNotFoundError or ValueError for what is not where the configuration says."""
    for name in ("model", "vision", "tokenizer"):
        try:
            if path := getattr(train, name):
                ModelSource.open(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"config.train.{name}: {error}") from None
    if train.adapter:
        find_adapter(train.adapter)


def _task(pipeline: Pipeline, data: Path, batches: BucketBatches, workdir: Path,
          train: PublishedConfig) -> "PublishedTask":
    limit = train.snr_limit or None
    if not train.precomputed:
        return PublishedTask(pipeline, batches, limit)
    found = functools.partial(features.compute_features, Encoders(pipeline), data, batches, workdir / "features")
    on_first_process(found)
    return PrecomputedTask(pipeline, batches, found(), limit)


class PublishedTask:
    """The task of `loop.fit`: {"projector", "vision"} of a pipeline, everything else frozen; see `AdapterLoss`.

    Conditions are dropped, for classifier-free guidance, before they are encoded, as often as `AdapterLoss` says.
    """

    def __init__(self, pipeline: Pipeline, batches: BucketBatches, snr_limit: float | None = None):
        self._pipeline, self._batches, self._encoders = pipeline, batches, Encoders(pipeline)
        vision, base = split_unet(pipeline.unet.params)
        self.trained = {"projector": pipeline.projector.params, "vision": vision}
        self.frozen = {"unet": base, **self._encoders.params}
        self._loss = AdapterLoss(pipeline.unet.module, pipeline.projector.module, pipeline.prediction,
                                  snr_limit=snr_limit, betas=pipeline.betas)

    def init(self, key):
        return jax.tree.map(lambda x: np.asarray(x, np.float32), self.trained)

    def batch(self, step):
        """Pictures uint8, token ids [B, encoders, T] and size conditioning [B, 6] as the preset orders it."""
        batch = self._batches[step]
        ids = self._encoders.ids(batch["caption"])
        size = batch["target"].shape[1:3]
        return {"target": batch["target"], "reference": batch["reference"], "ids": ids,
                "empty_ids": np.broadcast_to(self._encoders.ids([""]), ids.shape),
                "time_ids": self._encoders.time_ids(batch["original_size"], batch["crop_top_left"], size)}

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        size = len(batch["target"])
        no_text = draw_dropped(text_key, self._loss.text_dropout, size)
        no_image = draw_dropped(image_key, self._loss.image_dropout, size)
        ids = replace_dropped(no_text, batch["ids"], batch["empty_ids"])
        pictures = replace_dropped(no_image, batch["reference"] / 255.0, 0.0)
        known = jax.lax.stop_gradient({
            **self._encoders.text(frozen, ids), "features": self._encoders.references(frozen, pictures),
            "latents": self._encoders.latents(self._encoders.targets(frozen, batch["target"]), latents_key)})
        if "pooled" in known:
            known["time_ids"] = batch["time_ids"]
        return self._loss.denoising(params, frozen["unet"], known, noise_key)

    def example_shapes(self):
        """Of every shape of targets."""
        return [example_shape(self._pipeline, size) for size in self._batches.shapes]

    def scalars(self, step):
        """The epoch and the curriculum's."""
        return self._batches.scalars(step)

    def trained_pipeline(self, params) -> Pipeline:
        """The pipeline with these parameters."""
        return dataclasses.replace(
            self._pipeline,
            unet=Network(self._pipeline.unet.module, merge_unet(params["vision"], self.frozen["unet"])),
            projector=Network(self._pipeline.projector.module, params["projector"]))

    def preview(self, params) -> Image.Image:
        """References (above), what is made of them with the captions of the first batch, and the masks of the last step
        (below)."""
        pipeline = dataclasses.replace(self.trained_pipeline(params), vocabulary=None)
        batch = self._batches[0]
        references, made, masks = [], [], []
        side = pipeline.sizes.native
        for picture, caption, word in zip(batch["reference"], batch["caption"], batch["word"], strict=True):
            if len(made) == _PREVIEWS:
                break
            reference = Image.fromarray(picture)
            try:
                result = pipeline(reference, caption, word, steps=20)
                made.append(result.images[0])
                masks.append(Image.fromarray(to_uint8(result.masks[-1, 0].max(axis=0) * 2 - 1)).convert("RGB"))
            except ValueError as error:  # as of a word that a long caption loses; training goes on
                tqdm.write(f"no sample of {caption!r}: {error}")
                made.append(Image.new("RGB", (side, side), "grey"))
                masks.append(made[-1])
            references.append(reference.resize((side, side)))
        masks = [mask.resize((side, side), Image.Resampling.NEAREST) for mask in masks]
        rows = np.stack([np.asarray(image) for image in references + made + masks])
        return grid(rows / 127.5 - 1.0, columns=len(made))

    def captions(self):
        """Of the pictures of `preview`."""
        return self._batches[0]["caption"][:_PREVIEWS]


class PrecomputedTask(PublishedTask):
    """The same, from features on disk: the encoders are neither run nor on the devices."""

    def __init__(self, pipeline: Pipeline, batches: BucketBatches, stored: StoredFeatures,
                 snr_limit: float | None = None):
        super().__init__(pipeline, batches, snr_limit)
        self._stored = stored
        self.frozen = {"unet": self.frozen["unet"], **stored.dropped()}

    def example_shapes(self):
        """Of every shape of targets."""
        return [stored_shape(self._pipeline, size) for size in self._batches.shapes]

    def batch(self, step):
        """targets, text, pooled, time_ids and features, see `StoredFeatures.batch`."""
        return self._stored.batch(*self._batches.chosen(step))

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        known = self._loss.dropped(batch, frozen, text_key, image_key)
        encoded = {name: known[name] for name in ("text", "pooled", "features") if name in known}
        known |= jax.tree.map(lambda x: x.astype(self._pipeline.unet.module.dtype), encoded)
        known["latents"] = self._encoders.latents(known["targets"], latents_key)
        return self._loss.denoising(params, frozen["unet"], known, noise_key)


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
