"""SDXL's blocks alone, at 1024² in bfloat16: seconds to try what takes minutes to compile in the whole sampler.

    python -m benchmarks.speed.blocks                                              # with the sampler's compiler options
    python -m benchmarks.speed.blocks --option xla_gpu_enable_triton_gemm=true     # with others

A transformer block at 32 × 32 as the steps before and after the mask is frozen evaluate it (three lanes with maps, two
without), and residual blocks of each size; a few of them in a row, in a loop of steps. On a CPU much smaller ones.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import parser_of
from realcustom_jax.devices.platform import Platform
from realcustom_jax.models import context
from realcustom_jax.models.attention import TransformerBlock
from realcustom_jax.models.resnet import ResnetBlock

LAYERS, STEPS, ROUNDS = 4, 20, 7
TEXT, VISION, WIDTH = 77, 729, 2048


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--option", action="append", default=[], help="name=value of the compiler's, instead")
    options = parser.parse_args()
    given = dict(option.split("=") for option in options.option) or dict(Platform.of().compiler_options)
    small = 1 if Platform.of().name == "gpu" else 8
    print(f"{jax.devices()[0].device_kind}, options {given}\n\n| block | lanes | size | µs |\n|---|--:|---|--:|")
    for lanes, guided in ((3, 1), (2, 0)):
        side, width = 32 // small, 1280 // small
        print(f"| transformer | {lanes} | {side}² × {width} | {transformer(lanes, guided, side, width, given):.0f} |")
    for lanes, side, width in ((3, 128, 320), (2, 64, 640), (2, 32, 1280)):
        side, width = side // small, width // small if width // small % 32 == 0 else 32
        print(f"| residual | {lanes} | {side}² × {width} | {residual(lanes, side, width, given):.0f} |", flush=True)


def transformer(lanes: int, guided: int, side: int, width: int, options: dict) -> float:
    """Microseconds of a block, the first `guided` lanes with a map, the others with a visual term."""
    block = TransformerBlock(max(1, width // 64), True, False, jnp.bfloat16, Platform.of())
    text, vision = random_bfloat16(lanes, TEXT, WIDTH), random_bfloat16(lanes - guided, 1, VISION, WIDTH)
    mask = jnp.ones((lanes - guided, 1, side * side))
    target = jnp.zeros((guided, 1, TEXT)).at[:, :, 2].set(1) if guided else None
    x = random_bfloat16(lanes, side * side, width)

    def evaluate(layer):
        known = context.project_tokens(block, layer, text, vision)
        return lambda x: block.apply({"params": layer, "context": known}, x, text, vision, mask, target)

    return microseconds(lambda key: block.init(key, x, text, vision, mask, target)["params"], evaluate, x, options)


def residual(lanes: int, side: int, width: int, options: dict) -> float:
    block = ResnetBlock(width, 32, 1e-5, jnp.bfloat16, Platform.of())
    x, known = random_bfloat16(lanes, side, side, width), {"shift": random_bfloat16(lanes, width)}

    def evaluate(layer):
        return lambda x: (block.apply({"params": layer, "context": known}, x), ())

    return microseconds(lambda key: block.init(key, x)["params"], evaluate, x, options)


def random_bfloat16(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), jnp.bfloat16)


def microseconds(init, prepare, x: jax.Array, options: dict) -> float:
    """Of one of LAYERS blocks in a row; `prepare` makes of a block's parameters what a step calls, which
    returns the block's output and maps."""
    layers = [jax.tree.map(lambda p: p.astype(jnp.bfloat16), init(jax.random.key(i))) for i in range(LAYERS)]

    def steps(layers, x):
        blocks = [prepare(layer) for layer in layers]

        def step(x, _):
            made = []
            for block in blocks:
                x, maps = block(x)
                x, made = x * 0.7, [*made, maps]  # or x would grow
            return x, made

        return jax.lax.scan(step, x, length=STEPS)

    program = jax.jit(steps).lower(layers, x).compile(compiler_options=options)
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(layers, x))
        seconds.append(time.perf_counter() - start)
    return 1e6 * statistics.median(seconds[1:]) / (STEPS * LAYERS)


if __name__ == "__main__":
    main()
