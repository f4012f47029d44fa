"""RealCustom++ on Stable Diffusion 1.5. No adapter is published for it: train one, or bring your own.

    python sample.py --config configs/sd15.py --adapter mine/ --image dog.jpg --prompt "a dog in space" --target dog

Parameters in bfloat16 take 1.9 GiB of the device's memory, 3.4 GiB without `offload` (computed); for the sampler itself
ask `python sample.py --config configs/sd15.py --adapter mine/ --memory`. Times on GPUs and TPUs are computed in
docs/guides/memory.md, and not measured yet.
"""

import ml_collections

from realcustom_jax.presets import NEGATIVE_PROMPT
from realcustom_jax.training.published.config import published_defaults


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.sample = {
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vision": "ckpts",
        "dtype": "bfloat16",
        "offload": True,
        "width": 512,
        "height": 512,
        "steps": 25,
        "preset": {
            "local": "tiles",  # what is left out is as configs/sdxl.py has it
            "solver": "dpm_single",  # the published folder's, PNDM, is not supported
            "negative_prompt": NEGATIVE_PROMPT,
        },
    }
    # The adapter's training on your own pictures (docs/training/own_pictures.md); --compile_only and --print_sharding
    # look at its step.
    # Every key, with its comment and default: realcustom_jax/training/published/config.py.
    # RealCustom itself was trained on SD-1.5 for 160,000 steps at a rate of 1e-5, on 16 A100 (arXiv 2403.00483):
    # --config.train.optimization.steps=160000; the rate is the default.
    config.train = published_defaults(kind="sd15", model="stable-diffusion-v1-5/stable-diffusion-v1-5", side=512)
    return config
