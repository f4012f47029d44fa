"""The curriculum against its two ends: three adapters of the miniature that differ by one line of the configuration.

    python -m benchmarks.experiments.recipes --workdir runs/mini --steps 600

Each starts fresh on the frozen parts in WORKDIR/bundle (the bundled miniature's where there is none), with the same
steps and seed, and is scored on the same held-out subjects. All is kept in WORKDIR/recipes/STEPS-SUBJECTS; the same
command resumes, and other parts need another WORKDIR or that folder deleted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import parser_of
from benchmarks.experiments.branch import branch
from realcustom_jax.training.curriculum import RECIPES

_SCORES = ("subject_similarity", "text_controllability", "mask_auc")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/mini"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--num-subjects", type=int, default=24)
    parser.add_argument("--config", default="configs/mini.py")
    options = parser.parse_args()
    print(f"| recipe, {options.steps} steps | {' | '.join(name.replace('_', ' ') for name in _SCORES)} |")
    print("|---|" + "---|" * len(_SCORES))
    for recipe in RECIPES:
        scores = train_and_score(recipe, options)["methods"]["fused"]
        cells = (f"{scores[name]['value']:.3f} [{scores[name]['ci95'][0]:.2f}, {scores[name]['ci95'][1]:.2f}]"
                 for name in _SCORES)
        print(f"| {recipe} | {' | '.join(cells)} |", flush=True)


def train_and_score(recipe: str, options: argparse.Namespace) -> dict:
    """The report of the evaluation."""
    shared = (options.workdir / "recipes" / f"{options.steps}-{options.num_subjects}").absolute()
    folder = shared / recipe
    report = folder / "scores.json"
    if not report.is_file():
        branch(options.workdir, folder, shared / "cache")
        subprocess.run([
            sys.executable, "train.py", f"--config={options.config}", f"--workdir={folder}", "--config.stage=adapter",
            f"--config.curriculum.recipe={recipe}", f"--config.optimization.adapter.steps={options.steps}"], check=True)
        subprocess.run([
            sys.executable, "-m", "realcustom_jax.evaluation", "--model", str(folder / "bundle"), "--num-subjects",
            str(options.num_subjects), "--json", str(report)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


if __name__ == "__main__":
    main()
