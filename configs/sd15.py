"""RealCustom++ on Stable Diffusion 1.5. No adapter is published for it: train one, or bring your own.

    python sample.py --config configs/sd15.py --adapter mine/ --image dog.jpg --prompt "a dog in space" --target dog

Parameters in bfloat16 take 1.9 GiB of the device's memory, 3.4 GiB without `offload` (computed); for the sampler itself
ask `python sample.py --config configs/sd15.py --adapter mine/ --memory`. Times on GPUs and TPUs are computed in
docs/models.md, and not measured yet.
"""

import ml_collections


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
            "local": "tiles",
            "match": "word",
            "normalize": "max_norm",
            "scope": 0.25,
            "freeze_mask_step": 12,
            "guidance_scale": 3.5,
            "negative_prompt": "blurry, deformed, watermark, text, low quality",
        },
    }
    return config
