"""Pictures of held-out subjects that are made and scored while a training goes on, by the evaluation's own code."""

from collections.abc import Callable
from pathlib import Path

from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.evaluation.miniature.cases import make_cases
from realcustom_jax.evaluation.miniature.generate import Generator
from realcustom_jax.evaluation.miniature.judge import TrainedJudge, load_judge
from realcustom_jax.evaluation.miniature.scores import score_masks, score_pictures
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training.reports import Findings, Report
from realcustom_jax.training.tasks import Params

_TASK, _SUBJECTS = "one", 4  # each with two prompts
_SEED = 0


def find_judge(every: int, model: Path) -> TrainedJudge | None:
    """The judge that came with the folder `model`; None where `every` is 0, because none is asked for.

    Raises ValueError: the model has no judge.
    """
    if not every:
        return None
    try:
        return load_judge(model)
    except FileNotFoundError:
        raise ValueError(f"evaluate_pictures_every is {every}, and {model} has no judge that could score pictures, as "
                         "a miniature has; set it to 0.") from None


def scored_pictures(every: int, judge: TrainedJudge | None,
                    pipeline_of: Callable[[Params], Pipeline]) -> tuple[Report, ...]:
    """A report of what a judge says of eight pictures: evaluation/subject_similarity and so on, the means of
    `evaluation.miniature.scores`. No report without a judge."""
    if judge is None:
        return ()

    def make(params: Params) -> Findings:
        generator = Generator(pipeline_of(params), judge)
        side = generator.picture_size
        # Cut-outs keep their resolution in relation to the pictures.
        world = BankConfig(side=side, cut_out=round(side * BankConfig.cut_out / BankConfig.side))
        cases = make_cases(_TASK, _SUBJECTS, _SEED, world)
        made = generator.in_batches(cases, generator.pipeline.preset.branches, len(cases))
        scores = score_pictures(judge, cases, made.images) | score_masks(judge, cases, made)
        return Findings({f"evaluation/{name}": float(values.mean()) for name, values in scores.items()})

    return (Report(every, make),)
