"""What `--memory` says of the published models, from their files' headers: all parts at full size, no weights anywhere.

    python -m benchmarks.compiling.full_size_memory --kind sdxl --folder /tmp/hollow

The files have the published names, shapes and precision and no content (sparse, a few MB on disk), in diffusers' layout
with timm's image encoders, DINOv2 with its 518-pixel positions, and the released adapter. Reading them is the check
that every part's names and shapes fit; the report is made for a CPU and for an accelerator.
"""

import json
import math
import resource
import time
from pathlib import Path

import jax.numpy as jnp

from benchmarks.common import parser_of
from benchmarks.compiling.absent_cudnn import absent_cudnn
from realcustom_jax.conditioning.prompts import build_tokenizer
from realcustom_jax.files import write_json
from realcustom_jax.memory import sampler_memory
from realcustom_jax.model_files import bundle, single_file, weights
from realcustom_jax.model_files.adapter import image_prompt_settings
from realcustom_jax.model_files.locate import ARCHITECTURES
from realcustom_jax.model_files.tensors import headers_only
from realcustom_jax.models.clip_text import ClipText, ClipTextConfig
from realcustom_jax.models.projector import Projector, ProjectorConfig
from realcustom_jax.models.unet import UNet, UNetConfig
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.pipeline import Pipeline

ENCODERS = {"image_encoder_siglip": ("vit_so400m_patch14_siglip_384", 384),
            "image_encoder_dinov2": ("vit_large_patch14_reg4_dinov2", 518)}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=sorted(single_file.CONFIGS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sides", type=int, nargs="+", help="of the pictures, in pixels (the model's own)")
    options = parser.parse_args()
    write_hollow_model(options.folder, options.kind)
    for platform in ("cpu", "gpu"):
        start = time.perf_counter()
        with headers_only():
            pipeline = Pipeline.load(options.folder, dtype=jnp.bfloat16, platform=platform)
        print(f"headers read in {time.perf_counter() - start:.1f} s")
        for side in options.sides or [8 * pipeline.sample_size]:
            start = time.perf_counter()
            with absent_cudnn():
                memory = sampler_memory(pipeline, width=side, height=side)
            print(f"\n{side} × {side} on a {platform}, {time.perf_counter() - start:.1f} s\n{memory}")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def write_hollow_model(folder: Path, kind: str) -> None:
    """A hollow model in `folder`: configurations, a tokenizer, and weight files that are headers only."""
    configs = single_file.CONFIGS[kind]
    width = configs["unet"]["cross_attention_dim"]
    settings = image_prompt_settings("highres", vision_dim=2176, out_dim=width)
    unet = UNet(UNetConfig.from_config({**configs["unet"], "image_prompt_settings": settings}))
    args, kwargs = weights.unet_inputs(unet.config)
    tensors = torch_shapes_of(unet, *args, **kwargs)
    visual = {name: tensors.pop(name) for name in list(tensors) if "_vision." in name}
    feature = jnp.zeros((1, 1, 2176))
    visual |= torch_shapes_of(Projector(ProjectorConfig.from_config(settings)), (feature, feature),
                     prefix=weights.PROJECTOR_PREFIX)
    write_hollow_part(folder, "unet", configs["unet"], tensors)
    write_hollow_part(folder, "adapter", {"image_prompt_settings": settings, "vision_settings": {}}, visual)
    write_hollow_part(folder, "vae", configs["vae"], torch_shapes_of(
        Autoencoder(VAEConfig.from_config(configs["vae"])), jnp.zeros((1, 8, 8, 3))))
    for part in sorted(configs.keys() & {"text_encoder", "text_encoder_2"}):
        module = ClipText(ClipTextConfig.from_config(configs[part]), part == "text_encoder_2")
        write_hollow_part(folder, part, configs[part], torch_shapes_of(module, jnp.zeros((1, 2), jnp.int32)))
        build_tokenizer(["a", "dog"], max_length=77).save_pretrained(folder / part.replace("text_encoder", "tokenizer"))
    for part, (architecture, side) in ENCODERS.items():
        config = ARCHITECTURES[architecture] | {"img_size": side}
        module = VisionTransformer(VitConfig.from_config(config))
        tensors = torch_shapes_of(module, jnp.zeros((1, side, side, 3)), layers=(0,))
        write_hollow_part(folder, part, {"architecture": architecture}, tensors)
    write_json(folder / "scheduler" / "scheduler_config.json", {"beta_schedule": "scaled_linear"})
    write_json(folder / "model_index.json", {})


def torch_shapes_of(module, *args, prefix: str = "", **kwargs) -> dict[str, tuple[int, ...]]:
    return weights.torch_shapes(weights.parameter_shapes(module, *args, **kwargs), prefix)


def write_hollow_part(folder: Path, part: str, config, tensors: dict[str, tuple[int, ...]]) -> None:
    """A part's configuration and a safetensors file of float16 zeros that are a hole in the file."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    write_json(folder / part / "config.json", config)
    with open(folder / part / bundle.WEIGHT_FILES[part], "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


if __name__ == "__main__":
    main()
