"""SDXL-Lightning (arXiv 2402.13929): four steps without guidance, by a LoRA on the released base model.

    hf download ByteDance/SDXL-Lightning sdxl_lightning_4step_lora.safetensors --local-dir ckpts && \
    python sample.py --config configs/sdxl_lightning.py --image dog.jpg --prompt "a dog in space" --target dog

The files of 2 and 8 steps want as many `steps`; each was distilled for its own number.

All else is as configs/sdxl.py has it. These weights cannot be had on our machines: the solvers and the LoRA's names are
tested against diffusers on tiny models, the pictures have not been looked at.
"""

import ml_collections

from configs import sdxl


def get_config() -> ml_collections.ConfigDict:
    config = sdxl.get_config()
    config.sample.lora = [("ckpts/sdxl_lightning_4step_lora.safetensors", 1.0)]  # the UNet stays RealCustom's
    config.sample.steps = 4  # the number that the LoRA was distilled for
    config.sample.preset.solver = "euler"  # with trailing timesteps, as its authors sample it
    config.sample.preset.guidance_scale = 1.0  # it is distilled with its guidance in it: no negative lane
    config.sample.preset.freeze_mask_step = 2  # half of the steps, as 12 is of 25
    return config
