"""What the image encoders tell of a subject: its attributes, read from their features by a linear classifier.

    python -m benchmarks.experiments.probe --model mini

Studio references of random identities: 1200 of the training split to fit (ridge regression to the classes, on the mean,
maximum and deviation of the tokens), 300 of the test split to score. What a linear reader does not find may still be
there for the projector; what it finds, the projector can have.
"""


import jax
import jax.numpy as jnp
import numpy as np
from tqdm import trange

from benchmarks.common import parser_of
from realcustom_jax.conditioning.references import reference_features
from realcustom_jax.data.sprites.world import paint_reference, random_identity
from realcustom_jax.evaluation.judge import ATTRIBUTES
from realcustom_jax.pipeline import Pipeline

FIT, SCORE, AT_ONCE, RIDGE = 1200, 300, 100, 30.0


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="mini", help="a model folder, or mini")
    pipeline = Pipeline.load(parser.parse_args().model)
    references, classes = subjects(np.random.default_rng(0))

    @jax.jit
    def read(images):
        features = reference_features(pipeline.siglip.module, pipeline.siglip.params, pipeline.dino.module,
                                      pipeline.dino.params, images, pipeline.vision_settings)
        tokens = pipeline.projector.module.apply({"params": pipeline.projector.params}, features)
        layers = {f"layer {i}": x for i, x in enumerate(features[:-1])}
        return layers | {"parts": features[-1], "vision tokens": tokens}

    parts = [jax.tree.map(np.asarray, read(jnp.float32(references[i:i + AT_ONCE]) / 255))
             for i in trange(0, len(references), AT_ONCE, desc="encoding", unit="batch")]
    print(f"| read from | {' | '.join(ATTRIBUTES)} |\n|---|" + "--:|" * len(ATTRIBUTES))
    for name in parts[0]:
        scores = accuracies(np.concatenate([part[name] for part in parts]), classes)
        print(f"| {name} | {' | '.join(f'{score:.2f}' for score in scores)} |")


def subjects(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """References uint8 [N,64,64,3] and attribute classes [N,5]; those to fit first."""
    identities = [random_identity(rng, split="train") for _ in range(FIT)]
    identities += [random_identity(rng, split="test") for _ in range(SCORE)]
    pictures = [paint_reference(identity, seed=int(rng.integers(2**31)), pose=float(rng.uniform(-1, 1)),
                                facing=("left", "right")[rng.integers(2)]) for identity in identities]
    return np.stack(pictures), np.stack([identity.attributes for identity in identities])


def accuracies(tokens: np.ndarray, classes: np.ndarray) -> list[float]:
    """Of each attribute, on the subjects to score; tokens [N,L,C]."""
    pooled = np.concatenate([tokens.mean(1), tokens.max(1), tokens.std(1)], axis=-1)
    pooled = (pooled - pooled[:FIT].mean(0)) / (pooled[:FIT].std(0) + 1e-6)
    pooled = np.concatenate([pooled, np.ones((len(pooled), 1))], axis=1)
    fit, score = pooled[:FIT], pooled[FIT:]
    inverse = np.linalg.inv(fit.T @ fit + RIDGE * np.eye(fit.shape[1])) @ fit.T
    found = [np.argmax(score @ (inverse @ np.eye(of.max() + 1)[of[:FIT]]), axis=1) for of in classes.T]
    return [float((guess == of[FIT:]).mean()) for guess, of in zip(found, classes.T, strict=True)]


if __name__ == "__main__":
    main()
