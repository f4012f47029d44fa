"""The command that makes pictures:

    realcustom --image dog.png --prompt "a dog in space" --target dog

In a clone it is `python sample.py`.
"""

import argparse
import warnings
from contextlib import nullcontext
from typing import NoReturn

from tqdm import tqdm

from realcustom_jax.commands.program import leave, say, say_nothing_of_accelerators, warnings_as_sentences
from realcustom_jax.commands.sample_options import PROMPT, load_model, parse

LOADED = "model", "adapter", "vision", "tokenizer", "vae", "unet", "prediction", "lora", "preset", "dtype"
"""The options that say what a pipeline is loaded from, and how."""
# What each row of a batch says for itself.
_OF_ROWS = "prompt", "image", "target", "mask", "init_image", "mask_image", "strength"


def run() -> NoReturn:
    """The command as a process of its own, which ends with it."""
    leave(main())


def main(arguments: list[str] | None = None) -> int:
    """Runs one call of `Pipeline`, or a batch; returns the exit code, see module `errors`."""
    options = parse(arguments)
    say_nothing_of_accelerators()
    from realcustom_jax import errors
    from realcustom_jax.memory import enough_memory

    def work():
        with enough_memory():
            return _run(options)

    with warnings_as_sentences(say):
        return errors.exit_code(work, debug=options.debug, report=say)


def _run(options: argparse.Namespace) -> int:
    """The exit code; raises ValueError or OSError for what cannot be used."""
    from realcustom_jax import batch, contact_sheet
    from realcustom_jax.model_files.locate import ASSETS
    from realcustom_jax.model_files.tensors import headers_only
    from realcustom_jax.sampling.options import skipped_steps

    choices = _checked_choices(options)
    rows = batch.read_rows(options.batch) if options.batch is not None else ()
    say(f"Loading {options.model} …")
    few_steps = _suffices_few_steps(options)
    with headers_only() if options.memory else nullcontext():
        pipeline = load_model(options, few_steps=few_steps)
    if few_steps:
        say(f"For {options.steps or pipeline.preset.steps} steps its form for few steps is used: solver "
            f"{pipeline.preset.solver}, guidance {pipeline.preset.guidance_scale:g}, where you say nothing else; "
            "--no-few-steps takes the model itself.")
    choices |= {"negative_prompt": options.negative_prompt, "width": options.width, "height": options.height}
    if options.memory:
        return _say_memory(pipeline, choices, rows, references=max(len(options.image or [None]), len(
            options.target or [None])))
    if rows:
        given, source = ({name: x for name, x in said.items() if x is not None} for said in (
            choices, {name: getattr(options, name) for name in LOADED}))
        summary = batch.run_batch(pipeline, rows, options.out, options=given, loaded=batch.identity(pipeline),
                                  source=source, report=say)
        say(f"{summary.made} made, {summary.skipped} there already, {summary.failed} failed: {options.out}")
        return 2 if summary.failed else 0
    steps = options.steps or pipeline.preset.steps
    steps -= skipped_steps(steps, options.strength, begins=options.init_image is not None,
                           masked=options.mask_image is not None)
    with tqdm(total=steps, desc="Sampling (the first step compiles)", unit="step", leave=False) as bar:
        result = pipeline(
            options.image or ASSETS / "references" / "dog.png", _prompt(options), options.target or "dog",
            **choices, on_step=lambda step: bar.update())
    files = contact_sheet.save_pictures(result, options.out)
    say(f"Wrote {len(files)} pictures; look at {files[-1]}")
    return 0


def _suffices_few_steps(options: argparse.Namespace) -> bool:
    """Whether the model is taken in its form for few steps: as the user says, or else where it brings one for as few
    as are asked for, and is used with its own UNet, adapter and preset, which that form was made for."""
    from realcustom_jax.model_files.source import ModelSource

    if options.few_steps is not None:
        return options.few_steps
    if not options.steps or options.unet or options.adapter or options.preset:
        return False
    return options.steps <= ModelSource.open(options.model).few_steps_limit


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _prompt(options: argparse.Namespace) -> str:
    return PROMPT if options.prompt is None else options.prompt


def _checked_choices(options: argparse.Namespace) -> dict:
    """Options of `Pipeline.__call__`. A large model loads for a minute: what is wrong without it is told before."""
    from realcustom_jax import contact_sheet
    from realcustom_jax.conditioning.images import load_image
    from realcustom_jax.conditioning.initial import InitialPicture
    from realcustom_jax.conditioning.regions import check_region, listed_regions
    from realcustom_jax.errors import check_text
    from realcustom_jax.model_files.lora_files import read_loras
    from realcustom_jax.models.context import check_strengths
    from realcustom_jax.presets import find_preset
    from realcustom_jax.sampling.options import check_options

    contact_sheet.check_folder(options.out)
    if options.batch and (unused := [_flag(name) for name in _OF_ROWS if getattr(options, name) is not None]):
        raise ValueError(f"--batch brings prompts and pictures of its own, so {', '.join(unused)} would not be "
                         "used; leave out one or the other.")
    if options.image and not options.target and "dog" not in _prompt(options).lower():
        raise ValueError("--target is missing: the word or words of the prompt that the --image shows.")
    choices = {"steps": options.steps, "guidance_scale": options.guidance, "scope": options.scope,
               "branches": options.branches, "freeze_mask_step": options.freeze_mask_step, "seed": options.seed,
               "num_images": options.num_images, "solver": options.solver, "vision_scale": options.vision_scale,
               "guidance_mode": options.guidance_mode, "text_guidance": options.text_guidance,
               "rescale": options.rescale, "strength": options.strength, "shared_reference": options.shared_reference}
    pictures = {"masks": options.mask, "init_image": options.init_image, "mask_image": options.mask_image}
    check_options(**choices, **pictures)
    for what, texts in (("prompt", [_prompt(options)]), ("target", options.target or []),
                        ("negative prompt", [options.negative_prompt or ""])):
        for text in texts:
            check_text(what, text)
    if options.preset is not None:
        find_preset(options.preset)
    for image in options.image or ():
        load_image(image)
    if options.init_image is not None:
        InitialPicture.read(options.init_image, options.mask_image)
    with warnings.catch_warnings(action="ignore"):  # what there is to warn of is told when the model loads
        read_loras(options.lora)
    subjects = max(len(options.image or [None]), len(options.target or [None]))
    if not options.batch:
        check_strengths(options.vision_scale, subjects)
    for i, mask in enumerate(listed_regions(options.mask, subjects), 1):
        if mask is not None:
            check_region(mask, f"mask of target {i}")
    given = choices if options.batch else choices | pictures
    return {name: x for name, x in given.items() if x is not None}


def _say_memory(pipeline, choices: dict, rows, references: int) -> int:
    """Prints what the call needs, or the row of a batch that needs most; 2 where the device has less."""
    from realcustom_jax.batch import Row
    from realcustom_jax.memory import sampler_memory

    about = ("width", "height", "num_images", "branches", "steps", "scope", "freeze_mask_step", "guidance_scale",
             "guidance_mode", "solver")
    given = choices.get("masks")
    calls = [{name: choices[name] for name in about if name in choices} | {
        "references": references, "masks": given is not None and None not in given}]
    if rows:
        calls = [calls[0] | {name: x for name, x in row.options.items() if name in about}
                 | {"references": max(len(row.references), len(row.targets)), "masks": row.has_all_masks}
                 for row in rows if isinstance(row, Row)]
    distinct = {tuple(call.items()): call for call in calls}.values()
    memory = max((sampler_memory(pipeline, **call) for call in distinct), key=lambda memory: memory.needed)
    print(memory)
    return 0 if memory.fits else 2
