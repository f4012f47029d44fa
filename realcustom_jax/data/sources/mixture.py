"""Several sources, each shown as often as its weight says.

Each source is a dataset of its own, in its own folder, so that adding one or changing a weight builds nothing of the
others anew. Their rows are numbered one source after the other, and each row has its source's weight: how often it is
shown in relation to the rows of other sources (`data.order.Order` draws them). A source with twice as many rows is
therefore shown twice as often, unless its weight says otherwise.
"""

import dataclasses
import json
import os
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from realcustom_jax.data.sources import Source, open_source
from realcustom_jax.data.sources.schema import Naming
from realcustom_jax.errors import check_choice, quoted
from realcustom_jax.paths import as_path

_MOST = 1e9  # of a weight; with larger ratios, rows of the smaller one are never shown, and sums of weights overflow


@dataclasses.dataclass(frozen=True)
class MixtureEntry:
    """One source of a mixture, with its weight."""

    path: str
    weight: float = 1.0
    columns: tuple[tuple[str, str], ...] = ()
    word: str = ""

    def source(self) -> Source:
        """See `open_source`."""
        return open_source(self.path, columns=dict(self.columns), word=self.word)


def read_mixture(given: str | os.PathLike | Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] | None = None,
                 word: str = "") -> tuple[MixtureEntry, ...]:
    """The sources of a mixture.

    Args:
        given: a list of {"path", "weight"?, "columns"?, "word"?}; or a .json file with such a list, or a .py file that
            sets `sources` to one, in which paths are relative to the file's folder; or one source's path.
        columns, word: of the sources that say none of their own.
    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no such list; says what is wrong.
    """
    naming = Naming.of(columns or {}, word)
    if not isinstance(given, str | os.PathLike):
        return _entries(given, "sources", naming)
    path = os.fspath(given)
    if not path.endswith((".json", ".py")):
        return (MixtureEntry(path, 1.0, naming.columns, naming.word),)
    entries = _entries(_listed(path), path, naming)
    return tuple(dataclasses.replace(entry, path=_below(path, entry.path)) for entry in entries)


def _listed(path: str) -> Any:
    file = as_path(path)
    if not file.exists():
        raise FileNotFoundError(f"There is no mixture {path}; expected a list of sources.")
    if path.endswith(".py"):
        try:
            return runpy.run_path(os.fspath(file)).get("sources")
        except (Exception, SystemExit) as error:  # it is the user's program
            raise ValueError(f"{path} fails: {type(error).__name__}: {error}") from None
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None


def _entries(given: Any, where: str, naming: Naming) -> tuple[MixtureEntry, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"{where} is {quoted(given)}; expected a list of {{\"path\": …, \"weight\": …}}.")
    return tuple(_entry(one, f"{where}[{number}]", naming) for number, one in enumerate(given))


def _entry(given: Any, where: str, usual: Naming) -> MixtureEntry:
    known = [field.name for field in dataclasses.fields(MixtureEntry)]
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {quoted(given)}; expected an object with {', '.join(known)}.")
    for key in given:
        check_choice(f"key in {where}:", key, known)
    path, weight = given.get("path"), given.get("weight", 1.0)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{where}.path is {quoted(path)}; expected where the source lies.")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 1 / _MOST <= weight <= _MOST:
        raise ValueError(f"{where}.weight is {quoted(weight)}; expected a number above 0, from {1 / _MOST:g} to "
                         f"{_MOST:g}: how often its rows are shown.")
    naming = Naming.of(given.get("columns", dict(usual.columns)), given.get("word", usual.word))
    return MixtureEntry(path, float(weight), naming.columns, naming.word)


def _below(file: str, path: str) -> str:
    """A path that a file names."""
    return path if "://" in path else os.path.join(os.path.dirname(file), path)
