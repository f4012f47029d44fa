"""SDXL-Turbo (arXiv 2311.17042): one to four steps without guidance, by a UNet of its own.

    python sample.py --config configs/sdxl_turbo.py --image dog.jpg --prompt "a dog in space" --target dog

Its UNet was trained on from SDXL's at 512 × 512 pixels, which is its size; its licence is not for commercial use.

All else is as configs/sdxl.py has it. These weights cannot be had on our machines: the solvers and the LoRA's names are
tested against diffusers on tiny models, the pictures have not been looked at.
"""

import ml_collections

from configs import sdxl


def get_config() -> ml_collections.ConfigDict:
    config = sdxl.get_config()
    config.sample.unet = "stabilityai/sdxl-turbo"  # from the hub, or a file: sd_xl_turbo_1.0_fp16.safetensors
    config.sample.width = config.sample.height = 512  # what it was trained at
    config.sample.steps = 4  # 1 to 4; one more is one more look at the reference
    config.sample.preset.solver = "euler_ancestral"  # with trailing timesteps, as its folder's scheduler says
    config.sample.preset.guidance_scale = 1.0  # it was trained to need none: no negative lane
    config.sample.preset.freeze_mask_step = 2  # half of the steps, as 12 is of 25
    return config
