"""Where a UNet evaluation's time goes on a CPU: each kind of layer alone, by XLA and by torch, at a model's own shapes.

    python -m benchmarks.speed.layers --kind sdxl50m

Times are of one layer for the three lanes of a fused step, times how many such layers an evaluation has. Alone, a layer
neither overlaps nor fuses with its neighbours, so that the sum is not the time of the evaluation.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import CONFIGS, TOKENS, latent_side, measure, parser_of
from realcustom_jax.devices.platform import Platform
from realcustom_jax.models.attention_kernels import attend
from realcustom_jax.models.norm import GroupNorm
from realcustom_jax.models.unet import UNetConfig

LANES = 3


def main() -> None:
    import torch
    import torch.nn.functional as F

    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=sorted(CONFIGS), default="sdxl50m")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    config = UNetConfig.from_config(CONFIGS[options.kind])

    def first(x):  # torch's own order of axes, in torch's own layout
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    torchs = {
        "convolution": lambda x, w: (lambda x, w: F.conv2d(x, w, padding=1), first(x), torch.from_numpy(
            np.ascontiguousarray(w.transpose(3, 2, 0, 1)))),
        "group norm, SiLU": lambda x: (lambda x: F.silu(F.group_norm(x, config.norm_num_groups)), first(x)),
        "layer norm": lambda x: (lambda x: F.layer_norm(x, x.shape[-1:]), torch.from_numpy(x)),
        "linear": lambda x, w: (torch.matmul, torch.from_numpy(x), torch.from_numpy(w)),
        "gated GELU": lambda x: (lambda x: (lambda a, b: a * F.gelu(b))(*x.chunk(2, -1)), torch.from_numpy(x)),
        "attention": lambda *qkv: (F.scaled_dot_product_attention, *(
            torch.from_numpy(np.ascontiguousarray(x.swapaxes(1, 2))) for x in qkv)),
    }
    totals: dict[str, np.ndarray] = {}
    print(f"| {'layer':16} | {'inputs':36} | count | XLA ms | torch ms | XLA/torch |\n|---|---|--:|--:|--:|--:|")
    for (name, *shapes), count in layers(config, TOKENS[options.kind], latent_side(options.kind, None)).items():
        arrays = [np.random.default_rng(0).standard_normal(shape, np.float32) for shape in shapes]
        function, *inputs = torchs[name](*arrays)
        ours = jax.jit(functools.partial(_OURS[name], config))
        pair = {"XLA": functools.partial(_wait, ours, *map(jnp.asarray, arrays)),
                "torch": functools.partial(function, *inputs)}
        with torch.inference_mode():
            times = count * 1e3 * np.array([*measure(pair, options.rounds, warm_up=3).values()])
        totals[name] = totals.get(name, 0) + times
        sizes = ", ".join("×".join(map(str, shape)) for shape in shapes[:2])
        print(f"| {name:16} | {sizes:36} | {count} | {times[0]:.2f} | {times[1]:.2f} | {times[0] / times[1]:.2f} |")
    for name, (xla, torchs_time) in totals.items():
        print(f"| {name:16} | {'all':36} | | {xla:.1f} | {torchs_time:.1f} | {xla / torchs_time:.2f} |")
    xla, torchs_time = sum(totals.values())
    print(f"| {'all':16} | {'':36} | | {xla:.1f} | {torchs_time:.1f} | {xla / torchs_time:.2f} |")


_OURS: dict[str, Callable] = {
    "convolution": lambda c, x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    "group norm, SiLU": lambda c, x: jax.nn.silu(GroupNorm(c.norm_num_groups, platform=Platform.of()).apply(
        {"params": {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}}, x)),
    "layer norm": lambda c, x: jax.nn.standardize(x, axis=-1, epsilon=1e-5),
    "linear": lambda c, x, w: x @ w,
    "gated GELU": lambda c, x: (lambda a, b: a * jax.nn.gelu(b, approximate=False))(*jnp.split(x, 2, axis=-1)),
    "attention": lambda c, *qkv: attend(*qkv, Platform.of()),
}


def layers(config: UNetConfig, tokens: tuple[int, int], side: int) -> dict[tuple, int]:
    """How often each layer, as (name, shapes of its inputs …), occurs in one evaluation."""
    counts: dict[tuple, int] = {}
    for layer in _walk(config, tokens, side):
        counts[layer] = counts.get(layer, 0) + 1
    return counts


def _walk(c: UNetConfig, tokens: tuple[int, int], side: int) -> Iterator[tuple]:
    def conv(size, channels, out):
        return "convolution", (LANES, size, size, channels), (3, 3, channels, out)

    def resnet(size, channels, out):
        yield "group norm, SiLU", (LANES, size, size, channels)
        yield conv(size, channels, out)
        yield "group norm, SiLU", (LANES, size, size, out)
        yield conv(size, out, out)

    def transformer(size, width, heads, depth):
        pixels = size * size
        x, head = (LANES, pixels, width), width // heads

        def linear(out, inner=width):
            return "linear", (LANES, pixels, inner), (inner, out)

        def attention(lanes, length):
            return "attention", (lanes, pixels, heads, head), *[(lanes, length, heads, head)] * 2

        yield from (linear(width), linear(width))
        for _ in range(depth):
            yield from [("layer norm", x)] * 3
            yield from [linear(width)] * 6
            yield from (attention(LANES, pixels), attention(LANES, tokens[0]), attention(LANES - 1, tokens[1]))
            yield from (linear(8 * width), ("gated GELU", (*x[:2], 8 * width)), linear(width, 4 * width))

    def attended(level, size):
        if c.cross_attention[level]:
            yield from transformer(size, c.block_out_channels[level], c.heads[level], c.transformer_layers[level])

    widths, levels = c.block_out_channels, len(c.block_out_channels)
    yield conv(side, c.in_channels, widths[0])
    skips, channels = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        size = side >> level
        for _ in range(c.layers_per_block):
            yield from resnet(size, channels, width)
            yield from attended(level, size)
            channels = width
            skips.append(width)
        if level + 1 < levels:
            skips.append(width)
            yield conv(size >> 1, width, width)
    last = levels - 1
    yield from resnet(side >> last, channels, channels)
    yield from transformer(side >> last, channels, c.heads[last], c.transformer_layers[last])
    yield from resnet(side >> last, channels, channels)
    for level in reversed(range(levels)):
        for _ in range(c.layers_per_block + 1):
            yield from resnet(side >> level, channels + skips.pop(), widths[level])
            yield from attended(level, side >> level)
            channels = widths[level]
        if level:
            yield conv(side >> level - 1, channels, channels)
    yield conv(side, channels, c.out_channels)


def _wait(function, *args) -> None:
    jax.block_until_ready(function(*args))


if __name__ == "__main__":
    main()
