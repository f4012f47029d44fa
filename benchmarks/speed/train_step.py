"""A real training step of an adapter on one device, at random weights of the published shapes: images a second, MFU,
memory, compile seconds.

    python -m benchmarks.speed.train_step --kind sdxl --batch 4 --json step.json
    python -m benchmarks.speed.train_step --kind sdxl --batch 8 --precomputed --json step.json
    python -m benchmarks.speed.train_step --tiny --steps 2          # a rehearsal on any machine, in a minute

It is the step that `train.py` runs (`ahead_of_time.AdapterStep`): the loss, the gradients of the adapter, AdamW, the
average; captions, references and targets encoded within it or, with --precomputed, read. Batches lie on the device
beforehand, so that no reading is timed. MFU counts the operations of matrix products and convolutions of the program as
traced, what is computed again for the backward pass among them, and is of the device's dense bfloat16 peak
(`platform.PEAKS`).
"""

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import parser_of, show
from realcustom_jax.devices import xla_flags
from realcustom_jax.devices.ahead_of_time import AdapterStep
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.devices.platform import Platform
from realcustom_jax.memory import enough_memory
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.model_files.weights import read_config
from realcustom_jax.training.optimizer import step_inputs
from realcustom_jax.training.published.config import FreshAdapterConfig, PublishedConfig

_SIDES = {"sdxl": 1024, "sd15": 512}
_PARTS = ("unet", "vae", "text_encoder", "image_encoder_siglip", "image_encoder_dinov2")
_WARM_UP = 2


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=_SIDES, default="sdxl")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels; default: as the model was trained")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--precomputed", action="store_true")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--tiny", action="store_true", help="the bundled miniature's shapes instead")
    parser.add_argument("--no-xla-recipe", action="store_true", help="without the options of devices/xla_flags.py")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    added = {} if options.no_xla_recipe else xla_flags.set_recipe(xla_flags.platform_here())
    enable_compilation_cache()
    step = make_step(options)
    with enough_memory("choose a smaller --batch, more --accumulate, or --precomputed"):
        found = time_step(step, options.steps)
    show({**step.about(), "kind": "miniature" if options.tiny else options.kind, "side": step.side,
          "batch_size": step.batch_size, "accumulate": options.accumulate, "xla_options": added, **found}, options.json)


def make_step(options) -> AdapterStep:
    """The step of the options, as shapes."""
    train, configs = PublishedConfig(kind=options.kind, side=options.side or _SIDES[options.kind]), None
    if options.tiny:
        vision = read_config(ASSETS / "mini" / "adapter" / "config.json")["vision_settings"]
        configs = {part: read_config(ASSETS / "mini" / part / "config.json") for part in _PARTS}
        vision = type(train.fresh.vision_settings).from_config(vision)
        train = dataclasses.replace(train, side=options.side or 128, fresh=FreshAdapterConfig(
            dim_head=8, vision_settings=vision))
    optimization = dataclasses.replace(train.optimization, batch_size=options.batch, accumulate=options.accumulate)
    train = dataclasses.replace(train, dtype=options.dtype, precomputed=options.precomputed, optimization=optimization)
    return AdapterStep(train, jax.devices()[0], configs)


def time_step(step: AdapterStep, count: int) -> dict[str, object]:
    """What `count` steps take, one after the other, at random weights and on one random batch."""
    device = jax.devices()[0]
    state, frozen, batch = step.arguments()
    start = time.perf_counter()
    traced = step.function([None]).trace(state, frozen, batch, *step.numbers())
    compiled = traced.lower().compile()
    compiling = time.perf_counter() - start
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state).replace(
        params=random(state.params, rng), ema=random(state.params, rng))
    frozen, batch, inputs = random(frozen, rng), random(batch, rng), step_inputs(step.settings, 0)

    seconds = []
    for _ in range(_WARM_UP + count):
        start = time.perf_counter()
        state, metrics = compiled(state, frozen, batch, inputs)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    taken, memory = statistics.median(seconds[_WARM_UP:]), compiled.memory_analysis()
    operations, peak = flops(traced.jaxpr.jaxpr), Platform.of(device).peak
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind, "jax": jax.__version__, "compile_seconds": round(compiling, 1),
        "step_seconds": taken, "fastest_step_seconds": min(seconds[_WARM_UP:]), "timed_steps": count,
        "images_per_second": step.batch_size / taken, "flop": operations,
        "mfu": operations / taken / peak if peak else None, "loss": loss,
        "bytes_arguments": memory.argument_size_in_bytes, "bytes_temporaries": memory.temp_size_in_bytes,
        "bytes_peak_of_device": used}


def random(tree, rng: np.random.Generator):
    """Arrays of these shapes, of a size that keeps activations finite; pictures and token ids in their ranges."""
    noise = rng.standard_normal(999_983, np.float32)  # prime: what repeats it never lines up

    def draw(shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(rng.integers(0, 256 if shape.dtype == jnp.uint8 else 8, shape.shape, shape.dtype))
        scale = 1 / max(1, np.prod(shape.shape[:-1])) ** 0.5
        return jnp.asarray(np.resize(noise * scale, shape.shape), shape.dtype)

    return jax.tree.map(draw, tree)


if __name__ == "__main__":
    main()
