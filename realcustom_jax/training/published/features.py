"""What a published model's frozen encoders make of pictures and captions: in every step, or once, kept on disk.

On disk are, as float16 in plain .npy files that are read row by row: the autoencoder's mean and log-variance of each
target, a file for each bucket; the text encoders' states and pooled text of each caption; the image encoders' features
of each reference, all layers and parts one after the other (SDXL's `paper` projector reads 25 MB of a reference).
"""

import dataclasses
import functools
import json
import math
import operator
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from realcustom_jax.conditioning.images import from_uint8
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.references import reference_features
from realcustom_jax.conditioning.size import time_ids
from realcustom_jax.conditioning.text_states import text_states
from realcustom_jax.data.loader import Split
from realcustom_jax.data.pictures.bucketed import BucketBatches
from realcustom_jax.data.pictures.folder import dataset_name
from realcustom_jax.files import write_json
from realcustom_jax.model_files import fingerprint
from realcustom_jax.paths import is_bucket, local_folder
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.staging import Staging

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_AT_ONCE = 8  # rows that are read together, references and captions that are encoded together


class Encoders:
    """The frozen encoders of a pipeline, as pure functions of `params`."""

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self.params = {
            "vae": pipeline.vae.params, "siglip": pipeline.siglip.params, "dinov2": pipeline.dino.params,
            "text_encoders": tuple(encoder.network.params for encoder in pipeline.text_encoders)}

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """int32 [B, encoders, T]; what is too long is cut."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # long captions are cut in every epoch again
            return np.stack([encode_prompt(encoder.tokenizer, captions, allow_empty=True)
                             for encoder in self._pipeline.text_encoders], axis=1)

    def time_ids(self, original: np.ndarray, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """SDXL's size conditioning [B, 6] in the order of the preset, from pairs [B, 2] and the size of all targets,
        each vertical first."""
        return time_ids(size, original=original, corner=corner, order=self._pipeline.preset.size_order)

    def text(self, params, ids: jax.Array) -> dict[str, jax.Array]:
        """text [B, T, D] and, for SDXL's kind of UNet, pooled [B, P]."""
        outputs = [encoder.network.module.apply({"params": own}, ids[:, i]) for i, (encoder, own) in enumerate(
            zip(self._pipeline.text_encoders, params["text_encoders"], strict=True))]
        text, pooled = text_states(outputs, self._pipeline.unet.module.config, self._pipeline.preset.pooled)
        return {"text": text} if pooled is None else {"text": text, "pooled": pooled}

    def references(self, params, pictures: jax.Array) -> tuple[jax.Array, ...]:
        """`references.reference_features` of pictures [B, S, S, 3] in [0, 1]."""
        pipeline = self._pipeline
        return reference_features(pipeline.siglip.module, params["siglip"], pipeline.dino.module, params["dinov2"],
                                  pictures, pipeline.vision_settings)

    def targets(self, params, pictures: jax.Array) -> jax.Array:
        """The autoencoder's mean and log-variance [B, 2, h, w, C] of pictures uint8 [B, H, W, 3]."""
        vae = self._pipeline.vae.module
        found = vae.apply({"params": params["vae"]}, from_uint8(pictures), method="encode")
        return jnp.stack([found.mean, found.logvar], axis=1)

    def latents(self, targets: jax.Array, key: jax.Array) -> jax.Array:
        """A sample [B, h, w, C] of unit variance of what `targets` gives."""
        mean, logvar = targets.astype(jnp.float32).swapaxes(0, 1)
        scale = self._pipeline.vae.module.config.scaling_factor
        return (mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)) * scale

    def fingerprint(self) -> str:
        """Of all that the features depend on beside the pictures: networks with every weight, tokenizers, settings."""
        pipeline, preset = self._pipeline, self._pipeline.preset
        parts = pipeline.fingerprints()
        return fingerprint.of_values(*(parts[name] for name in ("text encoders", "autoencoder", "image encoders")),
                                     pipeline.vision_settings, preset.pooled, preset.size_order)


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """Features on disk; see `compute_features`."""

    folder: Path

    def batch(self, rows: np.ndarray, references: np.ndarray) -> dict[str, Any]:
        """targets [B, 2, h, w, C], text, pooled, time_ids, features (a tuple) of rows of one bucket, with one reference
        each."""
        index = self._read("index")[rows]
        wide = self._read("features")[index[:, 2] + references]
        names = ("text", "pooled", "time_ids") if self._has("pooled") else ("text",)
        stored = {name: self._read(name)[rows] for name in names}
        return {"targets": self._read(f"targets-{index[0, 0]}")[index[:, 1]], "features": self._layers(wide), **stored}

    def dropped(self) -> dict[str, Any]:
        """What replaces a dropped condition, without batch axis: `empty` {text, pooled} and `no_image`."""
        empty = {name: self._read(f"empty-{name}") for name in ("text", "pooled") if self._has(f"empty-{name}")}
        return {"empty": empty, "no_image": self._layers(self._read("no_image"))}

    def _layers(self, wide: np.ndarray) -> tuple[np.ndarray, ...]:
        lengths = json.loads((self.folder / "layers.json").read_text())["lengths"]
        return tuple(np.split(wide, np.cumsum(lengths)[:-1], axis=-2))

    def _has(self, name: str) -> bool:
        return (self.folder / f"{name}.npy").is_file()

    def _read(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")


def compute_features(encoders: Encoders, data: Path, batches: BucketBatches, parent: "AnyPath") -> StoredFeatures:
    """Computes the features of every row of the dataset `data`, which `batches` serve, or finds them computed, in a
    folder within `parent`.

    Raises OSError: the disk has not enough room, said before much is computed; ValueError: a feature does not fit
    float16.
    """
    folder = parent / f"{dataset_name(data)}_{encoders.fingerprint()}"
    if is_bucket(folder):
        return _in_bucket(folder, functools.partial(_fill, encoders=encoders, rows=Split(data, "train"),
                                                    batches=batches))
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _fill(partial, encoders, Split(data, "train"), batches)
        except BaseException:
            shutil.rmtree(partial)
            raise
        partial.rename(folder)
    return StoredFeatures(folder)


def _in_bucket(folder: "AnyPath", fill: Callable[[Path], None]) -> StoredFeatures:
    """The same in a bucket, where no folder is renamed: an object that is written last says that all are there. They
    are mapped into memory from the copy that this host keeps."""
    whole = folder / "whole.json"
    if not whole.exists():
        with Staging(folder) as staging:
            fill(staging.local)
            staging.upload()
        write_json(whole, {"features": folder.name})
    return StoredFeatures(local_folder(folder))


def _fill(folder: Path, encoders: Encoders, rows: Split, batches: BucketBatches) -> None:
    params = jax.device_put(jax.device_get(encoders.params), jax.local_devices()[0])
    text, references, targets = (functools.partial(jax.jit(function), params) for function in (
        encoders.text, encoders.references, encoders.targets))

    def features(pictures):
        return jnp.concatenate(references(pictures / 255.0), axis=1)

    no_image = references(jnp.zeros((1, *rows[0]["references"].shape[1:])))
    nothing = {"no_image": _half("no_image", jnp.concatenate(no_image, axis=1))[0]}
    nothing |= {f"empty-{name}": _half(name, value)[0] for name, value in text(encoders.ids([""])).items()}
    shapes = {"features": (int(batches.references.sum()), *nothing["no_image"].shape)}
    shapes |= {name: (len(rows), *nothing[f"empty-{name}"].shape) for name in ("text", "pooled")
               if f"empty-{name}" in nothing}
    for bucket, own in enumerate(batches.buckets):
        shapes[f"targets-{bucket}"] = (len(own), *jax.eval_shape(targets, rows[int(own[0])]["target"][None]).shape[1:])
    _check_room(folder, len(rows), shapes)

    def new(name, shape, dtype=np.float16):
        file = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # a full disk would otherwise kill the process when a page is written
            with open(file, "r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    write_json(folder / "layers.json", {"lengths": [x.shape[1] for x in no_image]})
    for name, value in nothing.items():
        new(name, value.shape)[...] = value
    stored = {name: new(name, shape) for name, shape in shapes.items()}
    stored["index"] = new("index", (len(rows), 3), np.int64)  # bucket, place within it, place of the first reference
    stored["index"][:, 2] = np.cumsum(batches.references) - batches.references
    stored["time_ids"] = new("time_ids", (len(rows), 6), np.float32)
    with tqdm(total=len(rows), desc="computing features", unit="row") as bar:
        for bucket, start in ((b, s) for b, own in enumerate(batches.buckets) for s in range(0, len(own), _AT_ONCE)):
            numbers = batches.buckets[bucket][start:start + _AT_ONCE]
            places = np.arange(start, start + len(numbers))
            read = [rows[int(i)] for i in numbers]
            stored["index"][numbers, 0], stored["index"][numbers, 1] = bucket, places
            # Targets are encoded one at a time, because the autoencoder's attention takes 2 GB for a picture of 1024².
            stored[f"targets-{bucket}"][places] = _in_chunks("targets", targets, [row["target"] for row in read], 1)
            at = [stored["index"][i, 2] + np.arange(batches.references[i]) for i in numbers]
            stored["features"][np.concatenate(at)] = _in_chunks(
                "features", features, [picture for row in read for picture in row["references"]])
            ids = encoders.ids([str(row["caption"]) for row in read])
            for name, found in _in_chunks("texts", text, ids).items():
                stored[name][numbers] = found
            original, corner = (np.stack([row[name] for row in read]) for name in ("original_size", "crop_top_left"))
            stored["time_ids"][numbers] = encoders.time_ids(original, corner, read[0]["target"].shape[:2])
            bar.update(len(numbers))
    for array in stored.values():
        array.flush()


def _in_chunks(name: str, function: Callable, items: Sequence[np.ndarray], size: int | None = None) -> Any:
    """The function of all items, arrays or a dict of them, computed `size` (`_AT_ONCE`) at a time: it compiles once."""
    made, size = [], size or _AT_ONCE
    for start in range(0, len(items), size):
        part = np.stack(items[start:start + size])
        found = jax.tree.map(functools.partial(_half, name), function(np.resize(part, (size, *part.shape[1:]))))
        made.append(jax.tree.map(operator.itemgetter(slice(len(part))), found))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *made)


def _half(name: str, values: jax.Array) -> np.ndarray:
    found = np.asarray(values, np.float16)
    if not np.isfinite(found).all():
        raise ValueError(f"The {name} of some rows do not fit float16; train with precomputed=False.")
    return found


def _check_room(folder: Path, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    needed, free = sum(2 * math.prod(shape) for shape in shapes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"The features of {rows} rows and {shapes['features'][0]} references take {needed / 1e9:.1f} GB, "
                      f"and the disk of {folder.parent} has {free / 1e9:.1f} GB free: make room, or train with "
                      "precomputed=False.")
