"""The settings as a command line, which makes the same pictures."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from realcustom_jax.demo.settings import Settings
from realcustom_jax.demo.uploads import bundled_name

Option = tuple[str, str | float | None]
"""The name of an option, and its value; None for an option without one."""

_IN_A_CLONE = "realcustom_jax/assets/references"
_LOADING = ("model", "adapter", "vision", "tokenizer", "vae", "unet", "prediction", "dtype")


def command_line(
    settings: Settings, loading: Sequence[Option] = (), *, match: str = "word", few_steps: int = 0
) -> str:
    """A `realcustom` command that says everything, so that it makes the same pictures with later defaults, too.

    Args:
        settings: what was set. Pictures are named as they were uploaded, without the folder on the server; the bundled
            ones by their place in a clone.
        loading: the options that load the model, see `loading_options`.
        match: the preset's, see `targets.target_tokens`.
        few_steps: for up to so many steps the command would take the model in its form for few steps, which the page
            does not have; 0: there is none.
    """
    options = list(loading)
    for reference, target in zip(*settings.subjects(match), strict=True):
        bundled = bundled_name(reference)
        options += [("image", f"{_IN_A_CLONE}/{bundled}" if bundled else Path(reference).name), ("target", target)]
    options += [
        ("prompt", settings.prompt), ("width", settings.width), ("height", settings.height), ("steps", settings.steps),
        ("guidance", settings.guidance), ("scope", settings.scope), ("vision-scale", settings.strength),
        ("seed", settings.seed), ("num-images", settings.count)]
    if settings.steps <= few_steps:
        options.append(("no-few-steps", None))
    return shlex.join(["realcustom", *(word for option in options for word in _words(*option))])


def loading_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Option]:
    """The options with which a command loaded its model, where they are not the defaults of its parser."""
    said: list[Option] = [("config", str(options.config))] if options.config else []
    said += [(name, getattr(options, name)) for name in (*_LOADING, "preset")
             if getattr(options, name) != parser.get_default(name)]
    if options.lora != parser.get_default("lora"):
        said += [("lora", f"{file}:{scale:g}") for file, scale in options.lora]
    return said + [("offload", None)] * (options.offload != parser.get_default("offload"))


def _words(name: str, value: str | float | None) -> list[str]:
    if value is None:
        return [f"--{name}"]
    text = value if isinstance(value, str) else f"{value:.10g}"
    # What begins with a dash would be read as an option.
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
