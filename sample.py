"""Pictures of your subject: python sample.py --image dog.png --prompt "a dog in space" --target dog"""

import argparse
import importlib.util
import logging
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

_LOADED = "model", "adapter", "vision", "tokenizer", "preset", "dtype"  # what a pipeline is loaded from, and how


def main(arguments: list[str] | None = None) -> int:
    """Runs one call of `Pipeline`, or a batch; returns the exit code, 2 after one sentence about unusable input."""
    options = parse(arguments)
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # that an accelerator is missing is no news
    from realcustom_jax import batch, contact_sheet
    from realcustom_jax.conditioning.references import load_image
    from realcustom_jax.memory import enough_memory, sampler_memory
    from realcustom_jax.model_files.locate import ASSETS
    from realcustom_jax.model_files.tensors import headers_only
    from realcustom_jax.pipeline import Pipeline, check_options

    warnings.showwarning = lambda message, kind, *_: kind is UserWarning and say(f"warning: {message}")
    try:
        contact_sheet.check_folder(options.out)
        if options.image and not options.target and "dog" not in options.prompt.lower():
            raise ValueError("--target is missing: the word or words of the prompt that the --image shows.")
        choices = {"steps": options.steps, "guidance_scale": options.guidance, "scope": options.scope,
                   "branches": options.branches, "freeze_mask_step": options.freeze_mask_step, "seed": options.seed,
                   "num_images": options.num_images}
        # A large model loads for a minute: what is wrong without it is told before.
        check_options(**choices)
        for image in options.image or ():
            load_image(image)
        rows = batch.read_rows(options.batch) if options.batch else None
        say(f"Loading {options.model} …")
        with headers_only() if options.memory else nullcontext():
            pipeline = Pipeline.load(
                options.model, options.adapter, vision=options.vision, tokenizer=options.tokenizer,
                preset=options.preset, dtype=options.dtype, offload=options.offload)
        size = {"width": options.width, "height": options.height}
        choices |= {"negative_prompt": options.negative_prompt, **size}
        if options.memory:
            memory = sampler_memory(
                pipeline, **size, num_images=options.num_images, branches=options.branches,
                references=max(len(options.image or [None]), len(options.target or [None])))
            print(memory)
            return 0 if memory.fits else 2
        if rows:
            loaded = {name: getattr(options, name) for name in _LOADED}
            given, loaded = ({name: x for name, x in said.items() if x is not None} for said in (choices, loaded))
            summary = batch.run(pipeline, rows, options.out, options=given, loaded=loaded, report=say)
            say(f"{summary.made} made, {summary.skipped} there already, {summary.failed} failed: {options.out}")
            return 2 if summary.failed else 0
        with tqdm(total=options.steps, desc="Sampling (the first step compiles)", unit="step", leave=False) as bar:
            with enough_memory():
                result = pipeline(
                    options.image or ASSETS / "references" / "dog.png", options.prompt, options.target or "dog",
                    **choices, on_step=lambda step: bar.update())
        files = contact_sheet.save(result, options.out)
    except (ValueError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    say(f"Wrote {len(files)} pictures; look at {files[-1]}")
    return 0


def say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", default="mini", help="a folder, a single file, a name on the hub, or mini (bundled)")
    add("--image", action="append", help="a reference picture (a bundled dog); repeat it for several subjects")
    add("--prompt", default="a dog on the beach", help="what the pictures should show")
    add("--target", action="append", help="the prompt's words for the subject (dog); one for each subject")
    add("--batch", type=Path, help="a JSON-lines file of prompts instead (see realcustom_jax/batch.py); resumable")
    add("--out", type=Path, default=Path("out"), help="folder for the pictures")
    add("--seed", type=int, default=0, help="of the noise")
    add("--num-images", type=int, default=1, help="how many pictures to make")
    add("--width", type=int, help="of the pictures, in pixels (what the model was made for)")
    add("--height", type=int, help="likewise")
    add("--steps", type=int, default=25, help="of the solver")
    add("--guidance", type=float, help="scale of classifier-free guidance (3.5)")
    add("--scope", type=float, help="share of the picture that a subject's mask covers, in (0, 1] (the preset's)")
    add("--branches", default="fused", help="fused or sequential: how guidance and generation are run")
    add("--freeze-mask-step", type=int, help="keep the mask from this step on (12)")
    add("--negative-prompt", help="what the pictures should not show (the preset's)")
    add("--adapter", help="file or folder of an adapter (the model's own)")
    add("--vision", help="folder of the image encoders (the model's own)")
    add("--tokenizer", help="folder of tokenizer/ and tokenizer_2/ (the model's own)")
    add("--preset", help="default, released_pipeline, released_script or paper (the model's own)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
        help="of parameters and computation")
    add("--offload", action="store_true", help="keep the encoders out of the device's memory while sampling")
    add("--memory", action="store_true", help="only say how much memory the sampler needs, and whether it fits")
    add("--config", type=Path, help="a Python file whose get_config() sets any of these, e.g. configs/sdxl.py")
    known = parser.parse_args(arguments)
    if known.config:
        values = read_config(known.config, parser)
        if unknown := sorted(set(values) - set(vars(known))):
            parser.error(f"{known.config}: {', '.join(unknown)} is no option of this program")
        parser.set_defaults(**values)
        known = parser.parse_args(arguments)
    return known


def read_config(file: Path, parser: argparse.ArgumentParser) -> dict:
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
