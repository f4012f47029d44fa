"""A picture by a full-size model: every part of SDXL or SD-1.5, from files of published names and shapes to PNG.

    python -m benchmarks.compiling.full_size_picture --kind sd15 --folder /tmp/sd15 --steps 4

Weights are random, so the picture is noise; that all parts load, run and fit each other is the point, and how long and
how much memory that takes. The files are those of `full_size_memory`, filled.
"""

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.common import parser_of, show
from benchmarks.compiling.full_size import WatchedMemory, random_float16
from benchmarks.compiling.full_size_memory import write_hollow_model
from realcustom_jax.devices.platform import Platform
from realcustom_jax.model_files import single_file
from realcustom_jax.pipeline import Pipeline


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--kind", choices=sorted(single_file.CONFIGS), required=True)
    add("--folder", type=Path, required=True, help="for the model (SDXL: 8.9 GB) and picture.png")
    add("--side", type=int, help="of the picture, in pixels (the model's own)")
    add("--steps", type=int, default=4)
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    add("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty, and what it holds would be overwritten; give a new folder.")
    write_hollow_model(options.folder, options.kind)
    for file in tqdm(sorted(options.folder.rglob("*.safetensors")), desc="filling", unit="file"):
        fill(file)
    figures = {"kind": options.kind, "dtype": options.dtype, "steps": options.steps, "backend": Platform.of().name}
    figures |= make(options.folder, options.side, options.steps, options.dtype)
    show(figures, options.json)


def fill(file: Path) -> None:
    """Random numbers in place of the hole in a safetensors file."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    content = np.memmap(file, np.float16, "r+", 8 + size)
    for entry in header.values():
        start, end = (offset // 2 for offset in entry["data_offsets"])
        content[start:end] = random_float16(tuple(entry["shape"])).ravel()
    content.flush()


def make(folder: Path, side: int | None, steps: int, dtype: str) -> dict:
    """Loads the model and makes a picture twice; encoders wait in the host's memory, as a small device needs it."""
    reference = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    with WatchedMemory() as memory:
        start = time.perf_counter()
        pipeline = Pipeline.load(folder, dtype=dtype, offload=True)
        figures = {"load_s": time.perf_counter() - start, "load_peak_rss_anon": memory.peak}
        for name in ("first_s", "second_s"):
            start = time.perf_counter()
            result = pipeline(reference, "a dog", "dog", width=side, height=side, steps=steps,
                              freeze_mask_step=max(1, steps // 2))
            figures[name] = time.perf_counter() - start
    result.images[0].save(folder / "picture.png")
    pixels, masks = np.asarray(result.images[0]), np.asarray(result.masks)
    return {"size": list(result.images[0].size), **{name: round(value, 1) for name, value in figures.items()},
            "peak_rss_anon": memory.peak, "pixels_mean_std": [round(float(f()), 1) for f in (pixels.mean, pixels.std)],
            "masks": list(masks.shape), "masks_finite": bool(np.isfinite(masks).all())}


if __name__ == "__main__":
    main()
