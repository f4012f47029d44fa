"""RealCustom++ on Stable Diffusion 1.5. No adapter is published for it: train one, or bring your own.

    python sample.py --config configs/sd15.py --adapter mine/ --image dog.jpg --prompt "a dog in space" --target dog

Needs about 3 GiB of device memory for parameters (bfloat16) and 1 GiB for a 512 × 512 picture (computed:
`python sample.py --config configs/sd15.py --adapter mine/ --memory`).
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
