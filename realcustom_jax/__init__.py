"""RealCustom++ in JAX and Flax: pictures of the subject of one reference, by a word of the prompt, without tuning.

    import realcustom_jax as rc

    pipeline = rc.Pipeline.load("mini")
    pipeline("dog.png", "a dog on the beach", "dog").images[0].save("beach.png")

This is the public face: the names below stay as they are, whichever module holds them. A name's module is imported when
the name is first used, so that importing the package alone loads neither JAX nor transformers.
"""

import importlib
import os
from typing import TYPE_CHECKING

# For type checkers, which do not run `__getattr__`; `_MODULES` says the same to Python.
if TYPE_CHECKING:
    from realcustom_jax.conditioning.references import prepare_reference
    from realcustom_jax.conditioning.targets import target_tokens
    from realcustom_jax.model_files.weights import (
        load_autoencoder,
        load_clip_vision,
        load_projector,
        load_text_encoder,
        load_unet,
        load_vision_encoder,
    )
    from realcustom_jax.pipeline import Pipeline, Result
    from realcustom_jax.presets import Preset
    from realcustom_jax.sampling.guidance import Guidance, classifier_free_guidance
    from realcustom_jax.sampling.lanes import Conditioning
    from realcustom_jax.sampling.masks import MaskConfig, subject_mask
    from realcustom_jax.sampling.sampler import sample_latents, sample_text_only
    from realcustom_jax.sampling.solvers import betas, integrate, make_solver

__version__ = "0.1.0"

__all__ = [
    "Conditioning", "Guidance", "MaskConfig", "Pipeline", "Preset", "Result", "betas", "classifier_free_guidance",
    "integrate", "load_autoencoder", "load_clip_vision", "load_projector", "load_text_encoder", "load_unet",
    "load_vision_encoder", "make_solver", "prepare_reference", "sample_latents", "sample_text_only", "subject_mask",
    "target_tokens",
]

_MODULES = {
    "conditioning.references": ("prepare_reference",),
    "conditioning.targets": ("target_tokens",),
    "model_files.weights": (
        "load_autoencoder", "load_clip_vision", "load_projector", "load_text_encoder", "load_unet",
        "load_vision_encoder"),
    "pipeline": ("Pipeline", "Result"),
    "presets": ("Preset",),
    "sampling.guidance": ("Guidance", "classifier_free_guidance"),
    "sampling.lanes": ("Conditioning",),
    "sampling.masks": ("MaskConfig", "subject_mask"),
    "sampling.sampler": ("sample_latents", "sample_text_only"),
    "sampling.solvers": ("betas", "integrate", "make_solver"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

# Of transformers only the tokenizers are used: that torch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
