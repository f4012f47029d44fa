"""The released files' layout with the tiny model of `mini_bundle` in it, for notebooks/03_sdxl.ipynb."""

import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy

from mini_bundle import write_mini_bundle

_RELEASED = {
    "text_encoder": "sdxl/clip-sdxl-1", "text_encoder_2": "sdxl/clip-sdxl-2", "unet": "sdxl/unet", "vae": "sdxl/vae",
    "adapter": "realcustom/RealCustom_highres", "image_encoder_siglip": "vit_so400m_patch14_siglip_384",
    "image_encoder_dinov2": "vit_large_patch14_reg4_dinov2.lvd142m"}
"""Where the released `ckpts/` has each part. Its adapter is a file, for the layers of the large encoders; here it is a
folder, which says which layers it reads."""
_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"


def write_tiny_release(folder: Path) -> dict[str, str]:
    """Writes `folder`/ckpts, random weights as `docs/models.md` says that the released ones lie, and a LoRA.

    Returns the parameters MODEL, ADAPTER, VISION and FEW_STEPS_LORA of notebooks/03_sdxl.ipynb.
    """
    bundle, ckpts = write_mini_bundle(folder / "bundle", "sdxl"), folder / "ckpts"
    for part, place in _RELEASED.items():
        shutil.copytree(bundle / part, ckpts / place)
    for tokenizer, place in (("tokenizer", "clip-sdxl-1"), ("tokenizer_2", "clip-sdxl-2")):
        for file in (bundle / tokenizer).iterdir():
            if file.name != "config.json":  # the text encoder's stays
                shutil.copy(file, ckpts / "sdxl" / place)
    rng = np.random.default_rng(0)
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}  # of a layer from 8 channels to 8
    lora = ckpts / "sdxl_lightning_4step_lora.safetensors"
    safetensors.numpy.save_file({f"unet.{_LAYER}.{name}.weight": np.float32(rng.normal(size=shape))
                                 for name, shape in shapes.items()}, lora)
    return {"MODEL": str(ckpts / "sdxl"), "ADAPTER": str(ckpts / _RELEASED["adapter"]), "VISION": str(ckpts),
            "FEW_STEPS_LORA": str(lora)}
