"""How a miniature's training went: a panel a stage, from the metrics that train.py wrote.

    python -m benchmarks.experiments.curves --workdir runs/mini --out docs/mini_training.png
"""

import argparse
import json
from pathlib import Path

import numpy as np

PANELS = {
    "autoencoder": ("pixels", "edges"),
    "encoders": ("caption",),
    "base": ("denoising", "placement"),
    "base, right place": ("right_place_noise", "right_place_high", "right_place_middle", "right_place_low"),
    "adapter": ("loss",),
}
"""What is shown of which stage; the stage is the panel's first word."""
_SMOOTHED = 25  # records, of 20 steps each


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2))
    for panel, (title, names) in zip(panels, PANELS.items(), strict=True):
        file = options.workdir / title.split(",")[0] / "metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for name in names:
            steps = np.array([record["step"] for record in records])
            values = np.array([record[name] for record in records])
            width = min(_SMOOTHED, len(values))
            panel.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"),
                       label=name.replace("_", " "))
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
        if "place" not in title:
            panel.set_yscale("log")
    figure.tight_layout()
    figure.savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()
