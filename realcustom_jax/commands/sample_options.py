"""The options of the command that makes pictures, on the command line and in a configuration file."""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from realcustom_jax.commands.program import path_option, program

if TYPE_CHECKING:
    from realcustom_jax.pipeline import Pipeline

PROMPT = "a dog on the beach"


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that there are, and the examples line by line."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


_EXAMPLES = {
    "": "the bundled dog on the beach",
    '--image a.png --image b.png --target dog --target car --prompt "a dog and a car in space"': "two subjects",
    "--vision-scale up=0.5,down=1": "weaker in the UNet's upper half",
    "--guidance 1 --solver lcm --steps 4": "no negative lane, for a distilled model",
    "--mask 8,40,72,120": "the subject in a box: left, top, right, bottom",
    "--init-image photo.png --mask-image hole.png": "the subject goes into a photograph",
    "--init-image photo.png --strength 0.6": "image to image",
    "--lora style.safetensors:0.8 --lora hat.safetensors": "two LoRA files",
    "--batch prompts.jsonl --out pictures": "many prompts, resumable",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options as a namespace; argparse's exit, with code 2 and a sentence, for what cannot be read.

    Args:
        arguments: those of the command line; None stands for this process's.
    """
    name = program("realcustom")
    examples = "".join(f"{f'  {name} {options}'.rstrip()}\n      {what}\n" for options, what in _EXAMPLES.items())
    parser = argparse.ArgumentParser(
        prog=name, description="Pictures of your subject, by a word of the prompt.", formatter_class=Help,
        epilog=f"examples:\n{examples}".replace("%", "%%"))
    add = parser.add_argument_group("what to make").add_argument
    add("--prompt", help=f"what the pictures should show ({PROMPT})")
    add("--image", action="append", help="a reference picture (a bundled dog); repeat it for several subjects")
    add("--target", action="append", help="the prompt's words for the subject (dog); one for each subject")
    add("--negative-prompt", help="what the pictures should not show (the preset's)")
    add("--batch", type=path_option,
        help="a JSON-lines file of prompts instead (see realcustom_jax/batch.py); resumable")
    add("--out", type=path_option, default=Path("out"), help="folder for the pictures")
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
    add("--shared-reference",
        help="what several targets of one --image are given: whole, in which their words have to choose, or cropped, "
             "the part that attention finds for each (the preset's)")
    add("--freeze-mask-step", type=int, help="keep the mask from this step on (the preset's)")

    add = parser.add_argument_group("a picture to begin with").add_argument
    add("--init-image", help="the picture")
    add("--strength", type=float, help="how much of it changes, in (0, 1] (0.8; with --mask-image 1)")
    add("--mask-image", type=_region, help="where it is painted anew: a picture that is white there, or a box")

    add_model_options(parser)

    add = parser.add_argument_group("the program").add_argument
    add("--memory", action="store_true", help="only say how much memory the sampler needs, and whether it fits")
    add("--config", type=Path, help="a Python file whose get_config() sets any of these, e.g. configs/sdxl.py")
    add("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    return parse_with_config(parser, arguments)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what `Pipeline.load` loads, and how, for every command that loads one."""
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
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
        help="of parameters and computation")
    add("--offload", action="store_true", help="keep the encoders out of the device's memory while sampling")


def load_model(options: argparse.Namespace, *, few_steps: bool = False) -> "Pipeline":
    """The pipeline that the options of `add_model_options` say; errors as of `Pipeline.load`."""
    from realcustom_jax.pipeline import Pipeline  # which imports JAX, and options are read without it

    return Pipeline.load(
        options.model, options.adapter, vision=options.vision, tokenizer=options.tokenizer, vae=options.vae,
        unet=options.unet, prediction=options.prediction, loras=options.lora or (), preset=options.preset,
        dtype=options.dtype, offload=options.offload, few_steps=few_steps)


def parse_with_config(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options as a namespace, those of the file of `--config` where the command line says nothing else."""
    known = parser.parse_args(arguments)
    if known.config:
        values = read_sample_options(known.config, parser)
        if unknown := sorted(set(values) - set(vars(known))):
            parser.error(f"{known.config}: {', '.join(unknown)} is no option of this program")
        parser.set_defaults(**values)
        known = parser.parse_args(arguments)
    return known


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
