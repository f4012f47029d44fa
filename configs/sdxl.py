"""RealCustom++ on Stable Diffusion XL, as released: the files are in docs/models.md.

    python sample.py --config configs/sdxl.py --image dog.jpg --prompt "a dog in space" --target dog

Parameters in bfloat16 take 5.7 GiB of the device's memory, 8.5 GiB without `offload` (computed); for the sampler itself
ask `python sample.py --config configs/sdxl.py --memory`. The sampler was timed on an H100 with random weights;
docs/guides/memory.md says the time, and computes it for other devices. Training has not been timed.
Each choice that the released code, the paper and standard SDXL make differently is one line of `preset`.
"""

import ml_collections

from realcustom_jax.presets import NEGATIVE_PROMPT
from realcustom_jax.training.published.config import published_defaults


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.sample = {
        "model": "ckpts/sdxl",  # or a diffusers folder, a single file (with tokenizer=…), a name on the hub
        "adapter": "ckpts/realcustom/RealCustom_highres.pth",
        "vision": "ckpts",
        "dtype": "bfloat16",
        "offload": True,
        "width": 1024,
        "height": 1024,
        "steps": 25,
        "preset": {
            "local": "phases",  # how the reference's local views are cut: phases (released) or tiles (paper)
            "pooled": "unprojected",  # the pooled text: unprojected (released) or projected (standard SDXL)
            "size_order": "width_first",  # of time_ids: width_first (released) or height_first (standard SDXL)
            "weight_order": "adapter_last",  # whose weights win: adapter_last or base_last (the released script)
            "match": "word",  # how the target is found: word or released (case-sensitive substring)
            "normalize": "max_norm",  # of the mask: max_norm, min_max_norm, min_max_per_channel or none
            "refine": 0,  # n: the mask by self-attention at the latents' size divided by n; 0: as it is
            "scope": 0.25,  # share of the picture that the mask covers
            "freeze_mask_step": 12,  # the mask stays from this step on; 99: never
            "guidance_scale": 3.5,
            "solver": "dpm_single",  # as released; without this line, as the folder's scheduler says
            "negative_prompt": NEGATIVE_PROMPT,
        },
    }
    # The adapter's training on your own pictures (docs/training/own_pictures.md); --compile_only and --print_sharding
    # look at its step.
    # Every key, with its comment and default: realcustom_jax/training/published/config.py.
    # What others did: IP-Adapter trained its SDXL adapters at 512 x 512 and then at 1024
    # (https://github.com/tencent-ailab/IP-Adapter); RealCustom took 160,000 steps at 1e-5 on SD-1.5 (arXiv 2403.00483).
    # docs/training/recipe.md does it in these two stages: --config.train.side=512, then side=1024 with adapter=….
    config.train = published_defaults(
        kind="sdxl", model="ckpts/sdxl", side=1024,
        preset={"pooled": "projected", "size_order": "height_first"})  # as SDXL itself was trained
    return config
