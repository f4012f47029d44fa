"""Checkpoints of a training run (Orbax): written beside the training, kept by rule, and never trusted blindly.

What a checkpoint holds is what training changes: trainable parameters, their average, the optimizer, the step. Frozen
weights are not written again, and the batches need no position of their own: batch and random key follow from the step.
"""

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from realcustom_jax.devices.shared_disk import all_agree, on_first_process
from realcustom_jax.errors import check_choice
from realcustom_jax.files import write_json
from realcustom_jax.paths import absolute, remove_tree

ON_EXISTING: tuple[str, ...] = ("resume", "overwrite", "refuse")
"""What a run does with the checkpoints that it finds in its folder."""


def check_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Raises ValueError where `folder` holds checkpoints of another run than `run`, JSON values that say what it is
    about. What only one of the two says does not count, so that later versions may say more."""
    file, run = folder / "run.json", json.loads(json.dumps(dict(run)))
    if not file.is_file() or not any(folder.glob("[0-9]*")):
        return
    try:
        noted = json.loads(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file}, which says whose checkpoints these are, is damaged; delete it if they are this "
                         "run's, or choose another workdir.") from None
    for key, here in run.items():
        if key in noted and noted[key] != here:
            raise ValueError(f"{folder} belongs to another run: {key} is {noted[key]!r} there and {here!r} here. "
                             f"Choose another workdir, or overwrite it; if it is the same run, delete {file}.")


class Checkpoints:
    """The checkpoints in `folder`, newest last; a context manager that waits for the last write.

    Args:
        keep: how many of the newest stay. keep_every: those of steps divisible by it stay too; 0: none.
        on_existing: "resume" continues from them, "overwrite" deletes them, "refuse" is an error.
        run: what the run is about, JSON values; kept in `run.json`, so that none continues another one's checkpoints.
    Raises:
        FileExistsError: there are checkpoints, and `on_existing` refuses.
        ValueError: there are checkpoints of another run.
        OSError, from `save` on: the disk is full; the checkpoints before the one being written are intact.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int = 0, on_existing: str = "resume",
                 run: Mapping[str, Any] | None = None):
        check_choice("on_existing", on_existing, ON_EXISTING)
        self.folder = absolute(folder)
        if on_existing != "resume" and any(self.folder.glob("[0-9]*")):
            if on_existing == "refuse":
                raise FileExistsError(f"{self.folder} holds checkpoints of an earlier run: resume or overwrite it "
                                      "(on_existing), or choose another folder.")
            on_first_process(lambda: remove_tree(self.folder))
        check_run(self.folder, run or {})
        on_first_process(lambda: write_json(self.folder / "run.json", run or {}))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every or None)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.wait()
        finally:
            self._manager.close()

    def save(self, step: int, state: Any) -> None:
        """Starts writing `state` after `step` steps; the arrays may be changed or donated once it returns."""
        if step not in self._manager.all_steps():
            with self._naming_a_full_disk():
                self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, wanted: Any) -> Any | None:
        """The newest state that can be read, laid out as `wanted`, shapes with shardings; None where there is none. One
        that cannot be read is set aside with a warning, and the one before it is taken.

        Raises:
            ValueError: the newest was written by a run of other settings, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            restored, error = None, None
            try:
                self._check_shapes(step, wanted)
                restored = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
            except _OtherSettings:
                raise
            except Exception as caught:  # Orbax and TensorStore raise many kinds for a damaged file
                if isinstance(caught, MemoryError) or "RESOURCE_EXHAUSTED" in str(caught):
                    raise
                error = caught
            if all_agree(error is None):
                return restored
            self._set_aside(step, error)
        if steps:
            raise ValueError(f"None of the checkpoints in {self.folder} can be read; they are kept as damaged-*. Run "
                             "the same command again to begin anew.")
        return None

    def wait(self) -> None:
        """Until everything is written."""
        with self._naming_a_full_disk():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _naming_a_full_disk(self):
        try:
            yield
        except Exception as error:  # TensorStore's is a ValueError, Python's an OSError
            if not any(reason in str(error) for reason in ("No space left on device", "Disk quota exceeded")):
                raise
            with contextlib.suppress(Exception):  # the one before may still be being written
                self._manager.wait_until_finished()
            steps = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
            kept = f"the checkpoint of step {max(steps)} is intact" if steps else "no checkpoint was written"
            raise OSError(f"The disk of {self.folder} is full: training stopped; {kept}. Make room and run the same "
                          "command again.") from None

    def _check_shapes(self, step: int, wanted: Any) -> None:
        """Raises _OtherSettings if a checkpoint holds other arrays than are wanted, before a byte of them is read."""
        metadata = ocp.PyTreeCheckpointer().metadata(self.folder / str(step) / "default").item_metadata.tree
        held, expected = ({jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in
                           jax.tree_util.tree_leaves_with_path(tree)} for tree in (metadata, wanted))
        for name in sorted(held.keys() | expected.keys()):
            if held.get(name) != expected.get(name):
                raise _OtherSettings(
                    f"The checkpoint {self.folder / str(step)} was written by a run of other settings: {name} has "
                    f"shape {held.get(name, 'none')} there and {expected.get(name, 'none')} here. Choose another "
                    "folder, or on_existing=overwrite.")

    def _set_aside(self, step: int, error: Exception | None) -> None:
        damaged = self.folder / str(step)
        taken = (damaged.with_name(f"damaged-{step}{suffix}") for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
        aside = next(path for path in taken if not path.exists())
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"The checkpoint {damaged} cannot be read ({first_line[:200]}); it is kept as {aside.name}, and "
                      "the one before it is looked at.", stacklevel=3)
        on_first_process(lambda: damaged.rename(aside))
        self._manager.reload()


class _OtherSettings(ValueError):
    pass
