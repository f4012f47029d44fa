"""The miniature: every part trained from scratch on the sprite world.

    python train.py --config=configs/mini.py --workdir=runs/mini                    # all stages, in order
    python train.py --config=configs/mini.py --workdir=runs/mini --config.stage=base   # one stage
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "all"
    # A bundle whose image encoders the encoders stage starts from, whose UNet and text encoder the base stage does, and
    # whose adapter the adapter stage does, instead of random ones.
    config.warm_start = ""
    config.on_existing = "resume"  # what a stage does with checkpoints that it finds: resume, overwrite or refuse
    config.seed = 0
    config.data = {"num_train": 36_000, "num_test": 1_500, "seed": 0}

    width = 96  # of the text tokens, the vision tokens and everything that crosses over to the UNet
    vision_width = 64
    config.models = {
        "vae": {
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 8,
            "block_out_channels": [16, 32, 64], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64,
            "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
            "mid_block_add_attention": False, "scaling_factor": 1.0,
        },
        "text_encoder": {
            "model_type": "clip_text_model", "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 24, "hidden_act": "gelu",
            "projection_dim": width,
        },
        "image_encoder_siglip": {
            "img_size": 32, "patch_size": 4, "embed_dim": vision_width, "depth": 4, "num_heads": 4,
            "class_token": False, "global_pool": "map", "num_classes": 0,
        },
        "image_encoder_dinov2": {
            "img_size": 32, "patch_size": 4, "embed_dim": vision_width, "depth": 4, "num_heads": 4,
            "init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "num_classes": 0,
        },
        "unet": {
            "_class_name": "UNet2DConditionModel", "in_channels": 8, "out_channels": 8, "sample_size": 16,
            "block_out_channels": [64, 96, 128], "layers_per_block": 1, "attention_head_dim": [4, 4, 4],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
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
            "size": 64, "encoder_size": 32, "split": 2, "local": "tiles", "quantize": True,
            "siglip_layers": [1, 2, 3], "dino_layers": [1, 2, 3],
        },
    }
    config.models.judge = {"widths": [32, 64, 96], "hidden": 192, "groups": 8}
    config.prediction = "v_prediction"
    config.masked = 0.9  # share of the adapter's pairs that are trained with the mask of sampling; the paper's is 0
    config.taught = 0.75  # how much of the adapter's target is the base model's, told in words; the paper's is 0
    config.spelled = 0.1  # weight of finding the words of a reference among its vision tokens; the paper's is 0
    config.curriculum = {"recipe": "curriculum", "start": 0.05, "end": 0.3, "final_reconstruction": 0.1}
    config.optimization = {
        "autoencoder": {"steps": 1100, "batch_size": 16, "learning_rate": 2e-3, "decay": 0.3, "save_every": 200,
                        "sample_every": 200},
        "encoders": {"steps": 2000, "batch_size": 64, "learning_rate": 2e-3, "decay": 0.6, "optimizer": "muon",
                     "save_every": 250, "sample_every": 500},
        "judge": {"steps": 1500, "batch_size": 64, "learning_rate": 2e-3, "decay": 0.5, "ema": 0.995, "save_every": 100,
                  "sample_every": 500},
        "base": {"steps": 6000, "batch_size": 64, "learning_rate": 1e-3, "decay": 0.5, "ema": 0.9985,
                 "optimizer": "muon", "save_every": 250, "sample_every": 500},
        "adapter": {"steps": 2000, "batch_size": 64, "learning_rate": 2e-3, "decay": 0.6, "ema": 0.9985,
                    "optimizer": "muon", "save_every": 250, "sample_every": 250},
    }
    for settings in config.optimization.values():
        settings.update({"accumulate": 1, "keep": 2, "keep_every": 0, "clip": 1.0, "log_every": 20, **settings})
    return config
