"""The other way to customise, on the miniature: a pseudo-word for each subject. docs/evidence.md, "Pseudo-words".

    python -m benchmarks.experiments.pseudo_words --out runs/pseudo_words            # resumable: a row is a file
    python -m realcustom_jax.evaluation --tasks one,bystander --json scores.json       # the methods beside them
    python -m benchmarks.experiments.pseudo_words --out runs/pseudo_words --scores scores.json --plot words.png

Textual inversion (arXiv 2208.01618): for each subject a word of its own is trained, which begins as its noun, until the
base model draws the reference from "a WORD"; in prompts it then stands where the noun stood. The weight `keep` of its
squared distance from the noun, in units of the noun's own square, is what is swept: a word that may not leave its noun
is controlled by the text, one that may go anywhere is like the reference, and the paper says that it cannot be both.
The evaluation's scores, which stand beside them, are of the same cases from the same noise.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tqdm import tqdm

from benchmarks.experiments.study_report import reach
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.text_states import text_states
from realcustom_jax.evaluation.intervals import mean_with_interval
from realcustom_jax.evaluation.miniature.cases import Case, make_cases
from realcustom_jax.evaluation.miniature.generate import Generator
from realcustom_jax.evaluation.miniature.report import number_cells
from realcustom_jax.evaluation.miniature.scores import score_pictures
from realcustom_jax.files import png, write_file, write_json
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.lanes import Conditioning
from realcustom_jax.sampling.options import seeded_noise
from realcustom_jax.sampling.sampler import sample_text_only
from realcustom_jax.sampling.solvers import add_noise, velocity

TASKS = {"one": ("subject_similarity", "text_controllability"),
         "bystander": ("subject_similarity", "text_controllability", "bystander_fidelity")}
METHODS = "text_only", "described", "no_mask", "fused"
KEEPS = 0.1, 0.01, 0.001, 0.0
"""Weights of the distance from the noun; 0 lets a word go anywhere."""
_DRAWS = 2  # of noise and timestep, of each subject in a step


@dataclasses.dataclass(frozen=True)
class Words:
    """Pseudo-words [N, D] and the nouns [N, D] that they began as."""

    words: jax.Array
    nouns: jax.Array

    @property
    def moved(self) -> np.ndarray:
        """The distance of each from its noun, in units of the noun's length: [N]."""
        return np.asarray(jnp.linalg.norm(self.words - self.nouns, axis=1) / jnp.linalg.norm(self.nouns, axis=1))


def encode(pipeline: Pipeline, words: jax.Array, prompts: list[str], nouns: list[str], which: np.ndarray
           ) -> Conditioning:
    """`Pipeline.encode_prompts`, with the word `words[which[i]]` in the place of the noun of prompt i."""
    encoder, = pipeline.text_encoders
    module, params = encoder.network.module, encoder.network.params
    known = module.config.vocab_size
    marks = np.concatenate([pipeline.mark_targets(prompt, [noun]) for prompt, noun in zip(prompts, nouns, strict=True)])
    ids = np.where(marks, known + which[:, None], encode_prompt(encoder.tokenizer, prompts))
    larger = module.clone(config=dataclasses.replace(module.config, vocab_size=known + len(words)))
    embeddings = params["text_model"]["embeddings"]
    table = jnp.concatenate([embeddings["token_embedding"]["embedding"], words])
    params = params | {"text_model": params["text_model"] | {
        "embeddings": embeddings | {"token_embedding": {"embedding": table}}}}
    tokens, pooled = text_states([larger.apply({"params": params}, ids)], pipeline.unet.module.config,
                                 pipeline.preset.pooled)
    plain = pipeline.encode_prompts(prompts)
    return plain.replace(text=tokens, pooled=pooled)


def nouns_of(pipeline: Pipeline, cases: list[Case]) -> jax.Array:
    """The embeddings [N, D] of the first things' nouns."""
    encoder, = pipeline.text_encoders
    nouns = [case.things[0].noun for case in cases]
    ids = encode_prompt(encoder.tokenizer, [f"a {noun}" for noun in nouns])
    marks = np.concatenate([pipeline.mark_targets(f"a {noun}", [noun]) for noun in nouns])
    table = encoder.network.params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    return jnp.asarray(table)[ids[np.arange(len(ids)), marks.argmax(axis=1)]]


def lessons(generator: Generator, cases: list[Case], steps: int, seed: int) -> Callable[[float], Words]:
    """A function of `keep` that trains a word for each case, on its reference alone, in both facings; compiled once."""
    pipeline = generator.pipeline
    vae, unet = pipeline.vae, pipeline.unet
    pictures = np.stack([case.references[0] for case in cases])
    views = np.stack([pictures, pictures[:, :, ::-1]], axis=1).astype(np.float32) / 127.5 - 1  # [N, 2, P, P, 3]
    latents = jnp.stack([vae.module.apply({"params": vae.params}, jnp.asarray(view), method="encode").mean
                         for view in views]) * vae.module.config.scaling_factor
    nouns, names = nouns_of(pipeline, cases), [case.things[0].noun for case in cases]
    prompts, which = [f"a {noun}" for noun in names], np.arange(len(cases))
    draws = np.repeat(which, _DRAWS)
    size = float(jnp.sqrt(jnp.mean(nouns**2)))
    optimizer = optax.adam(optax.linear_schedule(0.1 * size, 0.0, steps), b2=0.99)

    def loss(words, key, keep):
        a, b, c = jax.random.split(key, 3)
        x0 = latents[draws, jax.random.bernoulli(a, shape=draws.shape).astype(int)]
        t = jax.random.randint(b, draws.shape, 0, len(pipeline.betas))
        noise = jax.random.normal(c, x0.shape)
        text = encode(pipeline, words, prompts, names, which)
        text = jax.tree.map(lambda x: jnp.repeat(x, _DRAWS, axis=0), text)
        made = unet.module.apply({"params": unet.params}, add_noise(x0, noise, t, pipeline.betas), t, text.text,
                                 pooled=text.pooled, time_ids=text.time_ids).noise
        target = velocity(x0, noise, t, pipeline.betas) if pipeline.prediction == "v_prediction" else noise
        away = jnp.sum((words - nouns) ** 2, axis=1) / jnp.sum(nouns**2, axis=1)
        return jnp.mean((made - target) ** 2, axis=(1, 2, 3)).sum() / _DRAWS + keep * away.sum()

    @jax.jit
    def step(words, state, key, keep):
        updates, state = optimizer.update(jax.grad(loss)(words, key, keep), state)
        return optax.apply_updates(words, updates), state

    def train(keep: float) -> Words:
        words, state = nouns, optimizer.init(nouns)
        for i in tqdm(range(steps), desc=f"words, keep {keep:g}", unit="step", leave=False):
            words, state = step(words, state, jax.random.fold_in(jax.random.key(seed), i), keep)
        return Words(words, nouns)

    return train


def pictures_of(generator: Generator, words: Words, cases: list[Case], batch: int) -> np.ndarray:
    """uint8 [N, P, P, 3]: what the base model makes of the cases' prompts with the words of their subjects."""
    pipeline = generator.pipeline
    preset = pipeline.preset
    solver = pipeline.make_solver(preset.steps, preset.solver)
    which = np.array([case.subject for case in cases])
    text = encode(pipeline, words.words, [str(case.prompt) for case in cases], [case.things[0].noun for case in cases],
                  which)
    negative = pipeline.encode_negative(None, text)
    made = []
    for i in tqdm(range(0, len(cases), batch), desc="pictures", unit="batch", leave=False):
        part = np.arange(i, i + batch) % len(cases)  # the last batch is filled up
        noise = jnp.concatenate([seeded_noise(cases[j].seed, 1, pipeline.latent_shape()) for j in part])
        positive, nothing = (jax.tree.map(lambda x, part=part: x[part], c) for c in (text, negative))
        made.append(pipeline.decode(_sample(pipeline.unet.module, pipeline.unet.params, noise, positive, nothing,
                                            solver=solver, guidance_scale=preset.guidance_scale)))
    return np.concatenate(made)[: len(cases)]


@functools.partial(jax.jit, static_argnums=0)
def _sample(unet, params, noise, positive, negative, *, solver, guidance_scale) -> jax.Array:
    return sample_text_only(unet, params, noise, positive, negative, solver=solver, guidance_scale=guidance_scale)


def make_rows(options: argparse.Namespace) -> None:
    """Scores every row that is not there yet, and keeps its first pictures as a strip.

    Raises ValueError for a row that is there, but was made of other cases or trained for other steps.
    """
    of_all = {name: getattr(options, name) for name in ("steps", "num_subjects", "seed")}
    generator = Generator.load(options.model)
    cases = {task: make_cases(task, options.num_subjects, options.seed) for task in TASKS}
    firsts = [case for i, case in enumerate(cases["one"]) if i == 0 or case.subject != cases["one"][i - 1].subject]
    train = lessons(generator, firsts, options.steps, options.seed)
    for keep in tqdm(options.keeps, desc="rows", unit="row"):
        file = options.out / f"keep_{keep:g}.json"
        if file.is_file():
            check_same(file, of_all)
            continue
        words = train(keep)
        scores: dict[str, Any] = {}
        for task, metrics in TASKS.items():
            images = pictures_of(generator, words, cases[task], options.batch_size)
            found = score_pictures(generator.judge, cases[task], images)
            subjects = np.array([case.subject for case in cases[task]])
            scores[task] = {metric: mean_with_interval(found[metric], subjects) for metric in metrics}
            write_file(file.with_suffix(f".{task}.png"), png(_strip(images[:24:2])))
        write_json(file, {"keep": keep, **of_all, "moved": words.moved.tolist(), "scores": scores})


def check_same(file: Path, of_all: dict[str, int]) -> None:
    """Raises ValueError if the row in the file differs from `of_all` in what is named there."""
    row = json.loads(file.read_bytes())
    for name, value in of_all.items():
        if row[name] != value:
            raise ValueError(f"{file} was made with {name} {row[name]}, not {value}; give another folder, or the same "
                             "options.")


def _strip(images: np.ndarray) -> Image.Image:
    return Image.fromarray(np.concatenate(images, axis=1))


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one way, {task: {metric: {"value", "ci95"}}}; moved: how far its words went, on average."""

    name: str
    scores: dict[str, Any]
    moved: float | None = None


def read_rows(folder: Path, scores: Path | None) -> list[Row]:
    """The methods in the evaluation's JSON first, then the words that are there, from those that are kept most.

    Raises ValueError if the two are not of the same cases.
    """
    found = [json.loads(file.read_bytes()) for file in folder.glob("keep_*.json")]
    words = [Row(f"pseudo-word, keep {row['keep']:g}", row["scores"], float(np.mean(row["moved"])))
             for row in sorted(found, key=lambda row: -row["keep"])]
    if scores is None:
        return words
    of_methods = json.loads(scores.read_bytes())
    for row in found:
        for name in ("num_subjects", "seed"):
            if row[name] != of_methods[name]:
                raise ValueError(f"{scores} has {name} {of_methods[name]}, the words in {folder} {row[name]}; make "
                                 "both with the same.")
    return [*(Row(method.replace("_", " "), {task: of_methods["tasks"][task]["methods"][method] for task in TASKS})
              for method in METHODS), *words]


def report(rows: list[Row]) -> str:
    """A table of the rows, with the farther side of their 95 % intervals over subjects."""
    columns = [(task, metric) for task, metrics in TASKS.items() for metric in metrics]
    titles = " | ".join(f"`{task}`: {metric.replace('_', ' ')} | ±" for task, metric in columns)
    lines = [f"| | moved | {titles} |", "|---|" + "--:|" * (2 * len(columns) + 1)]
    for row in rows:
        cells = [number_cells(row.scores[task][metric]) for task, metric in columns]
        lines.append(f"| {row.name} | {'' if row.moved is None else f'{row.moved:.2f}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], file: Path) -> None:
    """Similarity against what the text controls, beside a bystander; the words are joined by a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for panel, metric in zip(panels, TASKS["bystander"][1:], strict=True):
        found = [(row, row.scores["bystander"][metric], row.scores["bystander"]["subject_similarity"]) for row in rows]
        for row, x, y in found:
            word = row.moved is not None
            panel.errorbar(x["value"], y["value"], xerr=reach(x), yerr=reach(y), fmt="o", color=f"C{int(word)}",
                           capsize=2, elinewidth=0.8, alpha=0.6)
            panel.annotate(row.name.removeprefix("pseudo-word, keep "), (x["value"], y["value"]),
                           (-4, 5) if word else (-8, -14), fontsize=9, textcoords="offset points", ha="right",
                           color=f"C{int(word)}")
        words = [(x["value"], y["value"]) for row, x, y in found if row.moved is not None]
        panel.plot(*zip(*words, strict=True), color="C1", label="pseudo-words, by how much they are kept")
        panel.set_xlabel(metric.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("subject similarity")
    panels[0].legend(loc="center left")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--num-subjects", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120, help="of training a word")
    parser.add_argument("--keeps", type=float, nargs="+", default=KEEPS, help="weights of the distance from the noun")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--scores", type=Path, help="the evaluation's JSON, for its methods")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    make_rows(options)
    rows = read_rows(options.out, options.scores)
    print(report(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
