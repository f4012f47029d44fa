"""RealCustom++ on Stable Diffusion XL, as released: the files are in docs/models.md.

    python sample.py --config configs/sdxl.py --image dog.jpg --prompt "a dog in space" --target dog

Parameters in bfloat16 take 5.7 GiB of the device's memory, 8.5 GiB without `offload` (computed); for the sampler itself
ask `python sample.py --config configs/sdxl.py --memory`. Times on GPUs and TPUs are computed in docs/models.md, and not
measured yet.
Each choice that the released code, the paper and standard SDXL make differently is one line of `preset`.
"""

import ml_collections


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
            "negative_prompt": "blurry, deformed, watermark, text, low quality",
        },
    }
    # The adapter's training on your own pictures (docs/scale.md); --compile_only and --print_sharding look at its step.
    config.train = {
        "kind": "sdxl",
        "model": "ckpts/sdxl",
        "vision": "ckpts",
        "tokenizer": "",  # a folder, where the model is a single file
        "adapter": "",  # one to continue from; none: a fresh one, as `fresh` says
        "dtype": "bfloat16",  # of everything frozen, and of computation
        "on_existing": "resume",  # or overwrite, refuse
        "side": 1024,
        "precomputed": False,  # True: latents, texts and image features are computed once, ahead, to WORKDIR/features
        "data": {"folder": "", "max_broken": 0, "seed": 0},
        "preset": {"pooled": "projected", "size_order": "height_first"},  # as SDXL itself was trained
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
