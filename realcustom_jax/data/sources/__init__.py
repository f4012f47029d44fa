"""Sources of training data: what lies at a path, as rows. docs/training/data.md describes each kind.

    PATH --open_source--> Source --parts--> Part, Part … --rows--> Row | BrokenRow
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from realcustom_jax.data.sources.manifest import Manifest, manifests
from realcustom_jax.data.sources.parts import BrokenRow, Part, Source
from realcustom_jax.data.sources.patterns import is_pattern, matching
from realcustom_jax.data.sources.schema import Naming
from realcustom_jax.data.sources.views import Tree, pictures_below
from realcustom_jax.data.sources.webdataset import PICTURES, Tars
from realcustom_jax.errors import quoted
from realcustom_jax.paths import as_path, check_reachable, is_bucket, listing

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

__all__ = ["BrokenRow", "Part", "Source", "open_source"]

_KINDS = ("a manifest.jsonl, WebDataset tars, Parquet files, a dataset of TensorFlow Datasets, or a folder of views "
          "for each object")
_ROW = '{"target": "a.jpg", "caption": "a dog in the snow", "word": "dog", "reference": "b.jpg"}'


def open_source(path: str | os.PathLike, *, columns: Mapping[str, str] | None = None, word: str = "") -> Source:
    """The source at a path, of the kind that is found there.

    Args:
        path: a folder, a file, or a pattern such as train-{000..012}.tar.
        columns: the source's own names for keys of a row, as {"caption": "prompt"}.
        word: the subject's word in rows that have none.
    Raises:
        FileNotFoundError: there is nothing. ValueError: it is no source, or no row of it could be used; says what was
            found, and what was expected.
    """
    naming, path = Naming.of(columns or {}, word), os.fspath(path)
    if not path:
        raise ValueError(f"The path of the training data is empty; expected {_KINDS}.")
    if is_pattern(path):
        return _of_files(matching(path), naming)
    place = as_path(path)
    if is_bucket(place):
        check_reachable(place)
    elif not os.path.lexists(place):
        raise FileNotFoundError(f"{place} does not exist; expected {_KINDS}.")
    if place.is_file():
        return _of_files([place], naming)
    return _of_folder(place, naming)


def _of_files(files: "list[AnyPath]", naming: Naming) -> Source:
    endings = {_ending(file) for file in files}
    if endings == {".jsonl"}:
        return Manifest(tuple(files), naming)
    if endings == {".tar"}:
        tars = Tars(tuple(files), naming)
        tars.check()
        return tars
    if endings == {".parquet"}:
        from realcustom_jax.data.sources.parquet import Parquet  # needs an extra

        tables = Parquet(tuple(files), naming)
        tables.check()
        return tables
    if endings & {".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz"}:
        raise ValueError(f"{files[0]} is a compressed tar, which cannot be read at random; unpack it to a plain .tar: "
                         "pictures are compressed already.")
    if endings <= {f".{ending}" for ending in PICTURES}:
        raise ValueError(f"{files[0]} is a picture; expected {_KINDS}.")
    raise ValueError(f"{', '.join(str(file) for file in files[:3])} is no training data; expected {_KINDS}.")


def _of_folder(folder: "AnyPath", naming: Naming) -> Source:
    if files := manifests(folder):
        return Manifest(tuple(files), naming)
    names = {path.name: path for path in listing(folder)}
    if not names and is_bucket(folder):  # which has no empty folders
        raise FileNotFoundError(f"{folder} does not exist; expected {_KINDS}.")
    if not names:
        raise ValueError(f"{folder} is empty; expected {_KINDS}.")
    if "dataset_info.json" in names:
        from realcustom_jax.data.sources.datasets import Dataset  # imports much

        dataset = Dataset(folder, naming)
        dataset.check()
        return dataset
    if any(".array_record" in name for name in names):
        raise ValueError(f"{folder} has ArrayRecord files and no dataset_info.json, which says what they hold: the "
                         "building of the dataset did not come to its end; run it again.")
    for ending in (".tar", ".parquet", ".tar.gz", ".tgz"):
        if files := [path for path in names.values() if _ending(path) == ending]:
            return _of_files(_training(files), naming)
    if files := [path for path in listing(folder / "data") if _ending(path) == ".parquet"]:
        return _of_files(_training(files), naming)  # as repositories of Hugging Face have them
    if "metadata.jsonl" in names or "metadata.csv" in names:
        raise ValueError(f"{folder} is an imagefolder of Hugging Face; give {folder / 'metadata.jsonl'} with "
                         "columns.target=file_name and columns.caption=text, or write manifest.jsonl, an object on "
                         f"each line, as {_ROW}.")
    tree = Tree(folder, naming)
    if tree.groups:
        return tree
    if any(_ending(path)[1:] in PICTURES for path in names.values()) or any(pictures_below(folder)):
        raise ValueError(f"{folder} has pictures, and nothing says what they show: write {folder / 'manifest.jsonl'}, "
                         f"an object on each line, as {_ROW}, or put the views of each object into a folder of its "
                         "own.")
    raise ValueError(f"{folder} is no training data: it has {', '.join(quoted(name) for name in sorted(names)[:5])}; "
                     f"expected {_KINDS}.")


def _training(files: "list[AnyPath]") -> "list[AnyPath]":
    """Those of a split train, where there are such."""
    return [file for file in files if file.name.startswith("train")] or files


def _ending(file: "AnyPath") -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-2:-1] == [".tar"] else "".join(suffixes[-1:])
