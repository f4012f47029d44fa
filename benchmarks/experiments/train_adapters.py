"""Trains the adapters of the study's rows: each is the bundled miniature's own, but for one choice.

    python -m benchmarks.experiments.train_adapters --workdir runs/adapters                # from nothing
    python -m benchmarks.experiments.train_adapters --workdir runs/adapters --further 300  # on from the bundled one
    python -m benchmarks.experiments.train_adapters --workdir runs/adapters --anew 600     # a new projector each
    python -m benchmarks.experiments.study --out runs/study --adapters runs/adapters/trained

Each is a call of train.py in a folder of its own; all share the bank of paintings. Where it is stopped, by you or by
`--seconds`, the same command goes on. On a GPU several train side by side (`--together`): one takes 110 s of an H200
for its steps from nothing, plus compiling. Without a GPU `--further` says what a choice does to an adapter that is
there; what it is compared with has gone on as long, unchanged. `--anew` compares projectors, each of which begins
anew under the bundled adapter's keys and values. A step of 32 pairs takes 1.8 s of 2 cores, with
XLA_FLAGS=--xla_force_host_platform_device_count=2.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree

import jax
from tqdm import tqdm

from benchmarks.common import parser_of
from benchmarks.experiments.interrupted import branch
from configs.mini import get_config
from realcustom_jax import interruption
from realcustom_jax.data.sprites.bank import BankConfig, paint_bank
from realcustom_jax.errors import check_choice
from realcustom_jax.model_files.adapter import adapter_tensors, find_adapter
from realcustom_jax.model_files.bundle import save_part, to_half
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.weights import PROJECTOR_PREFIX, load_projector

_RECIPE = "--config.curriculum.recipe"
_PROJECTOR = "--config.models.adapter.image_prompt_settings.vision_projection_config"
_LAYERS = "--config.models.adapter.vision_settings"
_OF_PAIRS = {
    "recontextualisation": (f"{_RECIPE}=recontextualisation",),
    "bystanders": ("--config.adapter.bystanders=0.5",),
    "masked": ("--config.adapter.masked=0.9",),
    "taught": ("--config.adapter.taught=0.75",),
    "spelled": ("--config.adapter.spelled=0.1",),
    # Every reference has a second thing, and none is cut from its target.
    "second": ("--config.adapter.second=1.0", f"{_RECIPE}=recontextualisation"),
}
_OF_PROJECTORS = {
    "highres": (f"{_PROJECTOR}.variant=highres", f"{_LAYERS}.siglip_layers=[3]", f"{_LAYERS}.dino_layers=[3]"),
    "shallow": (f"{_PROJECTOR}.variant=shallow",),
}
ADAPTERS = {"reconstruction": (f"{_RECIPE}=reconstruction",), **_OF_PAIRS, **_OF_PROJECTORS}
"""What is added to `python train.py --config=configs/mini.py --config.stage=adapter` for each of them."""
FURTHER = {f"further/{name}": flags for name, flags in {"unchanged": (), **_OF_PAIRS}.items()}
"""Likewise, for those that begin as the bundled adapter. A projector without one of its streams is too far from it:
after 60 steps its loss was still four times the bundled one's."""
ANEW = {f"anew/{name}": flags for name, flags in {"paper": (), **_OF_PROJECTORS}.items()}
"""Likewise, for those whose projector begins anew, under the bundled adapter's visual keys and values."""
_CHECK_EVERY = 2.0  # seconds


def train(workdir: Path, name: str, steps: int, batch_size: int) -> subprocess.Popen:
    """train.py of one adapter, in `workdir/name`, whose log is `log.txt` there. 0 steps, or a batch of 0: as many as
    the configuration says."""
    place = workdir / name
    if not (place / "bundle").is_dir():
        branch(workdir, place, (workdir / "bank").absolute())
    optimization = "--config.optimization.adapter"
    flags = [*(ADAPTERS | FURTHER | ANEW)[name], f"{optimization}.sample_every=0"]
    if name in FURTHER:
        # Half of the rate that the bundled adapter began with: it is to move, and not to be lost.
        flags += [f"--config.warm_start={ASSETS / 'mini'}", f"{optimization}.learning_rate=1e-3"]
    if name in ANEW:
        if not (place / "begun").is_dir():
            begin_anew(place / "begun", name.removeprefix("anew/"))
        flags.append(f"--config.warm_start={place / 'begun'}")
    if steps:
        flags += [f"{optimization}.steps={steps}", f"{optimization}.save_every=100"]
    if batch_size:
        flags.append(f"{optimization}.batch_size={batch_size}")
    with (place / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", "--config=configs/mini.py", f"--workdir={place}", "--config.stage=adapter",
             *flags], stdout=log, stderr=log, env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def begin_anew(folder: Path, variant: str) -> None:
    """Writes the bundled adapter to `folder`/adapter, with a new projector of the variant. The new one's tokens have
    unit variance, as those of the bundled one have, so that the keys and values meet what they know."""
    config = get_config().models.adapter.to_dict()
    config["image_prompt_settings"]["vision_projection_config"]["variant"] = variant
    module, projector = load_projector(config, init_missing=("vision",), rng=jax.random.key(0))
    if not module.config.with_structure:
        for layers in ("siglip_layers", "dino_layers"):
            config["vision_settings"][layers] = config["vision_settings"][layers][-1:]
    bundled = find_adapter(ASSETS / "mini" / "adapter").tensors
    vision = {name: bundled[name] for name in bundled if not name.startswith(PROJECTOR_PREFIX)}
    save_part(folder, "adapter", config, to_half(vision | adapter_tensors(projector, {})))


def train_all(workdir: Path, names: list[str], *, steps: int, batch_size: int, together: int, seconds: float) -> None:
    """Trains what is not there yet; after `seconds`, whatever runs is asked to save and stop.

    Raises RuntimeError, which names the log, for a training that failed.
    """
    paint_bank(BankConfig(**get_config().data.to_dict()), workdir / "bank")
    deadline = time.monotonic() + seconds
    waiting = [name for name in names if not (workdir / "trained" / name).is_dir()]
    running: dict[str, subprocess.Popen] = {}
    with interruption.raised(), tqdm(total=len(names), initial=len(names) - len(waiting), unit="adapter") as bar:
        try:
            while (running or waiting) and time.monotonic() < deadline:
                while waiting and len(running) < together:
                    name = waiting.pop(0)
                    running[name] = train(workdir, name, steps, batch_size)
                bar.set_postfix_str(", ".join(running))
                time.sleep(_CHECK_EVERY)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    if code := running.pop(name).returncode:
                        raise RuntimeError(f"{name} ended with {code}; see {workdir / name / 'log.txt'}.")
                    copytree(workdir / name / "bundle" / "adapter", workdir / "trained" / name)
                    bar.update()
        finally:
            for process in running.values():
                process.terminate()  # train.py saves, and ends
            for process in running.values():
                process.wait()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--names", nargs="*", help="of the adapters; all by default")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--further", type=int, metavar="STEPS", help="steps after the bundled adapter's")
    start.add_argument("--anew", type=int, metavar="STEPS", help="steps of a new projector under the bundled adapter's "
                       "keys and values")
    parser.add_argument("--batch-size", type=int, help="the configuration's by default; 32 with --further and --anew")
    parser.add_argument("--together", type=int, default=1, help="how many train side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which it saves and stops")
    options = parser.parse_args()
    there = FURTHER if options.further else ANEW if options.anew else ADAPTERS
    for name in options.names or ():
        check_choice("adapter", name, tuple(there))
    steps = options.further or options.anew or 0
    options.workdir.mkdir(parents=True, exist_ok=True)
    train_all(options.workdir, options.names or list(there), steps=steps, together=options.together,
              batch_size=options.batch_size or (32 if steps else 0), seconds=options.seconds)


if __name__ == "__main__":
    main()
