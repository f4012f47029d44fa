"""Builds a dataset: the parts of a source → one ArrayRecord shard each, their index, and what TFDS reads it with.

    DIR/identity.json               the source's identity, written first
    DIR/realcustom-train.array_record-00000-of-00012 …
    DIR/done/00000.npz …            a marker for each shard, written after it (module `shards`)
    DIR/features.json, dataset_info.json, index.npz       written at the end

Whatever stops it, the same command goes on: a shard with its marker is never written again. Nothing is locked, because
buckets have no locks: who builds the same part of the same source writes the same files, each whole.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from realcustom_jax.data import workers as pool
from realcustom_jax.data.dataset import About, Dataset, read_about
from realcustom_jax.data.index import Index
from realcustom_jax.data.records import FEATURES
from realcustom_jax.data.scratch import scratch_folder
from realcustom_jax.data.shards import Marker, Place, read_marker, read_markers, write_part
from realcustom_jax.errors import printable
from realcustom_jax.files import write_file, write_json
from realcustom_jax.paths import as_path, is_bucket, listing

if TYPE_CHECKING:
    from realcustom_jax.data.sources import Part, Source
    from realcustom_jax.paths import AnyPath

_SHOWN = 10  # broken rows that are shown one by one
_SEEN = "seen"


def build(source: "Source", folder: "str | os.PathLike | AnyPath", *, identity: str | None = None, side: int = 1024,
          workers: int | None = None, max_broken: int = 0, host: tuple[int, int] = (0, 1)) -> Dataset | None:
    """Builds the dataset of a source in `folder`, or what is missing of it.

    Args:
        identity: the source's, where it is known already.
        side: what the dataset notes as the side of targets for readers that are told none; nothing else depends on it.
        workers: processes; None: one for each processor that this process may use.
        max_broken: how many rows may be unusable; they are left out. All rows are looked at before too many are an
            error, so that nothing has to be built again when more are allowed.
        host: (I, N): the I-th of N hosts builds every N-th part. Whoever finishes the last part finishes the dataset.
    Returns:
        The dataset; None if parts of other hosts are missing.
    Raises:
        ValueError: more rows are broken than `max_broken`, whose places it names, or none is good; the folder holds
            another dataset, or something else.
        OSError: a shard cannot be written, or a worker died. Finished shards are kept.
    """
    folder, workers = as_path(folder), _processors() if workers is None else workers
    for what, number, least in (("workers", workers, 1), ("max_broken", max_broken, 0), ("hosts", host[1], 1)):
        if number < least:
            raise ValueError(f"{what} is {number}; expected at least {least}.")
    if not 0 <= host[0] < host[1]:
        raise ValueError(f"The host is {host[0]} of {host[1]}; expected a number from 0 to {host[1] - 1}.")
    check_empty_or_dataset(folder)
    parts = source.parts()
    identity = source.identity(folder / _SEEN) if identity is None else identity
    about = _claim(folder, About(identity, len(parts), side))
    markers = read_markers(folder, len(parts), identity)
    missing = [i for i in range(host[0], len(parts), host[1]) if markers[i] is None]
    if missing:
        places = [Place(folder, number, len(parts), identity) for number in range(len(parts))]
        _build_parts(parts, places, markers, missing, workers)
        if read_about(folder) != about:
            raise ValueError(f"Another dataset was begun in {folder} meanwhile; build each into a folder of its own.")
        if None in markers:  # other hosts may have finished theirs
            markers = read_markers(folder, len(parts), identity)
    finished = [marker for marker in markers if marker is not None]
    _check_broken([line for marker in finished for line in marker.broken], max_broken)
    if len(finished) < len(parts):
        return None
    if not sum(len(marker.index) for marker in finished):
        raise ValueError("The source has no row that can be used; give at least one.")
    _finish(folder, finished)
    return Dataset(folder)


def check_empty_or_dataset(folder: "AnyPath") -> None:
    """Raises ValueError where a folder holds files and no dataset, or is none."""
    if read_about(folder) is not None:
        return
    if not is_bucket(folder) and folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the dataset.")
    others = [path.name for path in listing(folder) if not path.name.startswith(".") and path.name != _SEEN]
    if others:
        raise ValueError(f"{folder} holds no dataset, but {others[0]!r} and perhaps more: choose a new or an empty "
                         "folder for the dataset.")


def check_outside(folder: str, source: str) -> None:
    """Raises ValueError where a dataset would be written into the folder that it is made of."""
    if is_bucket(folder) == is_bucket(source):
        inner, outer = (path if is_bucket(path) else os.path.realpath(path) for path in (folder, source))
        if (inner + "/").startswith(outer.rstrip("/") + "/"):
            raise ValueError(f"The dataset cannot be written into its own pictures: {folder} lies in {source}.")


def _claim(folder: "AnyPath", about: About) -> About:
    """Notes of which source the dataset in a folder is. Raises ValueError if another one's is there."""
    found = read_about(folder)
    if found is not None and (found.identity, found.shards) != (about.identity, about.shards):
        raise ValueError(
            f"{folder} holds the dataset of other content ({found.identity[:16]} in {found.shards} shards; the source "
            f"is {about.identity[:16]} in {about.shards}): it is another source, or it has changed. Choose another "
            "folder, or delete this one.")
    if found != about:
        write_json(folder / "identity.json", vars(about))
    return about


def _build_parts(parts: Sequence["Part"], places: Sequence[Place], markers: list[Marker | None], missing: Sequence[int],
                 workers: int) -> None:
    """Builds the missing parts, and puts their markers into `markers`."""
    with scratch_folder(places[0].folder) as scratch, _progress(parts, markers, missing) as on_rows:
        tasks, shown = [(parts[i], places[i], scratch) for i in missing], 0
        if min(workers, len(missing)) == 1:
            done = _here(tasks, on_rows)
        else:
            done = pool.in_workers(_in_worker, tasks, min(workers, len(missing)), on_rows, "building the dataset")
        with contextlib.closing(done):  # workers end before the folder that they write into goes
            for number in (missing[i] for i in done):
                markers[number] = marker = read_marker(places[number])
                if marker is None:
                    raise OSError(f"The shard {places[number].shard} was changed or removed while the dataset was "
                                  "built; give the same command again when nothing else writes there.")
                for line in marker.broken[:max(0, _SHOWN - shown)]:
                    _say(f"skipped, {line}")
                shown += len(marker.broken)
        if shown:
            _say(f"{shown} row(s) were skipped.")


def _say(line: str) -> None:
    """Above the bar."""
    tqdm.write(printable(line, sys.stdout))


def _here(tasks: Sequence[tuple["Part", Place, Path]], on_rows: Callable[[int], None]) -> Iterator[int]:
    rows = 0

    def on_row() -> None:
        nonlocal rows
        rows += 1
        on_rows(rows)

    for number, task in enumerate(tasks):
        write_part(*task, on_row)
        yield number


def _in_worker(part: "Part", place: Place, scratch: Path, count: Callable[[], None]) -> None:
    if read_marker(place) is None:  # another builder may have been faster
        write_part(part, place, scratch, count)


@contextlib.contextmanager
def _progress(parts: Sequence["Part"], markers: Sequence[Marker | None], missing: Sequence[int]
              ) -> Iterator[Callable[[int], None]]:
    """A bar over the rows that are built here; gives what has to be told how many were built so far.

    Where a source does not know how many rows a part has, what is left is guessed by the parts before.
    """
    counts = [getattr(parts[i], "count", None) for i in missing]
    known = all(isinstance(count, int) for count in counts)
    with tqdm(desc="building the dataset", unit="row", total=sum(counts) if known else None, mininterval=0.5) as bar:
        def on_rows(rows: int) -> None:
            done = [markers[i] for i in missing if markers[i] is not None]
            if not known and done:
                each = sum(len(marker.index) + len(marker.broken) for marker in done) / len(done)
                bar.total = max(rows, round(each * len(missing)))
            bar.update(rows - bar.n)

        yield on_rows


def _check_broken(broken: Sequence[str], limit: int) -> None:
    if len(broken) > limit:
        more = "; …" if len(broken) > _SHOWN else ""
        raise ValueError(f"{len(broken)} broken row(s), and max_broken is {limit}: {'; '.join(broken[:_SHOWN])}{more}. "
                         "Mend them or raise max_broken.")


def _finish(folder: "AnyPath", markers: Sequence[Marker]) -> None:
    """Writes what a finished dataset has besides its shards, where it is not there or damaged; the index last, which
    says that the dataset is finished."""
    rows, sizes = [len(marker.index) for marker in markers], [marker.size for marker in markers]
    with tempfile.TemporaryDirectory() as temporary:
        template = tfds.core.ShardedFileTemplate(temporary, dataset_name="realcustom", split="train",
                                                 filetype_suffix="array_record")
        for path in template.sharded_filepaths(len(rows)):  # TFDS looks for their names
            path.touch()
        split = tfds.core.SplitInfo(name="train", shard_lengths=rows, num_bytes=sum(sizes), filename_template=template)
        tfds.folder_dataset.write_metadata(
            data_dir=temporary, features=FEATURES, split_infos=[split], version="1.0.0", check_data=False,
            description="Pictures, captions, and subjects that words of the captions name (realcustom_jax).")
        files = {name: (Path(temporary) / name).read_bytes() for name in ("features.json", "dataset_info.json")}
    index = Index.concatenate([marker.index for marker in markers])
    files["index.npz"] = index.to_bytes(shard_rows=np.array(rows), shard_sizes=np.array(sizes))
    for name, content in files.items():
        try:
            there = (folder / name).read_bytes()
        except FileNotFoundError:
            there = None
        if there != content:
            write_file(folder / name, content)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
