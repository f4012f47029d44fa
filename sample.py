"""Pictures of your subject: python sample.py --image dog.png --prompt "a dog in space" --target dog"""

import argparse
import dataclasses
import importlib.util
import logging
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

# What a pipeline is loaded from, and how.
_LOADED = "model", "adapter", "vision", "tokenizer", "vae", "unet", "prediction", "lora", "preset", "dtype"
# What each row of a batch says for itself.
_OF_ROWS = "prompt", "image", "target", "mask", "init_image", "mask_image", "strength"
_PROMPT = "a dog on the beach"


def main(arguments: list[str] | None = None) -> int:
    """Runs one call of `Pipeline`, or a batch; returns the exit code, see module `errors`."""
    options = parse(arguments)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # that an accelerator is missing is no news
    from realcustom_jax import errors
    from realcustom_jax.memory import enough_memory

    def work():
        with enough_memory():
            return _run(options)

    with warnings.catch_warnings():  # which also puts the caller's way of showing warnings back
        warnings.showwarning = lambda message, kind, *_: kind is UserWarning and say(
            f"warning: {errors.sentence(message)}")
        return errors.exit_code(work, debug=options.debug, report=say)


def _run(options: argparse.Namespace) -> int:
    """The exit code; raises ValueError or OSError for what cannot be used."""
    from realcustom_jax import batch, contact_sheet
    from realcustom_jax.model_files.locate import ASSETS
    from realcustom_jax.model_files.tensors import headers_only
    from realcustom_jax.pipeline import Pipeline
    from realcustom_jax.sampling.options import skipped_steps

    choices = _checked_choices(options)
    rows = batch.read_rows(options.batch) if options.batch is not None else ()
    say(f"Loading {options.model} …")
    few_steps = _suffices_few_steps(options)
    with headers_only() if options.memory else nullcontext():
        pipeline = Pipeline.load(
            options.model, options.adapter, vision=options.vision, tokenizer=options.tokenizer, vae=options.vae,
            unet=options.unet, prediction=options.prediction, loras=options.lora or (), preset=options.preset,
            dtype=options.dtype, offload=options.offload, few_steps=few_steps)
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
            choices, {name: getattr(options, name) for name in _LOADED}))
        # A model may have been trained anew at its path, so its content is compared, and how its preset uses it.
        loaded = {"content": pipeline.fingerprints(), "preset": dataclasses.asdict(pipeline.preset)}
        summary = batch.run_batch(pipeline, rows, options.out, options=given, loaded=loaded, source=source, report=say)
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
    from realcustom_jax.model_files.bundle import FEW_STEPS
    from realcustom_jax.model_files.source import ModelSource

    if options.few_steps is not None:
        return options.few_steps
    if not options.steps or options.unet or options.adapter or options.preset:
        return False
    model = ModelSource.open(options.model)
    return model.has(FEW_STEPS) and options.steps <= model.few_steps()[1]["steps"]


def _prompt(options: argparse.Namespace) -> str:
    return _PROMPT if options.prompt is None else options.prompt


def _checked_choices(options: argparse.Namespace) -> dict:
    """Options of `Pipeline.__call__`. A large model loads for a minute: what is wrong without it is told before."""
    from realcustom_jax import contact_sheet
    from realcustom_jax.conditioning.images import load_image
    from realcustom_jax.conditioning.initial import InitialPicture
    from realcustom_jax.conditioning.regions import check_region, listed_regions
    from realcustom_jax.errors import check_text
    from realcustom_jax.model_files.lora_files import read_loras
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
               "rescale": options.rescale, "strength": options.strength}
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
    for i, mask in enumerate(listed_regions(options.mask, subjects), 1):
        if mask is not None:
            check_region(mask, f"mask of target {i}")
    return choices if options.batch else choices | pictures


def _say_memory(pipeline, choices: dict, rows, references: int) -> int:
    """Prints what the call needs, or the row of a batch that needs most; 2 where the device has less."""
    from realcustom_jax.batch import Row
    from realcustom_jax.memory import sampler_memory

    about = ("width", "height", "num_images", "branches", "steps", "scope", "freeze_mask_step", "guidance_scale",
             "guidance_mode", "solver")
    given = choices.get("masks")
    calls = [{name: choices[name] for name in about} | {
        "references": references, "masks": given is not None and None not in given}]
    if rows:
        calls = [calls[0] | {name: x for name, x in row.options.items() if name in about}
                 | {"references": max(len(row.references), len(row.targets)), "masks": row.has_all_masks}
                 for row in rows if isinstance(row, Row)]
    distinct = {tuple(call.items()): call for call in calls}.values()
    memory = max((sampler_memory(pipeline, **call) for call in distinct), key=lambda memory: memory.needed)
    print(memory)
    return 0 if memory.fits else 2


def say(line: str) -> None:
    from realcustom_jax.errors import printable

    tqdm.write(printable(line, sys.stderr), file=sys.stderr)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that there are, and the examples line by line."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


_EXAMPLES = """examples:
  python sample.py                                                    the bundled dog on the beach
  python sample.py --image a.png --image b.png --target dog --target car --prompt "a dog and a car in space"
  python sample.py --vision-scale up=0.5,down=1                       weaker in the UNet's upper half
  python sample.py --guidance 1 --solver lcm --steps 4                no negative lane, for a distilled model
  python sample.py --mask 8,40,72,120                                 the subject in a box: left, top, right, bottom
  python sample.py --init-image photo.png --mask-image hole.png       the subject goes into a photograph
  python sample.py --init-image photo.png --strength 0.6              image to image
  python sample.py --lora style.safetensors:0.8 --lora hat.safetensors
  python sample.py --batch prompts.jsonl --out pictures               many prompts, resumable
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help, epilog=_EXAMPLES)
    add = parser.add_argument_group("what to make").add_argument
    add("--prompt", help=f"what the pictures should show ({_PROMPT})")
    add("--image", action="append", help="a reference picture (a bundled dog); repeat it for several subjects")
    add("--target", action="append", help="the prompt's words for the subject (dog); one for each subject")
    add("--negative-prompt", help="what the pictures should not show (the preset's)")
    add("--batch", type=Path, help="a JSON-lines file of prompts instead (see realcustom_jax/batch.py); resumable")
    add("--out", type=Path, default=Path("out"), help="folder for the pictures")
    add("--seed", type=int, default=0, help="of the noise")
    add("--num-images", type=int, default=1, help="how many pictures to make")
    add("--width", type=int, help="of the pictures, in pixels (what the model was made for)")
    add("--height", type=int, help="likewise")

    add = parser.add_argument_group("steps and guidance").add_argument
    add("--steps", type=int, help="of the solver (the preset's, 25); a model that brings a form for few steps "
                                  "(few_steps/), as the miniature does for 4, is loaded in it for as few")
    add("--few-steps", action=argparse.BooleanOptionalAction, help="load the model in that form, or never")
    add("--solver", help="dpm_single, dpm_multi, ddim, euler, euler_ancestral or lcm (the preset's, the model's)")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 is none, and faster (the preset's)")
    add("--guidance-mode", default="none_direct",
        help="none_direct, none, naive, naive_global or naive_global_direct (see realcustom_jax/sampling/guidance.py)")
    add("--text-guidance", type=float, help="scale of the text alone in the modes that have one (that of --guidance)")
    add("--rescale", type=float, default=0.0, help="share by which the naive modes pull the deviation back")

    add = parser.add_argument_group("the subject: how strong, and where").add_argument
    add("--vision-scale", type=_strengths, default=1.0,
        help="strength of the references, 0 is the text alone: a number, one for each subject (1,0.5), or by block "
             "(up=0.5,down=1)")
    add("--scope", type=float, help="share of the picture that a subject's mask covers, in (0, 1] (the preset's)")
    add("--mask", type=_region, action="append",
        help="where the subject is to be: a picture that is white there, a box left,top,right,bottom in pixels, or "
             "auto (as attention finds it); one for each subject")
    add("--branches", help="fused or sequential: how guidance and generation are run (the preset's, mostly fused)")
    add("--freeze-mask-step", type=int, help="keep the mask from this step on (the preset's)")

    add = parser.add_argument_group("a picture to begin with").add_argument
    add("--init-image", help="the picture")
    add("--strength", type=float, help="how much of it changes, in (0, 1] (0.8; with --mask-image 1)")
    add("--mask-image", type=_region, help="where it is painted anew: a picture that is white there, or a box")

    add = parser.add_argument_group("the model").add_argument
    add("--model", default="mini", help="a folder, a single file, a name on the hub, or mini (bundled)")
    add("--adapter", help="file or folder of an adapter (the model's own)")
    add("--vision", help="folder of the image encoders (the model's own)")
    add("--tokenizer", help="folder of tokenizer/ and tokenizer_2/ (the model's own)")
    add("--vae", help="file or folder of another autoencoder (the model's own)")
    add("--unet", help="file or folder of another base UNet (the model's own)")
    add("--lora", type=_lora, action="append",
        help="a LoRA file, with its scale if that is not 1 (style.safetensors:0.8); repeat it for several")
    add("--prediction", choices=("epsilon", "v_prediction"), help="what the UNet predicts (as its file says)")
    add("--preset", help="default, released_pipeline, released_script or paper (the model's own)")

    add = parser.add_argument_group("the program").add_argument
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
        help="of parameters and computation")
    add("--offload", action="store_true", help="keep the encoders out of the device's memory while sampling")
    add("--memory", action="store_true", help="only say how much memory the sampler needs, and whether it fits")
    add("--config", type=Path, help="a Python file whose get_config() sets any of these, e.g. configs/sdxl.py")
    add("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    known = parser.parse_args(arguments)
    if known.config:
        values = read_sample_options(known.config, parser)
        if unknown := sorted(set(values) - set(vars(known))):
            parser.error(f"{known.config}: {', '.join(unknown)} is no option of this program")
        parser.set_defaults(**values)
        known = parser.parse_args(arguments)
    return known


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _strengths(text: str) -> float | list[float] | dict[str, float]:
    """0.5, or 1,0.5 for two subjects, or up=0.5,down=1 by block."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if "=" in text:
            return {block.strip(): float(number) for block, number in (part.split("=") for part in parts)}
        numbers = [float(part) for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no strength; expected a number, one for each subject as in 1,0.5, or blocks as in "
            "up=0.5,down=1") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _lora(text: str) -> tuple[str, float]:
    """(file, scale) of FILE or FILE:SCALE; a colon of Windows' drives is followed by no number."""
    file, _, scale = text.rpartition(":")
    try:
        return (file, float(scale)) if file else (text, 1.0)
    except ValueError:
        return text, 1.0


def _region(text: str) -> str | list[float] | None:
    """A box, if these are numbers, the path of a picture, or None for auto."""
    if text == "auto":
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def read_sample_options(file: Path, parser: argparse.ArgumentParser) -> dict:
    """The `sample` part of what the file's `get_config()` returns."""
    if not file.is_file():
        parser.error(f"--config {file} does not exist")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # it is the user's program
        parser.error(f"--config {file} cannot be used: {type(error).__name__}: {error}")
    if "sample" not in config:
        parser.error(f"--config {file} says nothing about sampling: its get_config() has no `sample`")
    return config.sample.to_dict()


if __name__ == "__main__":
    sys.exit(main())
