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
_LOADED = "model", "adapter", "vision", "tokenizer", "vae", "unet", "lora", "prediction", "preset", "dtype"
_WORDS = "prompt", "image", "target"  # what each row of a batch says for itself
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

    choices = _checked_choices(options)
    rows = batch.read_rows(options.batch) if options.batch is not None else ()
    say(f"Loading {options.model} …")
    with headers_only() if options.memory else nullcontext():
        pipeline = Pipeline.load(
            options.model, options.adapter, vision=options.vision, tokenizer=options.tokenizer, vae=options.vae,
            unet=options.unet, loras=_loras(options), prediction=options.prediction,
            preset=options.preset, dtype=options.dtype, offload=options.offload)
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
    with tqdm(total=options.steps, desc="Sampling (the first step compiles)", unit="step", leave=False) as bar:
        result = pipeline(
            options.image or ASSETS / "references" / "dog.png", _prompt(options), options.target or "dog",
            **choices, on_step=lambda step: bar.update())
    files = contact_sheet.save_pictures(result, options.out)
    say(f"Wrote {len(files)} pictures; look at {files[-1]}")
    return 0


def _loras(options: argparse.Namespace) -> list[tuple[str, float]]:
    """(file, scale) of each FILE or FILE:SCALE; a colon may also be a part of the path."""
    loras = []
    for given in options.lora or ():
        file, _, scale = given.rpartition(":")
        try:
            loras.append((file, float(scale)) if file else (given, 1.0))
        except ValueError:
            loras.append((given, 1.0))
    return loras


def _prompt(options: argparse.Namespace) -> str:
    return _PROMPT if options.prompt is None else options.prompt


def _checked_choices(options: argparse.Namespace) -> dict:
    """Options of `Pipeline.__call__`. A large model loads for a minute: what is wrong without it is told before."""
    from realcustom_jax import contact_sheet
    from realcustom_jax.conditioning.images import load_image
    from realcustom_jax.errors import check_text
    from realcustom_jax.model_files.lora_files import read_loras
    from realcustom_jax.presets import find_preset
    from realcustom_jax.sampling.options import check_options

    contact_sheet.check_folder(options.out)
    if options.batch and (unused := [f"--{name}" for name in _WORDS if getattr(options, name) is not None]):
        raise ValueError(f"--batch brings prompts, images and targets of its own, so {', '.join(unused)} would not be "
                         "used; leave out one or the other.")
    if options.image and not options.target and "dog" not in _prompt(options).lower():
        raise ValueError("--target is missing: the word or words of the prompt that the --image shows.")
    choices = {"steps": options.steps, "guidance_scale": options.guidance, "scope": options.scope,
               "branches": options.branches, "freeze_mask_step": options.freeze_mask_step, "seed": options.seed,
               "num_images": options.num_images, "solver": options.solver, "vision_scale": options.vision_scale}
    check_options(**choices)
    for what, texts in (("prompt", [_prompt(options)]), ("target", options.target or []),
                        ("negative prompt", [options.negative_prompt or ""])):
        for text in texts:
            check_text(what, text)
    if options.preset is not None:
        find_preset(options.preset)
    for image in options.image or ():
        load_image(image)
    with warnings.catch_warnings(action="ignore"):  # what there is to warn of is told when the model loads
        read_loras(_loras(options))
    return choices


def _say_memory(pipeline, choices: dict, rows, references: int) -> int:
    """Prints what the call needs, or the row of a batch that needs most; 2 where the device has less."""
    from realcustom_jax.batch import Row
    from realcustom_jax.memory import sampler_memory

    about = "width", "height", "num_images", "branches", "steps", "scope", "freeze_mask_step"
    calls = [{name: choices[name] for name in about} | {"references": references}]
    if rows:
        calls = [calls[0] | {name: x for name, x in row.options.items() if name in about}
                 | {"references": max(len(row.references), len(row.targets))}
                 for row in rows if isinstance(row, Row)]
    distinct = {tuple(call.items()): call for call in calls}.values()
    memory = max((sampler_memory(pipeline, **call) for call in distinct), key=lambda memory: memory.needed)
    print(memory)
    return 0 if memory.fits else 2


def say(line: str) -> None:
    from realcustom_jax.errors import printable

    tqdm.write(printable(line, sys.stderr), file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", default="mini", help="a folder, a single file, a name on the hub, or mini (bundled)")
    add("--image", action="append", help="a reference picture (a bundled dog); repeat it for several subjects")
    add("--prompt", help=f"what the pictures should show ({_PROMPT})")
    add("--target", action="append", help="the prompt's words for the subject (dog); one for each subject")
    add("--batch", type=Path, help="a JSON-lines file of prompts instead (see realcustom_jax/batch.py); resumable")
    add("--out", type=Path, default=Path("out"), help="folder for the pictures")
    add("--seed", type=int, default=0, help="of the noise")
    add("--num-images", type=int, default=1, help="how many pictures to make")
    add("--width", type=int, help="of the pictures, in pixels (what the model was made for)")
    add("--height", type=int, help="likewise")
    add("--steps", type=int, default=25, help="of the solver")
    add("--solver", default="dpm_single", help="dpm_single, dpm_multi, ddim, euler, euler_ancestral or lcm")
    add("--guidance", type=float, help="scale of classifier-free guidance; 1 is none, and faster (the preset's)")
    add("--vision-scale", type=float, default=1.0, help="strength of the references; 0 is the text alone")
    add("--scope", type=float, help="share of the picture that a subject's mask covers, in (0, 1] (the preset's)")
    add("--branches", default="fused", help="fused or sequential: how guidance and generation are run")
    add("--freeze-mask-step", type=int, help="keep the mask from this step on (the preset's)")
    add("--negative-prompt", help="what the pictures should not show (the preset's)")
    add("--adapter", help="file or folder of an adapter (the model's own)")
    add("--vision", help="folder of the image encoders (the model's own)")
    add("--tokenizer", help="folder of tokenizer/ and tokenizer_2/ (the model's own)")
    add("--vae", help="file or folder of another autoencoder (the model's own)")
    add("--unet", help="file or folder of another base UNet (the model's own)")
    add("--lora", action="append", help="a LoRA: FILE or FILE:SCALE, as in style.safetensors:0.8; repeat it for more")
    add("--prediction", choices=("epsilon", "v_prediction"), help="what the UNet predicts (as its file says)")
    add("--preset", help="default, released_pipeline, released_script or paper (the model's own)")
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
