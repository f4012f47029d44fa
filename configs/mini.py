"""The miniature: every part trained from scratch on the painted world.

    python train.py --config=configs/mini.py --workdir=runs/mini                    # all stages, in order
    python train.py --config=configs/mini.py --workdir=runs/mini --config.stage=base   # one stage

The bundled miniature was trained with these settings on 2026-11-27, on one NVIDIA H200 with jax 0.11.2: 1480 s in all,
compiling included, in three calls with the same workdir. The autoencoder, the encoders and the judge need nothing of
each other; there they ran side by side, in 300 s. The form for few steps was distilled on 2 CPU cores, nearly with
these settings (README of the bundle).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "all"
    # A bundle from whose base model the base stage starts, and from whose adapter the adapter stage does.
    config.warm_start = ""
    config.on_existing = "resume"  # what a stage does with checkpoints that it finds: resume, overwrite or refuse
    config.seed = 0
    config.data = {"identities": 12_000, "poses": 3, "scenes": 256, "side": 128, "cut_out": 144, "seed": 0}

    width = 128  # of the text tokens, the vision tokens and everything that crosses over to the UNet
    vision_width = 96
    config.models = {
        "vae": {
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 12,
            "block_out_channels": [24, 48, 96, 96], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 128,
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
            "mid_block_add_attention": False, "scaling_factor": 1.0,
        },
        "text_encoder": {
            "model_type": "clip_text_model", "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 32, "hidden_act": "gelu",
            "projection_dim": width,
        },
        "image_encoder_siglip": {
            "img_size": 64, "patch_size": 8, "embed_dim": vision_width, "depth": 4, "num_heads": 4,
            "class_token": False, "global_pool": "map", "num_classes": 0,
        },
        "image_encoder_dinov2": {
            "img_size": 64, "patch_size": 8, "embed_dim": vision_width, "depth": 4, "num_heads": 4,
            "init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "num_classes": 0,
        },
        "unet": {
            "_class_name": "UNet2DConditionModel", "in_channels": 12, "out_channels": 12, "sample_size": 16,
            "block_out_channels": [64, 112, 128], "layers_per_block": 1, "attention_head_dim": [4, 4, 4],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D"] * 3,
            "transformer_layers_per_block": 1, "cross_attention_dim": width, "norm_num_groups": 16,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": width + 6 * 8,
        },
    }
    config.models.adapter = {
        "image_prompt_settings": {
            "vision_projection_type": "custom", "image_prompt_mode": "naive",
            "vision_projection_config": {
                "variant": "paper", "params": {"vision_dim": 2 * vision_width, "out_dim": width, "dim_head": 32},
            },
        },
        "vision_settings": {
            "size": 128, "encoder_size": 64, "split": 2, "local": "tiles", "quantize": True,
            "siglip_layers": [1, 2, 3], "dino_layers": [1, 2, 3],
        },
    }
    config.models.judge = {"widths": [32, 64, 96], "hidden": 192, "groups": 8}
    config.prediction = "v_prediction"
    # How the trained model is used, see `presets.Preset`.
    config.preset = {"scope": 0.25, "binary": True, "refine": 2, "overlap": "argmax_mean", "guidance_scale": 5.0,
                     "shared_reference": "cropped"}
    config.base = {
        "placed": 0.05,  # weight of drawing a noun's attention to its thing
        "pooled_told": 0.25,  # how often the pooled text, too, tells what things look like
    }
    config.adapter = {
        "second": 0.25,  # share of references that show a second thing, so that the word has to choose
        "bystanders": 0.0,  # share of targets with a second, described thing; the paper's pairs have one subject
        "masked": 0.0,  # share of the pairs that are trained with the mask of sampling; the paper's is 0
        "taught": 0.0,  # how much of the target is the base model's prediction, told in words; the paper's is 0
        "spelled": 0.0,  # weight of finding the words of a reference among its vision tokens; the paper's is 0
    }
    config.distill = {
        "steps": 4,  # of the distilled form
        "substeps": 3,  # of the teacher for each of them
        "rank": 24,  # of the change of each weight
        "freeze": 2,  # the distilled form's first step without a mask of its own
        "bystanders": 0.5,  # share of pictures with a second, described thing
    }
    config.curriculum = {"recipe": "curriculum", "start": 0.05, "end": 0.5, "final_reconstruction": 0.1}
    config.optimization = {
        "autoencoder": {"steps": 4000, "batch_size": 32, "learning_rate": 2e-3, "decay": 0.6},
        "encoders": {"steps": 4000, "batch_size": 128, "learning_rate": 2e-3, "decay": 0.6, "optimizer": "muon"},
        "judge": {"steps": 4000, "batch_size": 64, "learning_rate": 2e-3, "decay": 0.5, "ema": 0.995},
        "base": {"steps": 8000, "batch_size": 256, "learning_rate": 1.5e-3, "decay": 0.6, "ema": 0.9985,
                 "optimizer": "muon"},
        "adapter": {"steps": 6000, "batch_size": 128, "learning_rate": 2e-3, "decay": 0.6, "ema": 0.9985,
                    "optimizer": "muon"},
        "distill": {"steps": 400, "batch_size": 16, "learning_rate": 1.5e-3, "warmup": 20, "decay": 0.6, "ema": 0.98,
                    "save_every": 50, "sample_every": 100},
    }
    for settings in config.optimization.values():
        settings.update({"accumulate": 1, "keep": 1, "keep_every": 0, "clip": 1.0, "log_every": 20, "save_every": 500,
                         "sample_every": 2000, "evaluate_every": 0, "evaluate_pictures_every": 0, "wandb": "",
                         **settings})
    return config
