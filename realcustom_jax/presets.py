"""How a model is used, where the released code, the paper and standard SDXL differ: every choice by name.

The original's own scripts differ from each other (its `inference/pipeline.py`, `inference_single_image.py`); a
checkpoint gives the pictures it was trained for only with the choices it was trained with.
"""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal

from realcustom_jax.conditioning.size import SIZE_ORDERS
from realcustom_jax.errors import check_choice
from realcustom_jax.sampling.masks import NORMALIZATIONS, SELECTIONS, SHARING, MaskConfig
from realcustom_jax.sampling.options import SHARED_REFERENCES
from realcustom_jax.sampling.sampler import BRANCHES
from realcustom_jax.sampling.solvers import SOLVERS

GuidanceScale = float | None | Literal["preset"]
"""What a call says of guidance: a scale, None for no guidance, or what the preset says."""

_CHOICES = {
    "normalize": NORMALIZATIONS, "select": SELECTIONS,
    "pooled": ("unprojected", "projected"), "size_order": SIZE_ORDERS,
    "weight_order": ("adapter_last", "base_last"), "match": ("word", "released"), "local": (None, "phases", "tiles"),
    "overlap": ("sum", *SHARING), "no_negative": (None, "encoded", "zeros"),
    "solver": (None, *SOLVERS), "branches": BRANCHES, "shared_reference": SHARED_REFERENCES,
}


# Each value is checked by a test for the program, which comes with the same in words for the reader. A bool is refused
# as a number, which it is to Python, because here it can only be a mistake.
_VALUES = {
    "scope": (lambda x: _is_number(x) and 0 < x <= 1, "the share of the picture that a mask covers, in (0, 1]"),
    "guidance_scale": (lambda x: _is_number(x) and math.isfinite(x), "a finite number"),
    "freeze_mask_step": (lambda x: _is_whole(x) and x >= 1, "a whole number, at least 1"),
    "steps": (lambda x: _is_whole(x) and x >= 1, "a whole number, at least 1"),
    "refine": (lambda x: _is_whole(x) and x >= 0, "a whole number, 0 (no refinement) or more"),
    "binary": (lambda x: isinstance(x, bool), "true or false"),
    "negative_prompt": (lambda x: isinstance(x, str), "a text"),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """The choices; each can be replaced alone (`dataclasses.replace`).

    An adapter that says which local, pooled and size_order it was trained with is used with those. What it says of the
    other choices is what stands where none is given.

    Attributes:
        local: how the reference's local views are cut: "phases" (released), "tiles" (paper), None: as the adapter says.
        pooled: SDXL's pooled text before ("unprojected", released) or after its projection (standard SDXL).
        size_order: of SDXL's size conditioning: (w, h, 0, 0, w, h) as released, or SDXL's (h, w, …).
        weight_order: whose UNet weights win where base and adapter files both hold them.
        match: how a target phrase is found in the prompt, see `targets.target_tokens`.
        normalize, select: of the guidance maps, see `masks.subject_mask`.
        refine: n refines the mask by the self-attention of the layers whose size is the latents' divided by n, so that
            it spreads over the things that it lies on (paper); 0 does not (released).
        binary: a mask is 1 where it is not 0, instead of as strong as the map.
        overlap: how the masks of several references share a picture, see `masks.owners`; "sum" lets them overlap.
        shared_reference: what several phrases of one reference are given: all of them the "whole" picture, in which
            the word has to choose (paper, released), or each the part that the base model's attention finds for it
            ("cropped", module `locating`).
        scope, freeze_mask_step, guidance_scale, negative_prompt, steps, branches: defaults of a pipeline's call; an
            empty negative prompt stands for none.
        solver: of `solvers.SOLVERS`, with trailing timesteps; None: as the model's scheduler says.
        no_negative: what the negative lane reads where there is no negative prompt: the text encoder's states of the
            empty text ("encoded") or states of zeros ("zeros", diffusers' `force_zeros_for_empty_prompt`); None: as the
            model's files say.
    Raises:
        ValueError: a choice that is not known, or a number that no model takes; says what was expected.
    """

    local: str | None = None
    pooled: str = "unprojected"
    size_order: str = "width_first"
    weight_order: str = "adapter_last"
    match: str = "word"
    normalize: str = "max_norm"
    select: str = "topk"
    refine: int = 0
    binary: bool = False
    overlap: str = "argmax"
    shared_reference: str = "whole"
    scope: float = 0.25
    freeze_mask_step: int = 12
    guidance_scale: float = 3.5
    steps: int = 25
    solver: str | None = None
    branches: str = "fused"
    negative_prompt: str = ""
    no_negative: str | None = None

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                check_choice(name, getattr(self, name), filter(None, known))
        for name, (fits, expected) in _VALUES.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def with_call(self, *, guidance_scale: GuidanceScale = "preset", **given: Any) -> "Preset":
        """The choices of one call, where those that are None are the preset's, but for a guidance scale of None, which
        is no guidance. Raises ValueError as for a preset."""
        if not (isinstance(guidance_scale, str) and guidance_scale == "preset"):
            given["guidance_scale"] = 1.0 if guidance_scale is None else guidance_scale
        # Scalars of numpy, JAX and torch become Python's own.
        return dataclasses.replace(self, **{name: x.item() if getattr(x, "shape", None) == () else x
                                            for name, x in given.items() if x is not None})

    def mask_config(self, height: int, width: int, references: int = 1, overlap: str | None = None) -> MaskConfig:
        """How the masks of so many references are made for latents of this size; `overlap` instead of the preset's."""
        if overlap is not None:
            check_choice("overlap", overlap, _CHOICES["overlap"])
        refine_at = (height // self.refine, width // self.refine) if self.refine > 0 else None
        return MaskConfig(scope=self.scope, normalize=self.normalize, select=self.select, binary=self.binary,
                          refine_at=refine_at, overlap=overlap or ("sum" if references == 1 else self.overlap))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# The setting that the released class and scripts read from prompts/validation_negative.txt (bytedance/RealCustom
# 28a718e, Apache-2.0), to the letter: with another one, a seed gives other pictures than theirs.
NEGATIVE_PROMPT = (
    "(((naked))), deformed, bad anatomy, disfigured, poorly drawn face, mutation, mutated, extra limb, ugly, "
    "disgusting, poorly drawn hands, missing limb, floating limbs, disconnected limbs, malformed hands, blurry, "
    "((((mutated hands and fingers)))), watermark, watermarked, oversaturated, censored, distorted hands, amputation, "
    "missing hands, obese, doubled face, double hands")

PRESETS: dict[str, Preset] = {
    # What we take unless told otherwise: the released conditioning, with one rule for the mask.
    "default": Preset(),
    # The released pipeline class and its Gradio demo.
    "released_pipeline": Preset(local="phases", match="released", normalize="min_max_per_channel",
                                solver="dpm_single", negative_prompt=NEGATIVE_PROMPT),
    # The released script for single images: the base model's weights are read last, the mask never freezes.
    "released_script": Preset(local="phases", match="released", weight_order="base_last", freeze_mask_step=99,
                              solver="dpm_single", negative_prompt=NEGATIVE_PROMPT),
    # The paper's drawing, on a base model conditioned as SDXL was trained.
    "paper": Preset(local="tiles", pooled="projected", size_order="height_first", negative_prompt=NEGATIVE_PROMPT),
}


def find_preset(preset: str | Preset | Mapping[str, Any], *, base: Preset = PRESETS["default"]) -> Preset:
    """A preset given by itself, by its name or by its choices, where the others are those of `base`. Raises ValueError
    for an unknown name or choice."""
    if isinstance(preset, Preset):
        return preset
    if isinstance(preset, Mapping):
        return replace_choices(base, preset)
    check_choice("preset", preset, PRESETS)
    return PRESETS[preset]


def replace_choices(preset: Preset, choices: Mapping[str, Any]) -> Preset:
    """The preset with other choices, by their names. Raises ValueError for an unknown name or choice."""
    for name in choices:
        check_choice("choice of a preset", name, (field.name for field in dataclasses.fields(Preset)))
    return dataclasses.replace(preset, **choices)
