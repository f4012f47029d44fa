"""Checkpoints of a training run (Orbax): written beside the training, kept by rule, and never trusted blindly.

What a checkpoint holds is what training changes: trainable parameters, their average, the optimizer, the step. Frozen
weights are not written again, and the batches need no position of their own: batch and random key follow from the step.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from realcustom_jax.devices.shared_disk import all_agree, on_first_process
from realcustom_jax.disk import is_full
from realcustom_jax.errors import check_choice
from realcustom_jax.files import sole_user
from realcustom_jax.paths import absolute, listing, make_folder, remove_tree
from realcustom_jax.training import checksums
from realcustom_jax.training.console import quiet_reads, sentences_only
from realcustom_jax.training.identity import RunIdentity

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_STATE, _CHECKSUMS = "default", "checksums"  # the items of a checkpoint; the first is Orbax's name for a single one

ON_EXISTING: tuple[str, ...] = ("resume", "overwrite", "refuse")
"""What a run does with the checkpoints that it finds in its folder."""


class Checkpoints:
    """The checkpoints in `folder`, newest last; a context manager that waits for the last write.

    Args:
        keep: how many of the newest stay. keep_every: those of steps divisible by it stay too; 0: none.
        on_existing: "resume" continues from them, "overwrite" deletes them, "refuse" is an error.
        run: what the run is about; kept in `run.json`, so that none continues another one's checkpoints.
    Raises:
        FileExistsError: there are checkpoints, and `on_existing` refuses.
        ValueError: there are checkpoints of another run.
        BlockingIOError: another process that still runs writes its checkpoints there.
        OSError, from `save` on: the disk is full; the checkpoints before the one being written are intact.
    """

    def __init__(self, folder: "AnyPath", *, keep: int = 2, keep_every: int = 0, on_existing: str = "resume",
                 run: RunIdentity | None = None):
        check_choice("on_existing", on_existing, ON_EXISTING)
        self.folder, self._run = absolute(folder), run or RunIdentity()
        self._run.check(self.folder, on_existing)
        with contextlib.ExitStack() as opened:
            opened.enter_context(sentences_only())
            on_first_process(lambda: opened.enter_context(_alone(self.folder, empty=on_existing == "overwrite")))
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(_STATE, _CHECKSUMS))
            opened.callback(self._manager.close)
            self._set_unfinished_aside()
            if not self._manager.all_steps():
                on_first_process(lambda: self._run.note(self.folder))
            self._opened = opened.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._opened:
            self.wait()

    def save(self, step: int, state: Any) -> None:
        """Starts writing `state` after `step` steps; the arrays may be changed or donated once it returns.

        Raises:
            FloatingPointError: a number in it is not finite; nothing is written.
        """
        if step in self._manager.all_steps():
            return
        record = checksums.record(state)
        if broken := checksums.not_finite(record):
            kept = f"the checkpoint of step {max(steps)} is intact" if (steps := self._written()) else "there is none"
            raise FloatingPointError(f"after step {step}, {_listed(broken)} is not finite: training stopped, and this "
                                     f"is not saved; {kept}. Lower the learning rate and run the same command again.")
        with self._naming_a_full_disk():
            self._manager.save(step, force=True, args=ocp.args.Composite(**{
                _STATE: ocp.args.StandardSave(state), _CHECKSUMS: ocp.args.JsonSave(checksums.to_json(record))}))

    def restore(self, wanted: Any) -> Any | None:
        """The newest state that is what was saved, laid out as `wanted`, shapes with shardings; None where there is
        none. One that cannot be read, is damaged or is not finite is set aside with a warning, and the one before it is
        taken. What changed of how the run is optimised is said and noted.

        Raises:
            ValueError: the newest was written by a run of other settings, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            with quiet_reads():
                restored, problem = self._read(step, wanted)
            if all_agree(problem is None):
                problem = self._problem_of(step, restored)
            if all_agree(problem is None):
                self._note_changes(step)
                return restored
            self._set_aside(step, problem)
        if steps:
            raise ValueError(f"None of the checkpoints in {self.folder} can be used; they are kept as damaged-*. Run "
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
            if not is_full(error):
                raise
            with contextlib.suppress(Exception):  # the one before may still be being written
                self._manager.wait_until_finished()
            kept = f"the checkpoint of step {max(steps)} is intact" if (steps := self._written()) \
                else "no checkpoint was written"
            raise OSError(f"The disk of {self.folder} is full: training stopped; {kept}. Make room and run the same "
                          "command again.") from None

    def _written(self) -> list[int]:
        return [int(path.name) for path in listing(self.folder) if path.name.isdigit()]

    def _read(self, step: int, wanted: Any) -> tuple[Any, str | None]:
        """(the state, None), or (None, what is wrong with it)."""
        try:
            self._check_arrays(step, wanted)
            return self._manager.restore(step, args=ocp.args.Composite(
                **{_STATE: ocp.args.StandardRestore(wanted)}))[_STATE], None
        except _OtherSettings:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            return None, f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"

    def _check_arrays(self, step: int, wanted: Any) -> None:
        """Raises _OtherSettings if a checkpoint holds other arrays than are wanted, before a byte of them is read."""
        saved = self._saved_record(step)
        if saved is None:
            tree = ocp.PyTreeCheckpointer().metadata(self.folder / str(step) / _STATE).item_metadata.tree
            held = {name: (jnp.dtype(x.dtype).name, tuple(x.shape))
                    for name, x in checksums.leaves_by_name(tree).items()}
        else:
            held = {name: (dtype, shape) for name, (dtype, shape, *_) in saved.items()}
        expected = {name: (x.dtype.name, tuple(x.shape)) for name, x in checksums.leaves_by_name(wanted).items()}
        for name in sorted(held.keys() | expected.keys()):
            there, here = (" ".join(map(str, found[name])) if name in found else "none" for found in (held, expected))
            if there != here:
                raise _OtherSettings(
                    f"The checkpoint {self.folder / str(step)} was written by a run of other settings: {name} is "
                    f"{there} there and {here} here. Choose another folder, or on_existing=overwrite.")

    def _saved_record(self, step: int) -> checksums.Record | None:
        """What was noted of the arrays when they were saved; None of a checkpoint of before that was done."""
        if not (self.folder / str(step) / _CHECKSUMS).exists():
            return None
        return checksums.from_json(self._manager.restore(step, args=ocp.args.Composite(
            **{_CHECKSUMS: ocp.args.JsonRestore()}))[_CHECKSUMS])

    def _problem_of(self, step: int, restored: Any) -> str | None:
        """What is wrong with a state that could be read."""
        found, saved = checksums.record(restored), self._saved_record(step)
        if saved is None:
            _say(f"The checkpoint of step {step} has no checksums, as an older version wrote it: it is not verified.")
        elif changed := [name for name in found if found[name][:3] != saved[name][:3]]:
            return f"is damaged: {_listed(changed)} is not what was saved"
        if broken := checksums.not_finite(found):
            return f"was saved by a run that had failed: {_listed(broken)} is not finite"
        return None

    def _note_changes(self, step: int) -> None:
        for name, (before, here) in self._run.changes(self.folder).items():
            _say(f"{name}: {before} -> {here} from step {step} on")
        on_first_process(lambda: self._run.note(self.folder, step))

    def _set_unfinished_aside(self) -> None:
        """Folders that have a step's name, and are not what was finished: Orbax would neither read nor replace them."""
        finished = self._manager.all_steps()
        for step in sorted(set(self._written()) - set(finished)):
            self._set_aside(step, "is not whole (the mark that it was finished is missing)")

    def _set_aside(self, step: int, problem: str | None) -> None:
        damaged = self.folder / str(step)
        taken = (damaged.with_name(f"damaged-{step}{suffix}") for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
        aside = next(path for path in taken if not path.exists())
        warnings.warn(f"The checkpoint {damaged} {problem or 'cannot be read by another process'}; it is kept as "
                      f"{aside.name}, and the one before it is looked at.", stacklevel=3)
        on_first_process(lambda: damaged.rename(aside))
        self._manager.reload()


@contextlib.contextmanager
def _alone(folder: "AnyPath", *, empty: bool) -> Iterator[None]:
    """Makes the folder, of this process alone until the block ends; `empty`: without what is in it."""
    make_folder(folder)
    with sole_user(folder):
        if empty:
            for path in listing(folder):
                remove_tree(path)
        yield


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr)


class _OtherSettings(ValueError):
    pass
