"""What a file is: told from its first bytes where it is not the file that its name says, else from its tensors' names.

People give the file of another tool where a model's, an adapter's, an autoencoder's or a UNet's is asked for. The
sentence then says what the file is, and which option takes it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_KINDS = {  # a name that only this kind of file holds → what the file is; the first that fits
    r"(^|\.)image_proj\.|(^|\.)ip_adapter\.|\.to_[kv]_ip\.": "an IP-Adapter",
    r"lora|hada_w[12]|lokr_w[12]|(^|_|\.)oft_(blocks|diag|R)|\.ia3_l(\.|$)": "a LoRA",
    r"(^|\.)control_model\.|controlnet_cond_embedding\.|controlnet_(down|mid)_block|(^|\.)input_hint_block\."
    r"|(^|\.)zero_convs\.": "a ControlNet",
    r"(^|\.)body\.\d+\.(resnets\.|block[12]\.|in_conv\.)": "a T2I-Adapter",
    r"(^|\.)string_to_(param|token)\.|(^|\.)emb_params$|^(clip_[lg]|<[^<>]+>)$": "a textual inversion",
    r"(?i)(^|\.)rdb\d?\.|residual_group\.|(^|\.)(conv_up1|upconv1)\.|\.attn\.relative_position_bias": "an upscaler",
    r"(^|\.)model\.diffusion_model\.|(^|\.)diffusion_model\.input_blocks\.":
        "a single-file Stable Diffusion checkpoint",
    r"encoder_hidden_states_vision_projection\.": "a RealCustom adapter",
    r"\.to_k_vision\.": "a UNet with RealCustom's visual attention",
    r"visual\.trunk\.": "an open_clip checkpoint with a timm vision tower",
    r"(^|\.)visual\.": "an open_clip checkpoint whose vision tower is not timm's (no visual.trunk. keys)",
    r"text\.transformer\.": "the text tower of an open_clip checkpoint (no visual.trunk. keys)",
    r"(^|\.)(pre_layrnorm|class_embedding$)": "a CLIP image encoder of transformers",
    r"vision_model\.|^embeddings\.patch_embedding\.|^head\.probe$": "a transformers vision model",
    r"text_model\.|^embeddings\.token_embedding\.|^final_layer_norm\.": "a CLIP text encoder of transformers",
    r"down_blocks\.0\.resnets\.0\.time_emb_proj\.": "a diffusers UNet",
    r"(^|\.)input_blocks\.\d": "a UNet in Stable Diffusion's original names",
    r"first_stage_model\.|(^|\.)(encoder\.down|decoder\.up)\.\d+\.block\.|(^|\.)decoder\.mid\.block_1\.":
        "an autoencoder in Stable Diffusion's original names",
    r"(^|\.)post_quant_conv\.|decoder\.up_blocks\.": "a diffusers autoencoder",
    r"embeddings\.patch_embeddings\.projection\.": "a ViT or DINOv2 of transformers",
    r"blocks\.0\.attn\.qkv\.": "a timm vision transformer",
}
_TAKEN_BY = {  # what a file is → the option that takes it
    "a LoRA": "lora", "a RealCustom adapter": "adapter", "a single-file Stable Diffusion checkpoint": "model",
    "a diffusers UNet": "unet", "a UNet in Stable Diffusion's original names": "unet",
    "a diffusers autoencoder": "vae", "an autoencoder in Stable Diffusion's original names": "vae",
}
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"(?is)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b")


def identify(names: Iterable[str]) -> str:
    """What weights of these names are, in words; "no model that we know" for others."""
    names = list(names)
    return next((what for mark, what in _KINDS.items() if any(map(re.compile(mark).search, names))),
                "no model that we know")


def advice(what: str) -> str:
    """Which option takes a file of this kind (`identify`'s words), as the end of a sentence; "" where none does."""
    if what == "a LoRA":
        return "; give it with loras (--lora), beside the model that it was made for"
    return f"; give it as the {_TAKEN_BY[what]} (--{_TAKEN_BY[what]})" if what in _TAKEN_BY else ""


def check_is_itself(path: Path) -> None:
    """Raises ValueError for a file that holds a git-lfs pointer or a web page in place of what its name says."""
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(_LFS):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository, "
                         "or download the file.")
    if _HTML.match(start):
        raise ValueError(f"{path} is a web page (HTML), not the file that its name says: the link led to a page, "
                         "perhaps one to log in; download the file itself.")
