"""Pictures of your subject: python sample.py --image dog.png --prompt "a dog in space" --target dog"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from tqdm import tqdm


def main(arguments: list[str] | None = None) -> int:
    """Runs one call of `Pipeline`; returns the exit code, 2 after one sentence about input that cannot be used."""
    options = parse(arguments)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # only its tokenizer is used: torch is not missed
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # nor is an accelerator
    from realcustom_jax import contact_sheet
    from realcustom_jax.pipeline import ASSETS, Pipeline

    warnings.showwarning = lambda message, kind, *_: kind is UserWarning and say(f"warning: {message}")
    try:
        contact_sheet.check_folder(options.out)
        say(f"Loading {options.model} …")
        pipeline = Pipeline.load(options.model)
        with tqdm(total=options.steps, desc="Sampling (the first step compiles)", unit="step", leave=False) as bar:
            result = pipeline(
                options.image or ASSETS / "references" / "dog.png", options.prompt, options.target or "dog",
                seed=options.seed, num_images=options.num_images, steps=options.steps, guidance_scale=options.guidance,
                scope=options.scope, branches=options.branches, freeze_mask_step=options.freeze_mask_step,
                on_step=lambda step: bar.update())
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
    add("--model", default="mini", help="a model folder, or mini for the one that comes along")
    add("--image", action="append", help="a reference picture (a bundled dog); repeat it for several subjects")
    add("--prompt", default="a dog on the beach", help="what the pictures should show")
    add("--target", action="append", help="the prompt's words for the subject (dog); one for each subject")
    add("--out", type=Path, default=Path("out"), help="folder for the pictures")
    add("--seed", type=int, default=0, help="of the noise")
    add("--num-images", type=int, default=1, help="how many pictures to make")
    add("--steps", type=int, default=25, help="of the solver")
    add("--guidance", type=float, default=3.5, help="scale of classifier-free guidance")
    add("--scope", type=float, default=0.25, help="share of the picture that a subject's mask covers, in (0, 1]")
    add("--branches", default="fused", help="fused or sequential: how guidance and generation are run")
    add("--freeze-mask-step", type=int, default=12, help="keep the mask from this step on")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
