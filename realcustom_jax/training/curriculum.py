"""The curriculum training recipe (CTR) of RealCustom++ (arXiv 2408.09744) as a pure function of the step.

Reconstruction pairs (the reference is cropped from the target) are easy and teach copying; re-contextualisation pairs
(the same subject in another pose, size and scene) are hard and teach identity. Training moves from the first to the
second and widens the difference as it goes. The paper gives no schedule; this one is linear in the step:

    u        = clip((step / steps − start) / (end − start), 0, 1)
    P(recon) = 1 − u · (1 − final_reconstruction)
    the rest = evenly over the re-contextualised references of difficulty ≤ max(easiest, u)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from realcustom_jax.errors import check_choice

RECIPES = ("curriculum", "reconstruction", "recontextualisation")


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """recipe: "curriculum", or one of its two ends throughout (for ablation); start, end: fractions of training
    between which it moves; final_reconstruction: the share of reconstruction pairs that stays."""

    recipe: str = "curriculum"
    start: float = 0.05
    end: float = 0.5
    final_reconstruction: float = 0.1

    def __post_init__(self):
        check_choice("curriculum recipe", self.recipe, RECIPES)
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"curriculum: start={self.start}, end={self.end}; expected 0 ≤ start < end ≤ 1.")
        if not 0 <= self.final_reconstruction <= 1:
            raise ValueError(f"curriculum: final_reconstruction={self.final_reconstruction}; expected a share of the "
                             "pairs, from 0 to 1.")

    def progress(self, step: int, steps: int) -> float:
        """u in [0, 1]."""
        return float(np.clip((step / steps - self.start) / (self.end - self.start), 0, 1))

    def scalars(self, step: int, steps: int, difficulty: Sequence[float]) -> dict[str, float]:
        """What a log says of a step: curriculum/progress, and for each difficulty the share of the pairs that has it
        where a pair has references of all of them, such as curriculum/0.33."""
        weights = self.weights(step, steps, difficulty)
        return {"curriculum/progress": self.progress(step, steps),
                **{f"curriculum/{d:.2f}": float(w) for d, w in zip(difficulty, weights, strict=True)}}

    def weights(self, step: int, steps: int, difficulty: Sequence[float]) -> np.ndarray:
        """The probability of each reference of a pair.

        Args:
            step, steps: where training is.
            difficulty: of each reference; 0 is reconstruction, (0, 1] re-contextualisation.
        Returns:
            float64 [len(difficulty)], sums to 1. Where there is one kind of references only, they are equally likely.
        """
        difficulty = np.asarray(difficulty)
        easy = difficulty == 0
        if not easy.any() or easy.all():
            return np.full(len(difficulty), 1 / len(difficulty))
        if self.recipe == "reconstruction":
            return easy / easy.sum()
        if self.recipe == "recontextualisation":
            return ~easy / (~easy).sum()
        u = self.progress(step, steps)
        reachable = ~easy & (difficulty <= max(difficulty[~easy].min(), u) + 1e-6)
        reconstruction = 1 - u * (1 - self.final_reconstruction)
        return reconstruction * easy / easy.sum() + (1 - reconstruction) * reachable / reachable.sum()
