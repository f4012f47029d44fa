"""The fused denoising loop over batch sizes and picture sizes, as a table and a plot.

    python -m benchmarks.grid --kind mini --sides 64 128 256 --plot docs/speed.png
    python -m benchmarks.grid --kind sdxl --dtype bfloat16 --sides 512 768 1024 --peak-tflops 989     # on a GPU

Each figure is the median of several runs after a warm-up; operations are counted in the traced program.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt

from benchmarks.speed import latent_side, loop_parser, make_unet, measure, ours, run
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.files import write_json


def main() -> None:
    parser = loop_parser(__doc__)
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[512, 768, 1024], help="of the pictures, in pixels")
    add("--batches", type=int, nargs="+", default=[1, 4, 8])
    add("--rounds", type=int, default=5)
    add("--peak-tflops", type=float, help="of the device in this dtype, to say what share of it is reached")
    add("--plot", type=Path, help="where to draw them")
    options = parser.parse_args()
    enable_compilation_cache()
    model = make_unet(options.kind, options.dtype)
    rows = [point(model, options, side, batch) for side in options.sides for batch in options.batches]

    device = f"{jax.devices()[0].device_kind}, {options.kind}, {options.dtype}"
    share = " | share of peak" if options.peak_tflops else ""
    print(f"{device}\n\n| side | batch | s | s an image | TFLOP/s{share} |")
    print("|--:|--:|--:|--:|--:|" + "--:|" * bool(share))
    for row in rows:
        reached = f" | {row['tflops'] / options.peak_tflops:.1%}" if options.peak_tflops else ""
        print(f"| {row['side']} | {row['batch']} | {row['seconds']:.3f} | {row['seconds'] / row['batch']:.3f} "
              f"| {row['tflops']:.3f}{reached} |")
    if options.json:
        write_json(options.json, {"device": device, "rows": rows})
    if options.plot:
        draw(rows, device, options.plot)


def point(model, options: argparse.Namespace, side: int, batch: int) -> dict:
    """The fused loop at one size and batch."""
    inputs = argparse.Namespace(**vars(options) | {"batch": batch})
    program, arguments, figures = ours(*model, inputs, latent_side(options.kind, side))
    fused = program("fused")
    seconds = measure({"fused": lambda: run(fused, arguments)}, options.rounds)["fused"]
    return {"side": side, "batch": batch, "seconds": round(seconds, 4),
            "tflops": round(figures["flop"]["fused"] / seconds / 1e12, 4),
            "temporary_bytes": fused.memory_analysis().temp_size_in_bytes}


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Seconds an image over the batch size, a line for each picture size."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for side in sorted({row["side"] for row in rows}):
        line = [row for row in rows if row["side"] == side]
        batches = [row["batch"] for row in line]
        axes.plot(batches, [row["seconds"] / row["batch"] for row in line], marker="o", label=f"{side}²")
    axes.set(xlabel="pictures in a batch", ylabel="seconds a picture", title=title, xticks=batches)
    axes.set_ylim(bottom=0)
    axes.legend(title="size")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
