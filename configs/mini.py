"""The miniature: every part trained from scratch on the sprite world.

    python train.py --config=configs/mini.py --workdir=runs/mini                    # all stages, in order
    python train.py --config=configs/mini.py --workdir=runs/mini --config.stage=base   # one stage
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "all"
    config.seed = 0
    config.data = {"num_train": 40_000, "num_test": 2_000, "seed": 0}

    width = 96  # of the text tokens, the vision tokens and everything that crosses over to the UNet
    vision_width = 64
    config.models = {
        "vae": {
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 8,
            "block_out_channels": [24, 48, 96], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64,
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
            "block_out_channels": [64, 128, 192], "layers_per_block": 1, "attention_head_dim": [4, 4, 6],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D"] * 3,
            "transformer_layers_per_block": 1, "cross_attention_dim": width, "norm_num_groups": 16,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": width + 6 * 8,
        },
    }
    config.autoencoder = {"steps": 1500, "batch_size": 32, "learning_rate": 2e-3}
    return config
