"""Full-size models of random weights, in the published files' layout: do they load, in how much memory, do they run?

    python -m benchmarks.compiling.full_size --kind sdxl --folder /tmp/sdxl    # writes 6 GB, loads them, takes a step

Nothing can be downloaded on the machines that test this project; shapes, names and sizes of the files are those of the
published ones all the same: a UNet in sharded float16 safetensors, the adapter as a torch file. Loading and the step
run in a process of their own, whose anonymous memory (RssAnon) is watched.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from benchmarks.common import parser_of, show
from realcustom_jax.files import write_json
from realcustom_jax.model_files import adapter, single_file, weights
from realcustom_jax.model_files.source import FolderSource
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig

SHARD_BYTES = 2 * 10**9
PUBLISHED_PARAMETERS = {"sdxl": 2_567_463_684, "sd15": 859_520_964}  # of the UNet, as torch counts them


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=sorted(PUBLISHED_PARAMETERS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--side", type=int, default=32, help="of the latents of the step, in latent pixels")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)  # the process that is watched
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_and_step(options.folder, options.side)))
        return
    seconds, count = write_unet(options.folder, options.kind)
    assert count == PUBLISHED_PARAMETERS[options.kind], f"{count} parameters, torch has {PUBLISHED_PARAMETERS}"
    command = [sys.executable, "-m", "benchmarks.compiling.full_size", "--kind", options.kind, "--folder",
               str(options.folder), "--load", "--side", str(options.side)]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    figures = {"kind": options.kind, "unet_parameters": count, "write_s": round(seconds, 1), **figures}
    show(figures, options.json)


def write_unet(folder: Path, kind: str) -> tuple[float, int]:
    """Writes unet/ (shards and index) and adapter.pth; returns (seconds, parameters of the UNet without vision)."""
    import torch

    start = time.perf_counter()
    config = single_file.CONFIGS[kind]["unet"]
    settings = adapter.image_prompt_settings("highres", vision_dim=2176, out_dim=config["cross_attention_dim"])
    unet = UNet(UNetConfig.from_config({**config, "image_prompt_settings": settings}))
    args, kwargs = weights.unet_inputs(unet.config)
    shapes = weights.torch_shapes(weights.parameter_shapes(unet, *args, **kwargs))
    base = {name: shape for name, shape in shapes.items() if "_vision." not in name}
    write_shards(folder / "unet", base)
    write_json(folder / "unet" / "config.json", config)
    feature = jnp.zeros((1, 1, 2176))
    visual = {name: shape for name, shape in shapes.items() if "_vision." in name}
    projector = Projector(ProjectorConfig.from_config(settings))
    visual |= weights.torch_shapes(
        weights.parameter_shapes(projector, (feature, feature)), prefix=weights.PROJECTOR_PREFIX)
    tensors = {name: torch.from_numpy(random_float16(shape)) for name, shape in visual.items()}
    torch.save(tensors, folder / "adapter.pth")
    return time.perf_counter() - start, sum(int(np.prod(shape)) for shape in base.values())


def random_float16(shape: tuple[int, ...]) -> np.ndarray:
    """float16 numbers of a size that keeps activations finite; a block of random ones, repeated."""
    scale = 0.5 / max(1, np.prod(shape[1:])) ** 0.5
    return np.resize(_BLOCK * np.float16(scale), shape)


_BLOCK = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float16)


def write_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards, size = [[]], 0
    for name, shape in shapes.items():
        size += 2 * int(np.prod(shape))
        if size > SHARD_BYTES:
            shards.append([])
            size = 2 * int(np.prod(shape))
        shards[-1].append(name)
    index = {}
    for i, names in enumerate(tqdm(shards, desc="writing shards", unit="file"), 1):
        file = f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors"
        safetensors.numpy.save_file({name: random_float16(shapes[name]) for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": index})


def load_and_step(folder: Path, side: int) -> dict[str, float]:
    """Loads the UNet in bfloat16 with its adapter and takes a denoising step of three lanes."""
    with WatchedMemory() as memory:
        start = time.perf_counter()
        given = adapter.find_adapter(folder / "adapter.pth")
        module, params = FolderSource(folder).load_unet(given, dtype=jnp.bfloat16)
        jax.block_until_ready(params)
        loaded, peak = time.perf_counter() - start, memory.peak - memory.start
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
        c = module.config
        lanes, text = 3, jnp.zeros((3, 77, c.cross_attention_dim), jnp.bfloat16)
        kwargs = {"vision": jnp.zeros((lanes, 1, 729, c.cross_attention_dim), jnp.bfloat16),
                  "mask": jnp.ones((lanes, 1, side // 2, side // 2)), "target": jnp.ones((lanes, 1, 77))}
        if c.addition_embed:
            kwargs |= {"pooled": jnp.zeros((lanes, c.pooled_dim)), "time_ids": jnp.zeros((lanes, 6))}
        sample = jax.random.normal(jax.random.key(0), (lanes, side, side, c.in_channels))
        apply = jax.jit(lambda p, x, kwargs: module.apply({"params": p}, x, 500, text, **kwargs).noise)
        start = time.perf_counter()
        compiled = apply.lower(params, sample, kwargs).compile()
        compile_time, start = time.perf_counter() - start, time.perf_counter()
        noise = np.asarray(compiled(params, sample, kwargs), np.float32)
        step = time.perf_counter() - start
    return {"parameter_bytes": size, "peak_rss_anon_while_loading": peak, "ratio": round(peak / size, 3),
            "load_s": round(loaded, 1), "compile_s": round(compile_time, 1), "step_s": round(step, 1),
            "latents": [side, side], "finite": bool(np.isfinite(noise).all()), "peak_rss_anon": memory.peak}


class WatchedMemory:
    """The highest anonymous memory of this process, in bytes, looked at every 20 ms."""

    def __enter__(self):
        self.start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
