"""How much arithmetic a picture takes, counted in the traced programs, and how long that is on devices of known speed.

    python -m benchmarks.compiling.flops --kind sdxl --side 1024

Counted are matrix products and convolutions, two operations for each multiply-add: of the fused sampler (25 steps, mask
frozen at step 12, one reference), the image encoders (reference and zero picture) and the decoder. The times are
computed, not measured: counted operations / (published dense peak of bfloat16, on a T4 of float16 × EFFICIENCY).
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.common import parser_of
from realcustom_jax.devices.ahead_of_time import Sampler
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.model_files import single_file, weights
from realcustom_jax.model_files.locate import ARCHITECTURES
from realcustom_jax.models.vae import Autoencoder, VAEConfig
from realcustom_jax.models.vit import VisionTransformer, VitConfig
from realcustom_jax.sampling.decoding import decode_latents

PEAK_TFLOPS = {"H100 SXM": 989, "A100": 312, "TPU v5e": 197, "L4": 121, "T4": 65}
EFFICIENCY = 0.3
VIEWS = 2 * (1 + 2 * 2)  # the reference and the zero picture, each whole and in four parts


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=sorted(single_file.CONFIGS), default="sdxl")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    options = parser.parse_args()
    sampler = Sampler(single_file.CONFIGS[options.kind]["unet"], options.side)
    trace = sampler.function(()).trace(*sampler.arguments())
    counts = {"sampler": flops(trace.jaxpr.jaxpr), "decoder": decoder(options.kind, options.side // 8)}
    for name, config in ARCHITECTURES.items():
        encoder = VisionTransformer(VitConfig.from_config(config))
        counts[name] = traced(encoder, jnp.zeros((VIEWS, 384, 384, 3)), layers=(config["depth"] - 2,))
    counts["together"] = sum(counts.values())
    for name, count in counts.items():
        print(f"{name:32}{count / 1e12:8.1f} TFLOP")
    for device, peak in PEAK_TFLOPS.items():
        print(f"{device:32}{counts['together'] / 1e12 / (peak * EFFICIENCY):8.1f} s, computed")


def decoder(kind: str, side: int) -> int:
    """Operations of decoding latents of `side`."""
    module = Autoencoder(VAEConfig.from_config(single_file.CONFIGS[kind]["vae"]))
    params = weights.parameter_shapes(module, jnp.zeros((1, 8, 8, 3)))
    return flops(jax.make_jaxpr(functools.partial(decode_latents, module))(params, jnp.zeros((1, side, side, 4))).jaxpr)


def traced(module, *args, **kwargs) -> int:
    """Operations of a module's application to these inputs."""
    params = weights.parameter_shapes(module, *args, **kwargs)
    return flops(jax.make_jaxpr(lambda params: module.apply({"params": params}, *args, **kwargs))(params).jaxpr)


if __name__ == "__main__":
    main()
