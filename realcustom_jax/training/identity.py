"""What a run is about: what its checkpoints are compared by before they are continued, kept in `run.json` beside them.

What a run computes depends on some values so much that another one is another run: it is refused, before anything is
built. Others may change on the way, such as the learning rate: this is said, and noted with the step.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.errors import quoted
from realcustom_jax.files import write_json

FILE = "run.json"
_FIXED_SETTINGS = ("seed", "batch_size", "optimizer")
"""Of how a run is optimised: rows, their order and the optimizer's arrays follow from them."""
_SETTINGS, _CHANGES = "settings", "changes"


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """JSON values by name. What only one of two versions says does not count, so that later ones may say more."""

    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What makes it this run and no other."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What may change while it goes on."""

    @classmethod
    def of(cls, run: Mapping[str, Any] | None, settings: Any) -> "RunIdentity":
        """Of what a run says of itself, and of its `loop.TrainSettings`."""
        said = dataclasses.asdict(settings)
        said.pop("on_existing")  # what to do with checkpoints is no property of them
        fixed = {name: said.pop(name) for name in _FIXED_SETTINGS} | dict(run or {})
        return cls(fixed, {name: value for name, value in said.items() if name not in fixed})

    def check(self, folder: Path, on_existing: str = "resume") -> None:
        """Whether the checkpoints in `folder`, if there are any, may be continued. Changes nothing.

        Raises:
            ValueError: they belong to another run; names the first value that differs. Or `run.json` is damaged.
            FileExistsError: there are checkpoints, and `on_existing` is "refuse".
        """
        if not has_checkpoints(folder) or on_existing == "overwrite":
            return
        if on_existing == "refuse":
            raise FileExistsError(f"{folder} holds checkpoints of an earlier run: resume or overwrite it "
                                  "(on_existing), or choose another folder.")
        noted = _read(folder / FILE)
        for key, here in _plain(self.fixed).items():
            if key in noted and noted[key] != here:
                there, here = _differing(noted[key], here)
                raise ValueError(
                    f"{folder} belongs to another run: {key} is {quoted(there)} there and {quoted(here)} here. "
                    f"Choose another workdir, or overwrite it; if it is the same run, delete {folder / FILE}.")

    def changes(self, folder: Path) -> dict[str, tuple[Any, Any]]:
        """(there, here) of each setting that is another one than `folder` notes."""
        noted, here = _read(folder / FILE).get(_SETTINGS, {}), _plain(self.settings)
        return {name: (noted[name], here[name]) for name in here if name in noted and noted[name] != here[name]}

    def note(self, folder: Path, step: int | None = None) -> None:
        """Writes `run.json`; with `step`, that of the checkpoint which is continued, what was noted before is kept and
        what changes from there on is added."""
        noted, changed = {}, []
        if step is not None:
            noted = _read(folder / FILE)
            changed = [{"step": step, **changes}] if (changes := self.changes(folder)) else []
        history = [*noted.get(_CHANGES, ()), *changed]
        write_json(folder / FILE, _plain(noted | self.fixed | {_SETTINGS: self.settings, _CHANGES: history}))


def has_checkpoints(folder: Path) -> bool:
    """Whether a run's `checkpoints` folder has any."""
    return any(path.name.isdigit() for path in folder.glob("[0-9]*"))


def _differing(there: Any, here: Any) -> tuple[Any, Any]:
    """Two values that differ; of two objects only what differs in them."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return there, here
    found = {name: _differing(there.get(name), here.get(name)) for name in there | here
             if there.get(name) != here.get(name)}
    return tuple({name: pair[side] for name, pair in found.items()} for side in (0, 1))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: lists for tuples."""
    return json.loads(json.dumps(dict(values)))


def _read(file: Path) -> dict[str, Any]:
    """What is noted; nothing where there is no file."""
    try:
        noted = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, IsADirectoryError):
        noted = None
    if not isinstance(noted, dict) or not isinstance(noted.get(_SETTINGS, {}), dict) \
            or not isinstance(noted.get(_CHANGES, []), list):
        raise ValueError(f"{file}, which says whose checkpoints these are, is damaged; delete it if they are this "
                         "run's, or choose another workdir.")
    return noted
