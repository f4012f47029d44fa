"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard's files where tensorboardX is installed, and
Weights & Biases where a project there is named."""

import contextlib
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from realcustom_jax.files import write_file

Values = Mapping[str, float | str]


class _Writer(Protocol):
    def write(self, step: int, values: Values) -> None: ...

    def picture(self, step: int, name: str, picture: Image.Image, captions: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class Log:
    """What is known of a run's steps, a context manager.

    Args:
        folder: gets `metrics.jsonl`, `tensorboard/`, `samples/` and `wandb/`; what the first two say of steps from
            `start` on is dropped.
        wandb: a project at Weights & Biases; "": none.
    """

    def __init__(self, folder: Path, start: int, *, wandb: str = ""):
        self._folder = folder
        self._writers: list[_Writer] = [_Lines(folder / "metrics.jsonl", start)]
        with contextlib.suppress(ImportError):
            self._writers.append(_TensorBoard(folder / "tensorboard", start))
        if wandb:
            self._writers.append(_WeightsAndBiases(folder, wandb, start))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for writer in self._writers:
            writer.close()

    def write(self, step: int, values: Values) -> None:
        """A record of a step: numbers, and in metrics.jsonl texts too."""
        for writer in self._writers:
            writer.write(step, values)

    def picture(self, step: int, name: str, picture: Image.Image, captions: Sequence[str] = ()) -> None:
        """A picture made after a step, and what it shows; `samples/` has it by the number of steps that are done."""
        (self._folder / "samples").mkdir(parents=True, exist_ok=True)
        with (self._folder / "samples" / f"{step + 1:06d}.png").open("wb") as file:
            picture.save(file, "PNG")
        for writer in self._writers:
            writer.picture(step, name, picture, captions)


class _Lines:
    """One JSON object a line; no pictures."""

    def __init__(self, file: Path, start: int):
        file.parent.mkdir(parents=True, exist_ok=True)
        _forget(file, start)
        self._file = file.open("a")

    def write(self, step, values):
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self._file.flush()

    def picture(self, step, name, picture, captions):
        pass

    def close(self):
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path, start: int):
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder), purge_step=start)

    def write(self, step, values):
        for name, value in _numbers(values).items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def picture(self, step, name, picture, captions):
        self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if captions:
            self._board.add_text(f"{name}/captions", _listed(captions), step)
        self._board.flush()

    def close(self):
        self._board.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, project: str, start: int):
        # A run that is resumed is the same run there.
        noted = folder / "wandb_run.txt"
        if not start or not noted.is_file():
            write_file(noted, secrets.token_hex(4).encode())
        try:
            import wandb

            self._run = wandb.init(project=project, dir=str(folder), name=folder.name, id=noted.read_text(),
                                   resume="allow")
        except Exception as error:  # wandb's own kinds, of a login, a network or a project
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"Weights & Biases does not take the run ({reason}); log in with `wandb login`, or set "
                             "WANDB_MODE=offline.") from None
        self._picture = wandb.Image

    def write(self, step, values):
        self._run.log(_numbers(values), step=step)

    def picture(self, step, name, picture, captions):
        self._run.log({name: self._picture(picture, caption=_listed(captions))}, step=step)

    def close(self):
        self._run.finish()


def _numbers(values: Values) -> dict[str, float]:
    return {name: value for name, value in values.items() if not isinstance(value, str)}


def _listed(captions: Sequence[str]) -> str:
    return "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))


def _forget(log: Path, start: int) -> None:
    """Drops what a stopped run wrote after its last checkpoint: those steps are done again."""
    if log.is_file():
        kept = [line for line in log.read_text().splitlines(keepends=True) if _step_of(line) < start]
        write_file(log, "".join(kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the half of a line that a kill leaves
        return math.inf
