"""Tiny random metric networks in the layouts of the published files, and what torch computes with them.

torch, transformers and Pillow alone compute here: nothing of ours is used but the tokenizer of a few words.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch_models import disturbed

WORDS = "a photo of the dog cat on beach in snow with red hat and blue car at night".split()
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def clip_folder(folder: Path, *, side=224, patch=32, width=32, seed=0, processor=None):
    """A whole CLIP as transformers saves it; returns its torch model and tokenizer."""
    torch = pytest.importorskip("torch")
    import transformers

    from realcustom_jax.conditioning.prompts import build_tokenizer

    tokenizer = build_tokenizer(WORDS, max_length=77)
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 24,
                             "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config=sizes | {"image_size": side, "patch_size": patch, "projection_dim": 24}, projection_dim=24)
    model = disturbed(transformers.CLIPModel(config), 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model, tokenizer


def vit(*, dinov2=False, side=224, patch=16, width=32, seed=0):
    """transformers' ViTModel or Dinov2Model."""
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": side,
             "patch_size": patch}
    if dinov2:
        return disturbed(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2)), 0.05)
    config = transformers.ViTConfig(**sizes, intermediate_size=2 * width, layer_norm_eps=1e-6)
    return disturbed(transformers.ViTModel(config, add_pooling_layer=False), 0.05)


def hub_tensors(model) -> dict[str, np.ndarray]:
    """A ViTModel's or Dinov2Model's weights under the names of torch.hub's DINO and DINOv2."""
    saved = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    tensors = {"cls_token": saved["embeddings.cls_token"], "pos_embed": saved["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        tensors[f"patch_embed.proj.{kind}"] = saved[f"embeddings.patch_embeddings.projection.{kind}"]
        tensors[f"norm.{kind}"] = saved[f"layernorm.{kind}"]

    def of(i, *names):
        """The only weight of block i whose name ends so."""
        found = [value for name, value in saved.items()
                 if f".{i}." in name and any(name.endswith(f".{ending}") for ending in names)]
        assert len(found) == 1, (i, names, sorted(saved))
        return found[0]

    for i in range(model.config.num_hidden_layers):
        block = f"blocks.{i}"
        for kind in ("weight", "bias"):
            tensors[f"{block}.attn.qkv.{kind}"] = np.concatenate([
                of(i, f"{long}.{kind}", f"{short}.{kind}")
                for long, short in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))])
            tensors[f"{block}.attn.proj.{kind}"] = of(
                i, f"attention.output.dense.{kind}", f"o_proj.{kind}", f"attention.dense.{kind}")
            tensors[f"{block}.norm1.{kind}"] = of(i, f"layernorm_before.{kind}", f"norm1.{kind}")
            tensors[f"{block}.norm2.{kind}"] = of(i, f"layernorm_after.{kind}", f"norm2.{kind}")
            tensors[f"{block}.mlp.fc1.{kind}"] = of(i, f"intermediate.dense.{kind}", f"mlp.fc1.{kind}")
            tensors[f"{block}.mlp.fc2.{kind}"] = of(i, f"{i}.output.dense.{kind}", f"mlp.fc2.{kind}")
        if any("layer_scale1" in name for name in saved):
            tensors[f"{block}.ls1.gamma"] = of(i, "layer_scale1.lambda1")
            tensors[f"{block}.ls2.gamma"] = of(i, "layer_scale2.lambda1")
    return tensors


def hub_file(model, file: Path, *, config=True):
    """torch.hub's file of a ViT, with a config.json of timm's arguments beside it."""
    torch = pytest.importorskip("torch")

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.tensor(value) for name, value in hub_tensors(model).items()}, file)
    if config:
        sizes, dinov2 = model.config, "Dinov2" in type(model).__name__
        ratio = sizes.mlp_ratio if dinov2 else sizes.intermediate_size / sizes.hidden_size
        (file.parent / "config.json").write_text(json.dumps({
            "img_size": sizes.image_size, "patch_size": sizes.patch_size, "embed_dim": sizes.hidden_size,
            "depth": sizes.num_hidden_layers, "num_heads": sizes.num_attention_heads, "mlp_ratio": ratio,
            **({"init_values": 1.0} if dinov2 else {})}))
    return file


def with_hub_positions(model, side=224):
    """A Dinov2Model of `side` pixels, with positions as torch.hub's DINOv2 makes them of the model's own."""
    torch = pytest.importorskip("torch")
    import transformers

    positions = model.embeddings.position_embeddings.detach()
    old, new = model.config.image_size // model.config.patch_size, side // model.config.patch_size
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=((new + 0.1) / old,) * 2, mode="bicubic")
    made = transformers.Dinov2Model(transformers.Dinov2Config(**model.config.to_dict() | {"image_size": side}))
    made.load_state_dict(model.state_dict() | {"embeddings.position_embeddings": torch.cat(
        [positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)], 1)})
    return made.eval()



def resized(image: Image.Image, side: int) -> Image.Image:
    """The shorter side to `side`, the longer one rounded down; Pillow's bicubic."""
    width, height = image.size
    if width <= height:
        return image.resize((side, int(side * height / width)), Image.Resampling.BICUBIC)
    return image.resize((int(side * width / height), side), Image.Resampling.BICUBIC)


def torchvision_pixels(image, resize, crop, mean, std):
    """[1, 3, N, N]: Resize, CenterCrop, conversion to RGB, ToTensor, Normalize."""
    torch = pytest.importorskip("torch")

    image = resized(image, resize)
    left, top = int(round((image.width - crop) / 2.0)), int(round((image.height - crop) / 2.0))
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)).convert("RGB"), np.float32) / 255
    return torch.tensor((pixels - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]


def unit(features):
    features = features.detach().double()
    return features / features.norm(dim=-1, keepdim=True)


def projected(output):
    """Of `get_image_features` and `get_text_features`, which return tensors or, since transformers 5, more."""
    return getattr(output, "pooler_output", output)


class TorchClip:
    """A CLIP as the scripts use it; `processor`: transformers' own, None: torchvision's transforms."""

    def __init__(self, model, tokenizer, processor=None):
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    def picture(self, image):
        if self.processor is None:
            side = self.model.config.vision_config.image_size
            pixels = torchvision_pixels(image, side, side, CLIP_MEAN, CLIP_STD)
        else:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return unit(projected(self.model.get_image_features(pixel_values=pixels)))[0]

    def text(self, prompt):
        tokens = self.tokenizer([prompt], padding=True, truncation=True, max_length=77, return_tensors="pt")
        return unit(projected(self.model.get_text_features(**tokens)))[0]


class TorchDino:
    """A DINO or DINOv2 as the scripts use it."""

    def __init__(self, model, processor=None):
        self.model, self.processor = model, processor

    def picture(self, image):
        if self.processor is None:
            side = self.model.config.image_size
            pixels = torchvision_pixels(image, round(side * 256 / 224), side, MEAN, STD)
        else:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return unit(self.model(pixels).last_hidden_state[:, 0])[0]
