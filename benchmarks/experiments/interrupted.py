"""Is a run that was killed, divided over devices or spread over processes the run that was left alone?

    python -m benchmarks.experiments.interrupted --workdir runs/mini

Trains the miniature's adapter with train.py for a few steps, on the frozen parts in WORKDIR/bundle (the bundled
miniature's where there is none) and a small bank of paintings, in the ways below, and compares losses and the bytes of
the adapter with those of the first. All is written to a temporary folder.

    one            one device
    one | one      killed (SIGKILL) once half of the steps are saved, and started again
    eight          eight simulated devices
    four+four      two processes of four
    eight | four+four, four+four | eight    the one killed, the other continues from its checkpoint
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import parser_of
from realcustom_jax.model_files.locate import ASSETS

WAYS = {"one": (1,), "eight": (8,), "four+four": (4, 4)}
RUNS = [("one",), ("one", "one"), ("eight",), ("four+four",), ("eight", "four+four"), ("four+four", "eight")]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/mini"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for run in tqdm(RUNS, unit="run"):
            place = branch(options.workdir, Path(folder) / str(len(rows)), Path(folder) / "bank")
            for way in run[:-1]:
                train(place, WAYS[way], options, kill=True)
            train(place, WAYS[run[-1]], options)
            rows.append((" \\| ".join(run), losses(place), adapter(place)))
    _, first, bytes_of_first = rows[0]
    title = f"{options.steps} steps of {options.batch_size} pairs"
    print(f"| {title} | last loss | largest difference of a loss | adapter |")
    print("|---|--:|--:|---|")
    for name, found, tensors in rows:
        assert found.keys() == first.keys() == set(range(options.steps)), f"{name}: losses of {sorted(found)}"
        difference = max(abs(found[step] - first[step]) for step in first)
        same = "the same bytes" if tensors == bytes_of_first else "other bytes"
        print(f"| {name} | {found[options.steps - 1]:.8f} | {difference:.1e} | {same} |")


def branch(workdir: Path, place: Path, bank: Path) -> Path:
    """Makes `place`, with a copy of the parts of `workdir` and the paintings in `bank`, which serve all runs."""
    bank.mkdir(exist_ok=True)
    trained = workdir / "bundle"
    shutil.copytree(trained if trained.is_dir() else ASSETS / "mini", place / "bundle")
    (place / "bank").symlink_to(bank)
    return place


def train(place: Path, devices: tuple[int, ...], options: argparse.Namespace, kill: bool = False) -> None:
    """train.py, a process for each of `devices`; with `kill` only until half of the steps are saved."""
    adapter, half = "--config.optimization.adapter", options.steps // 2
    command = [sys.executable, "train.py", "--config=configs/mini.py", f"--workdir={place}", "--config.stage=adapter",
               "--config.data.identities=360", "--config.data.scenes=8",
               f"{adapter}.steps={options.steps}", f"{adapter}.batch_size={options.batch_size}",
               f"{adapter}.save_every={half}", f"{adapter}.sample_every=0", f"{adapter}.log_every=1"]
    if len(devices) > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            command += [f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={len(devices)}"]
    with (place / "log.txt").open("a") as log:
        processes = [
            subprocess.Popen(
                [*command, *([f"--process_id={i}"] if len(devices) > 1 else [])], stdout=log, stderr=log,
                env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"})
            for i, count in enumerate(devices)]
        if kill:
            while not (place / "adapter" / "checkpoints" / str(half)).is_dir() and processes[0].poll() is None:
                time.sleep(0.1)
            for process in processes:
                process.kill()
        codes = [process.wait() for process in processes]
    if any(codes) and not kill:
        sys.exit(f"train.py failed: {(place / 'log.txt').read_text()[-2000:]}")


def losses(place: Path) -> dict[int, float]:
    """Of each step, as it was last logged."""
    lines = (place / "adapter" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


def adapter(place: Path) -> bytes:
    return (place / "bundle" / "adapter" / "realcustom.safetensors").read_bytes()


if __name__ == "__main__":
    main()
