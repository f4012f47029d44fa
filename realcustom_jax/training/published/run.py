"""Trains the adapter of a published model (SD-1.5, SDXL; the miniature too) on your own pictures.

The model's parts are frozen, in `dtype`; latents, texts and image features are computed within the step or, with
`precomputed`, once before the first. The run's folder gets `data/` (the pictures as a dataset), `features/` (what was
computed before), `fresh/adapter/` (what a new adapter begins with), the loop's checkpoints, metrics and samples, and at
the end `adapter/`, for `sample.py --adapter`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from realcustom_jax.conditioning.images import grid
from realcustom_jax.data.batches import Batch, BucketBatches
from realcustom_jax.data.reading import Prefetched
from realcustom_jax.devices import sharding
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.shared_disk import on_first_process
from realcustom_jax.files import sole_user
from realcustom_jax.model_files import bundle
from realcustom_jax.model_files.adapter import (
    adapter_tensors,
    find_adapter,
    merge_unet,
    remembered_choices,
    split_unet,
)
from realcustom_jax.model_files.network import Network
from realcustom_jax.model_files.source import ModelSource
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.dropout import draw_dropped, replace_dropped
from realcustom_jax.training.identity import RunIdentity, has_checkpoints
from realcustom_jax.training.loop import fit
from realcustom_jax.training.published import features
from realcustom_jax.training.published.config import PublishedConfig
from realcustom_jax.training.published.features import Encoders, StoredBatches, StoredFeatures
from realcustom_jax.training.published.initial_adapter import with_tokens_like_text, write_fresh_adapter
from realcustom_jax.training.published.loss import AdapterLoss
from realcustom_jax.training.published.pictures import find_pictures

_PREVIEWS, _LOOKED_AT = 4, 4
_THE_RUN = ("kind", "side", "preset", "fresh", "curriculum", "snr_limit", "dtype")
"""What of a configuration may not change while its run goes on; nor may the content of what its paths name."""


def train_adapter(config: ConfigDict, workdir: Path) -> None:
    """Trains `config.train` (see configs/sdxl.py) in `workdir`; the same command resumes.

    Raises:
        FileNotFoundError, ValueError: the pictures, the model or the settings cannot be used, or the checkpoints in
            `workdir` are of another run; names which. As far as it can be known, this is said before anything is built.
        BlockingIOError: another process trains there.
    """
    enable_compilation_cache()
    plain = config.train.to_dict()
    train = PublishedConfig.from_config(plain)
    train.data.mixture()  # whether there is one
    mesh = sharding.make_mesh(**dataclasses.asdict(train.mesh))
    on_first_process(functools.partial(_find_parts, train))  # before the pictures take their hours
    with contextlib.ExitStack() as alone:
        on_first_process(lambda: alone.enter_context(_sole_user(workdir)))
        _train(train, plain, mesh, workdir)


def _train(train: PublishedConfig, plain: Mapping[str, Any], mesh: Mesh, workdir: Path) -> None:
    settings, checkpoints = train.optimization, workdir / "checkpoints"
    continued = find_adapter(train.adapter) if train.adapter else None
    vision = continued.vision if continued else train.fresh.vision_settings
    pictures = find_pictures(train.data, workdir / "data", train.side)
    identity = {name: plain[name] for name in _THE_RUN} | {
        "data": pictures.about,
        "adapter": {"settings": continued.settings, "vision": dataclasses.asdict(vision)} if continued else "fresh"}
    RunIdentity.of(identity, settings).check(checkpoints, settings.on_existing)
    shares = sharding.batch_sharding(mesh, settings.batch_size // settings.accumulate)
    rows = pictures.rows()
    batches = BucketBatches(
        rows, side=train.side, reference_side=vision.size, batch_size=settings.batch_size, seed=settings.seed,
        steps=settings.steps, curriculum=train.curriculum, placing=train.data.seed, weights=pictures.weights(rows),
        examples=sharding.examples_here(shares, settings.batch_size))
    start = Path(train.adapter) if train.adapter else workdir / "fresh" / "adapter"
    # What a run began with stays as it is while the run goes on, also where the model turns out to be another one.
    begun = settings.on_existing == "resume" and has_checkpoints(checkpoints) and (start / "config.json").is_file()
    if not (train.adapter or begun):
        on_first_process(lambda: write_fresh_adapter(start, train.model, train.vision, train.fresh))
    # The parts lie in the host's memory until `fit` shares them out, so that no single chip has to hold all of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if _has_cpu() else contextlib.nullcontext():
        pipeline = Pipeline.load(train.model, start, vision=train.vision or None, tokenizer=train.tokenizer or None,
                                 preset=train.preset, dtype=train.dtype, offload=True, scan_layers=True)
        identity |= _contents(train.dtype, pipeline)
        RunIdentity.of(identity, settings).check(checkpoints, settings.on_existing)  # before features take their hours
        if not train.adapter:
            some = [batches.read_row(0, int(row), 0, 0, 0) for row in batches.order.shown[:_LOOKED_AT]]
            pipeline = with_tokens_like_text(pipeline, [row.reference for row in some], [row.caption for row in some])
    limit = train.snr_limit or None
    stored = features.compute_features(
        Encoders(pipeline), pictures.identity, batches, workdir / "features") if train.precomputed else None
    read = StoredBatches(stored, batches) if stored else batches
    with Prefetched(read, settings.steps, workers=train.data.workers, prefetch=train.data.prefetch) as ahead:
        task = PrecomputedTask(pipeline, batches, stored, limit, ahead.batch) if stored else PublishedTask(
            pipeline, batches, limit, ahead.batch)
        params = fit("adapter", task, settings, workdir, mesh=mesh, run=identity)
    adapter = {"image_prompt_settings": find_adapter(start).settings, **remembered_choices(pipeline.preset),
               "vision_settings": dataclasses.asdict(pipeline.vision_settings)}
    tensors = bundle.to_half(adapter_tensors(params["projector"], params["vision"]))
    on_first_process(lambda: bundle.save_part(workdir, "adapter", adapter, tensors))


def _contents(dtype: str, pipeline: Pipeline) -> dict[str, Any]:
    """What the model's files hold. Paths are not compared: a model may be trained anew at its path, or moved. The
    precision stands beside a part's name, as the same files give other numbers in another precision."""
    return {f"the content of the {name} in {dtype}": found for name, found in pipeline.fingerprints().items()}


@contextlib.contextmanager
def _sole_user(workdir: Path) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    with sole_user(workdir):
        yield


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


class PublishedTask:
    """The task of `loop.fit`: {"projector", "vision"} of a pipeline, everything else frozen; see `AdapterLoss`.

    Conditions are dropped, for classifier-free guidance, before they are encoded, as often as `AdapterLoss` says.
    `read` gives the same batches, perhaps read ahead.
    """

    def __init__(self, pipeline: Pipeline, batches: BucketBatches, snr_limit: float | None = None,
                 read: Callable[[int], Batch] | None = None):
        self._pipeline, self._batches, self._encoders = pipeline, batches, Encoders(pipeline)
        self._read = read or (lambda step: batches[step])
        vision, base = split_unet(pipeline.unet.params)
        self.trained = {"projector": pipeline.projector.params, "vision": vision}
        self.frozen = {"unet": base, **self._encoders.params}
        self._loss = AdapterLoss(pipeline.unet.module, pipeline.projector.module, pipeline.prediction,
                                  snr_limit=snr_limit, betas=pipeline.betas)

    def init(self, key):
        return jax.tree.map(lambda x: np.asarray(x, np.float32), self.trained)

    def batch(self, step):
        """Pictures uint8, token ids [B, encoders, T] and size conditioning [B, 6] as the preset orders it."""
        batch = self._read(step)
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
        return self._loss.denoising(params, frozen["unet"], known, noise_key), {}

    def preview(self, params) -> Image.Image:
        """References (above) and what is made of them (below) with the captions of the first batch: as a pipeline makes
        them that loads the adapter, whose weights are then of half precision, with the preset of the training."""
        dtype = self._pipeline.unet.module.dtype
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float16).astype(dtype), params)
        pipeline = dataclasses.replace(
            self._pipeline, vocabulary=None,
            unet=Network(self._pipeline.unet.module, merge_unet(params["vision"], self.frozen["unet"])),
            projector=Network(self._pipeline.projector.module, params["projector"]))
        batch = self._batches[0]
        made, references = [], []
        side = pipeline.sizes.native
        for picture, caption, word in zip(batch["reference"], batch["caption"], batch["word"], strict=True):
            if len(made) == _PREVIEWS:
                break
            reference = Image.fromarray(picture)
            try:
                made.append(pipeline(reference, caption, word).images[0])
            except ValueError as error:  # as of a word that a long caption loses; training goes on
                tqdm.write(f"no sample of {caption!r}: {error}")
                made.append(Image.new("RGB", (side, side), "grey"))
            references.append(reference.resize((side, side)))
        rows = np.stack([np.asarray(image) for image in references + made])
        return grid(rows / 127.5 - 1.0, columns=len(made))


class PrecomputedTask(PublishedTask):
    """The same, from features on disk: the encoders are neither run nor on the devices."""

    def __init__(self, pipeline: Pipeline, batches: BucketBatches, stored: StoredFeatures,
                 snr_limit: float | None = None, read: Callable[[int], Batch] | None = None):
        super().__init__(pipeline, batches, snr_limit, read or (lambda step: stored.batch(batches.chosen(step))))
        self.frozen = {"unet": self.frozen["unet"], **stored.dropped()}

    def batch(self, step):
        """targets, text, pooled, time_ids and features, see `StoredFeatures.batch`."""
        return self._read(step)

    def loss(self, params, frozen, batch, key):
        text_key, image_key, latents_key, noise_key = jax.random.split(key, 4)
        known = self._loss.dropped(batch, frozen, text_key, image_key)
        encoded = {name: known[name] for name in ("text", "pooled", "features") if name in known}
        known |= jax.tree.map(lambda x: x.astype(self._pipeline.unet.module.dtype), encoded)
        known["latents"] = self._encoders.latents(known["targets"], latents_key)
        return self._loss.denoising(params, frozen["unet"], known, noise_key), {}


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
