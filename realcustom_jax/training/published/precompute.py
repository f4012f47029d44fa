"""Computes features (module `features`) before the first step: all processes share the rows, each on all devices it
has."""

import functools
import io
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from realcustom_jax import disk
from realcustom_jax.data.batches import BucketBatches
from realcustom_jax.data.examples import Example
from realcustom_jax.devices.shared_disk import on_every_process, on_first_process
from realcustom_jax.files import write_file
from realcustom_jax.model_files import fingerprint
from realcustom_jax.paths import is_bucket, make_folder
from realcustom_jax.staging import is_whole, whole_folder
from realcustom_jax.training.published.encoders import Encoders
from realcustom_jax.training.published.features import SHARED, StoredFeatures, part_name

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_AT_ONCE = 8  # rows that are read together, references and captions that a device encodes together
_ROWS = 256  # of a part; a process that is killed loses at most so many


def compute_features(encoders: Encoders, data: str, batches: BucketBatches, parent: "AnyPath") -> StoredFeatures:
    """Computes the features of every row that `batches` serve, or finds them computed, in a folder within `parent`.
    `data` is the identity of the rows. All processes call it, and share the work, each on all of its devices.

    A part of `_ROWS` rows is a folder of its own, which gets its name when it is whole: what was finished before a run
    was killed is kept. The numbers do not depend on how many processes and devices there are, because every device
    always computes as many rows at once.

    Raises OSError: the disk has not enough room, said before much is computed; ValueError: a feature does not fit
    float16, or another process failed.
    """
    shapes = np.full(len(batches.index), -1)  # of rows that are not shown
    shapes[batches.order.shown] = batches.order.shapes[batches.order.shown]
    read = fingerprint.of_values(
        batches.sizes, fingerprint.of_tensors({"": shapes}), batches.reference_side, batches.placing)
    folder = parent / f"{data[:16]}_{read}_{encoders.fingerprint()}_parts"
    of_shapes = [np.flatnonzero(shapes == shape) for shape in np.unique(shapes) if shape >= 0]
    parts = [rows[start:start + _ROWS] for rows in of_shapes for start in range(0, len(rows), _ROWS)]
    missing = np.array([not is_whole(folder / part_name(number)) for number in range(len(parts))])
    # The first process decides, because a disk may show a new folder to some processes later than to others.
    missing = np.flatnonzero(multihost_utils.broadcast_one_to_all(missing))
    if len(missing):
        devices = _Devices(encoders)
        on_first_process(lambda: _begin(folder, devices, parts, missing, batches))
        own = missing[jax.process_index()::jax.process_count()]
        on_every_process(lambda: _fill(folder, devices, parts, own, batches))
    return StoredFeatures(folder)


class _Devices:
    """The encoders on all devices of this process. Each function takes pictures or texts, a chunk for each device at a
    time, and gives float16 in the host's memory."""

    def __init__(self, encoders: Encoders):
        self.encoders, devices = encoders, jax.local_devices()
        self.count, mesh = len(devices), Mesh(np.array(devices), ("rows",))
        whole, self._divided = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("rows",)))
        params = jax.device_put(jax.device_get(encoders.params), whole)

        def features(params, pictures):
            return jnp.concatenate(encoders.references(params, pictures / 255.0), axis=1)

        def jitted(function):
            return functools.partial(jax.jit(jax.shard_map(
                function, mesh=mesh, in_specs=(whole.spec, self._divided.spec), out_specs=self._divided.spec,
                check_vma=False)), params)

        # Targets are encoded one at a time, because the autoencoder's attention takes 2 GB for a picture of 1024².
        self._functions = {"targets": (jitted(encoders.targets), 1), "features": (jitted(features), _AT_ONCE),
                           "texts": (jitted(encoders.text), _AT_ONCE)}

    def __call__(self, name: str, groups: Sequence[Sequence[np.ndarray]]) -> Any:
        """The function of the items of all groups, one after the other: an array or a dict of them. A chunk holds items
        of one group, and is filled up by repeating them, so that each device's program is compiled once."""
        function, size = self._functions[name]
        chunks = [group[start:start + size] for group in groups for start in range(0, len(group), size)]
        made = []
        for start in range(0, len(chunks), self.count):
            some = chunks[start:start + self.count]
            given = [np.resize(np.stack(chunk), (size, *np.shape(chunk[0]))) for chunk in some]
            given += given[:1] * (self.count - len(some))
            found = function(jax.device_put(np.concatenate(given), self._divided))
            kept = np.concatenate([size * i + np.arange(len(chunk)) for i, chunk in enumerate(some)])
            made.append(jax.tree.map(lambda x, kept=kept: _half(name, x)[kept], found))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *made)

    def shape(self, name: str, item: np.ndarray) -> tuple[int, ...]:
        """Of what the function makes of an item."""
        function, size = self._functions[name]
        items = jax.ShapeDtypeStruct((size * self.count, *item.shape), item.dtype)
        return jax.eval_shape(function, items).shape[1:]


def _begin(folder: "AnyPath", devices: _Devices, parts: Sequence[np.ndarray], missing: np.ndarray,
           batches: BucketBatches) -> None:
    """Writes what all parts share: where each row is, and what replaces a condition that is dropped."""
    make_folder(folder)
    black = np.zeros((batches.reference_side, batches.reference_side, 3), np.uint8)
    layers = jax.eval_shape(devices.encoders.references, devices.encoders.params, black[None] / np.float32(255))
    nothing = {"no_image": devices("features", [[black]])[0]}
    nothing |= {f"empty-{name}": value[0] for name, value in devices("texts", [devices.encoders.ids([""])]).items()}
    targets, captions, references = (counts := _counts(batches)).T
    texts = sum(value.size for name, value in nothing.items() if name != "no_image")
    numbers = np.concatenate([parts[i] for i in missing])
    needed = captions[numbers].sum() * texts + references[numbers].sum() * nothing["no_image"].size
    for own in (parts[i] for i in missing):
        width, height = batches.sizes[batches.order.shapes[own[0]]]
        needed += targets[own].sum() * math.prod(devices.shape("targets", np.zeros((height, width, 3), np.uint8)))
    _check_room(folder, len(numbers), int(references[numbers].sum()), 2 * int(needed))
    index = np.zeros((len(targets), 4), np.int64)  # part, place of the first target, caption and reference within it
    for number, own in enumerate(parts):
        places = np.cumsum(counts[own], axis=0) - counts[own]
        index[own] = np.concatenate([np.full((len(own), 1), number), places], axis=1)
    buffer = io.BytesIO()
    np.savez(buffer, index=index, lengths=[x.shape[1] for x in layers], **nothing)
    write_file(folder / SHARED, buffer.getvalue())


def _counts(batches: BucketBatches) -> np.ndarray:
    """How many targets, captions and references each row has: int [N, 3]."""
    index = batches.index
    return np.stack([index.targets, index.captions, np.diff(index.choices)], axis=1).astype(np.int64)


def _fill(folder: "AnyPath", devices: _Devices, parts: Sequence[np.ndarray], own: np.ndarray,
          batches: BucketBatches) -> None:
    """Computes the parts of these numbers."""
    title = f"computing features, process {jax.process_index() + 1} of {jax.process_count()}"
    with tqdm(total=sum(len(parts[i]) for i in own), desc=title, unit="row", disable=jax.process_index() > 0) as bar:
        for number in own:
            with whole_folder(folder / part_name(number)) as partial:
                _fill_part(partial, devices, parts[number], batches, bar)


def _fill_part(folder: Path, devices: _Devices, numbers: np.ndarray, batches: BucketBatches, bar: tqdm) -> None:
    counts, arrays, encoders = _counts(batches)[numbers], {}, devices.encoders
    lengths, places = counts.sum(axis=0), np.zeros(3, int)
    for start in range(0, len(numbers), _AT_ONCE * devices.count):
        some = numbers[start:start + _AT_ONCE * devices.count]
        shown = list(map(functools.partial(_shown, batches), some, counts[start:start + len(some)]))
        groups = [shown[at:at + _AT_ONCE] for at in range(0, len(shown), _AT_ONCE)]
        targets, captions, references = ([[x for row in group for x in row[i]] for group in groups] for i in range(3))
        read = list(itertools.chain(*targets))
        original, corner = (np.stack([getattr(x, name) for x in read]) for name in ("original_size", "crop_top_left"))
        found = {
            "targets": (0, devices("targets", [[x.target for x in group] for group in targets])),
            "time_ids": (0, encoders.time_ids(original, corner, read[0].target.shape[:2]).astype(np.float32)),
            **{name: (1, value) for name, value in devices("texts", [encoders.ids(x) for x in captions]).items()},
            "features": (2, devices("features", references))}
        for name, (kind, value) in found.items():
            if name not in arrays:
                arrays[name] = _new(folder / f"{name}.npy", value.dtype, (int(lengths[kind]), *value.shape[1:]))
            arrays[name][places[kind]:places[kind] + len(value)] = value
        places += [len(read), len(found["text"][1]), len(found["features"][1])]
        bar.update(len(some))
    for array in arrays.values():
        array.flush()


def _shown(batches: BucketBatches, row: int, counts: np.ndarray
           ) -> tuple[list[Example], list[str], list[np.ndarray]]:
    """All that may be shown of a row: an example with each of its targets, its captions, its references."""
    read = []
    for number in range(counts.max()):
        target, caption, reference = np.minimum(number, counts - 1).tolist()
        read.append(batches.read_row(int(batches.order.shapes[row]), int(row), target, reference, caption))
    targets, captions, references = (read[:count] for count in counts)
    return targets, [x.caption for x in captions], [x.reference for x in references]


def _new(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
    disk.allocate(file)
    return array


def _half(name: str, values: jax.Array) -> np.ndarray:
    found = np.asarray(values, np.float16)
    if not np.isfinite(found).all():
        raise ValueError(f"The {name} of some rows do not fit float16; train with precomputed=False.")
    return found


def _check_room(folder: "AnyPath", rows: int, references: int, needed: int) -> None:
    if is_bucket(folder):
        return
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"The features of {rows} rows and {references} references take {needed / 1e9:.1f} GB, "
                      f"and the disk of {folder.parent} has {free / 1e9:.1f} GB free: make room, or train with "
                      "precomputed=False.")
