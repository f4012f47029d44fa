"""SDXL with LCM-LoRA (arXiv 2311.05556): four to eight steps of a latent consistency model.

    hf download latent-consistency/lcm-lora-sdxl pytorch_lora_weights.safetensors --local-dir ckpts/lcm-lora-sdxl && \
    python sample.py --config configs/sdxl_lcm.py --image dog.jpg --prompt "a dog in space" --target dog

All else is as configs/sdxl.py has it. These weights cannot be had on our machines: the solvers and the LoRA's names are
tested against diffusers on tiny models, the pictures have not been looked at.
"""

import ml_collections

from configs import sdxl


def get_config() -> ml_collections.ConfigDict:
    config = sdxl.get_config()
    config.sample.lora = [("ckpts/lcm-lora-sdxl", 1.0)]  # the UNet stays RealCustom's
    config.sample.steps = 4  # 2 to 8; fewer is rougher
    config.sample.preset.solver = "lcm"  # predicts the picture, and adds fresh noise before each next step
    config.sample.preset.guidance_scale = 1.0  # up to 2 is possible, and costs the negative lane
    config.sample.preset.freeze_mask_step = 2  # half of the steps, as 12 is of 25
    return config
