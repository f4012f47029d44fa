"""What a dataset holds, as lines of text."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from realcustom_jax.data.dataset import read_about
from realcustom_jax.data.index import Index
from realcustom_jax.data.records import CUT_OUT, PLACED_ANEW
from realcustom_jax.data.shards import read_markers
from realcustom_jax.paths import as_path

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_SHAPES = {"1:2": 1 / 2, "9:16": 9 / 16, "2:3": 2 / 3, "3:4": 3 / 4, "1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2,
           "16:9": 16 / 9, "2:1": 2.0}
_SHOWN = 10


def describe(folder: "str | os.PathLike | AnyPath") -> list[str]:
    """Rows, sizes and shapes of targets, kinds of references, broken rows and bytes of a dataset, finished or not.

    Raises FileNotFoundError: there is no dataset; ValueError: it is damaged, or of another version.
    """
    folder = as_path(folder)
    about = read_about(folder)
    if about is None:
        raise FileNotFoundError(f"There is no dataset in {folder}; build one first.")
    finished = [marker for marker in read_markers(folder, about.shards, about.identity) if marker is not None]
    index = Index.concatenate([Index.of([]), *(marker.index for marker in finished)])
    size = sum(marker.size for marker in finished)
    lines = [f"{folder}: {len(index)} rows in {len(finished)} shards, {size / 1e9:.3f} GB, side {about.side}, identity "
             f"{about.identity[:16]}"]
    if len(finished) < about.shards:
        lines.append(f"not finished: {about.shards - len(finished)} of {about.shards} shards are missing")
    elif not (folder / "index.npz").exists():
        lines.append("not finished: the command that builds it, given again, finishes it")
    if len(index):
        lines += _pictures(index)
    broken = [line for marker in finished for line in marker.broken]
    lines.append(f"broken rows: {len(broken)}")
    lines += [f"  {line}" for line in broken[:_SHOWN]] + ["  …"] * (len(broken) > _SHOWN)
    return lines


def _pictures(index: Index) -> list[str]:
    of_row = np.repeat(np.arange(len(index)), np.diff(index.pictures))
    targets = index.sizes[np.arange(len(index.sizes)) - index.pictures[of_row] < index.targets[of_row]]
    sides = np.sqrt(np.prod(targets.astype(float), axis=-1))
    kinds = {"cut out of the target": index.choice[:, 1] == CUT_OUT,
             "placed anew": index.choice[:, 1] == PLACED_ANEW, "other pictures": index.choice[:, 1] >= 0}
    names, ratios = list(_SHAPES), np.array(list(_SHAPES.values()))
    nearest = np.abs(np.log(targets[:, 1] / targets[:, 0])[:, None] - np.log(ratios)).argmin(axis=-1)
    shapes = Counter(names[i] for i in nearest)
    lines = [f"targets: {len(targets)} pictures of about {sides.min():.0f}² to {sides.max():.0f}² pixels, the median "
             f"{np.median(sides):.0f}²"]
    lines.append("shapes (width : height): " + _counts({name: shapes[name] for name in names}))
    if groups := int((index.targets > 1).sum()):
        lines.append(f"groups of views: {groups} rows")
    lines.append("references: " + _counts({name: int(which.sum()) for name, which in kinds.items()}))
    lines.append(f"different subjects: {len(np.unique(index.identity))}")
    return lines


def _counts(found: dict[str, int] | Sequence) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items() if count)
