"""Checkpoints of a training run (Orbax): written beside the training, kept by rule, and never trusted blindly.

What a checkpoint holds is what training changes: trainable parameters, their average, the optimizer, the step. Frozen
weights are not written again, and the batches need no position of their own: batch and random key follow from the step.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from realcustom_jax.choices import check_choice

ON_EXISTING: tuple[str, ...] = ("resume", "overwrite", "refuse")
"""What a run does with the checkpoints that it finds in its folder."""


class Checkpoints:
    """The checkpoints in `folder`, newest last; a context manager that waits for the last write.

    Args:
        keep: how many of the newest stay. keep_every: those of steps divisible by it stay too.
        on_existing: "resume" continues from them, "overwrite" deletes them, "refuse" is an error.
    Raises:
        FileExistsError: there are checkpoints, and `on_existing` refuses.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int | None = None, on_existing: str = "resume"):
        check_choice("on_existing", on_existing, ON_EXISTING)
        self.folder = folder.absolute()
        if on_existing != "resume" and any(self.folder.glob("[0-9]*")):
            if on_existing == "refuse":
                raise FileExistsError(f"{self.folder} holds checkpoints of an earlier run: resume or overwrite it, or "
                                      "choose another folder.")
            shutil.rmtree(self.folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: Any) -> None:
        """Starts writing `state` after `step` steps; the arrays may be changed or donated once it returns."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, state: Any) -> Any:
        """The newest state that can be read, laid out as `state` (arrays, or shapes with shardings); `state` itself
        where there is none. One that cannot be read is set aside with a warning, and the one before it is taken."""
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                self._set_aside(step, error)
        return state

    def wait(self) -> None:
        """Until everything is written."""
        self._manager.wait_until_finished()

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self.folder / str(step)
        aside = damaged.with_name(f"damaged-{step}")
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"The checkpoint {damaged} cannot be read ({first_line[:200]}); it is kept as {aside.name}, and "
                      "the one before it is taken.", stacklevel=3)
        if jax.process_index() == 0:
            damaged.rename(aside)
        self._manager.reload()
