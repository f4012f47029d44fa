"""Sources of training data: what lies at a path, as rows. docs/training/data.md describes each kind.

    PATH --open_source--> Source --parts--> Part, Part … --rows--> Row | BrokenRow
"""

from collections.abc import Mapping

from etils import epath

from realcustom_jax.data.sources.manifest import Manifest
from realcustom_jax.data.sources.parts import BrokenRow, Part, Source
from realcustom_jax.data.sources.schema import Naming

__all__ = ["BrokenRow", "Part", "Source", "open_source"]


def open_source(path: str, *, columns: Mapping[str, str] | None = None, word: str = "") -> Source:
    """The source at a path, of the kind that is found there.

    Args:
        columns: the source's own names for keys of a row, as {"caption": "prompt"}.
        word: the subject's word in rows that have none.
    Raises:
        FileNotFoundError: there is nothing. ValueError: it is no source, or has no row that could be used; says what
            was found, and what was expected.
    """
    naming = Naming.of(columns or {}, word)
    folder = epath.Path(path)
    files = tuple(sorted(folder.glob("manifest*.jsonl"))) if folder.is_dir() else ()
    if not files:
        raise FileNotFoundError(f"There is no manifest.jsonl in {folder}; it lists the pictures, one object a line.")
    return Manifest(files, naming)
