"""The optimizer, and the numbers of a step that its compiled program takes as inputs.

What may be changed while a run goes on (rate, warm-up, decay, steps, clip, weight decay, average, seed) is no constant
of the program, so that another value compiles nothing again.
"""

import functools

import jax
import numpy as np
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from realcustom_jax.training.settings import TrainSettings

StepInputs = dict[str, np.ndarray]
"""learning_rate (of the step), weight_decay, clip, ema: float32 scalars. key: uint32, the data of the run's random
key."""


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of a step: it rises from 0 over the warm-up, stays, and falls to 0 over the last `decay` of the steps,
    of which there is at least one."""
    falling = max(1, round(settings.decay * settings.steps))
    since = step - max(settings.warmup, settings.steps - falling)
    if step < settings.warmup:
        return settings.learning_rate * step / settings.warmup
    return settings.learning_rate * min(1.0, max(0.0, 1 - since / falling))


def step_inputs(settings: TrainSettings, step: int) -> StepInputs:
    """The numbers of a step, on the host."""
    values = {"learning_rate": learning_rate(settings, step), "weight_decay": settings.weight_decay,
              "clip": settings.clip, "ema": settings.ema}
    return {name: np.array(value, np.float32) for name, value in values.items()} | {"key": _key(settings.seed)}


@functools.cache
def _key(seed: int) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # the state before the first step is made within a program
        return np.asarray(jax.random.key_data(jax.random.key(seed)))


def make_optimizer(name: str, inputs: StepInputs) -> optax.GradientTransformation:
    """AdamW or Muon, "adamw" or "muon", with clipped gradients; its state does not depend on `inputs`.

    Muon (arXiv 2502.16982) orthogonalises the updates of matrices and convolution kernels, scaled so that AdamW's
    learning rates suit it; everything else is AdamW's. Three of its usual five Newton-Schulz iterations lift all but
    the smallest singular values; on a CPU five cost half as much as the gradients.
    """
    def rate(count):
        # As a schedule it leaves its count in the optimizer's state, as the checkpoints have it.
        del count
        return inputs["learning_rate"]

    if name == "adamw":
        optimizer = optax.adamw(rate, b2=0.99, weight_decay=inputs["weight_decay"])
    else:
        optimizer = optax.contrib.muon(
            rate, ns_steps=3, weight_decay=inputs["weight_decay"], adam_b2=0.99, consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(_matrix_axes, params))
    return optax.chain(optax.clip_by_global_norm(inputs["clip"]), optimizer)


def _matrix_axes(path, parameter: jax.Array) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's rows and columns: of kernels, the last axis is the output."""
    if getattr(path[-1], "key", None) != "kernel":
        return None
    # The leading axis of three is the layers' of a scanned stack; each is a matrix of its own.
    rows = {2: 0, 3: 1, 4: (0, 1, 2)}[parameter.ndim]
    return MuonDimensionNumbers(rows, parameter.ndim - 1)
