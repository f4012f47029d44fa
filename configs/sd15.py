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
            "refine": 0,
            "scope": 0.25,
            "freeze_mask_step": 12,
            "guidance_scale": 3.5,
            "negative_prompt": "blurry, deformed, watermark, text, low quality",
        },
    }
    # The adapter's training on your own pictures (docs/scale.md); --compile_only and --print_sharding look at its step.
    config.train = {
        "kind": "sd15",
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vision": "ckpts",
        "tokenizer": "",  # a folder, where the model is a single file
        "adapter": "",  # one to continue from; none: a fresh one, as `fresh` says
        "dtype": "bfloat16",  # of everything frozen, and of computation
        "on_existing": "resume",  # or overwrite, refuse
        "side": 512,
        "precomputed": False,  # True: latents, texts and image features are computed once, ahead, to WORKDIR/features
        "data": {"folder": "", "max_broken": 0, "seed": 0},
        "preset": {},
        "fresh": {
            "variant": "paper",
            "dim_head": 64,
            "vision_settings": {
                "size": 768, "encoder_size": 384, "split": 2, "local": "tiles", "quantize": True,
                "siglip_layers": [7, 13, 19, 25], "dino_layers": [4, 10, 16, 22]},
        },
        "curriculum": {"recipe": "curriculum", "start": 0.05, "end": 0.5, "final_reconstruction": 0.1},
        "snr_limit": 0.0,  # of min-SNR weights, e.g. 5.0; 0: none
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1},  # -1: as many as are left
        "optimization": {"steps": 100_000, "batch_size": 16, "accumulate": 1, "learning_rate": 1e-5, "warmup": 1000,
                         "decay": 0.1, "weight_decay": 0.01, "ema": 0.9999, "clip": 1.0, "seed": 0, "save_every": 1000,
                         "sample_every": 1000, "log_every": 20, "keep": 2, "keep_every": 10_000},
    }
    return config
