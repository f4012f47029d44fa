"""Where a picture's time goes on a GPU: the kernels of the fused denoising loop, by the layer that they compute.

    python -m benchmarks.speed.kernels --kind sdxl --dtype bfloat16 --side 1024 --json FILE

One picture after a warm-up, under JAX's profiler. A fused kernel counts for the layer of its last operation. What XLA
records into command buffers has no name but the kernel's; XLA_FLAGS=--xla_gpu_enable_command_buffer= prevents that.
"""

import collections
import re
import tempfile
from pathlib import Path

import jax

from benchmarks.common import latent_side, make_unet
from benchmarks.speed.loop import loop_parser, one_size, ours
from realcustom_jax.devices.compilation import enable_compilation_cache
from realcustom_jax.files import write_json

_INSTRUCTION = re.compile(r'%?([\w.-]+) = .*?op_name="([^"]*)"')
_MODULE = re.compile(r"^(?!jit|vmap|while|body|closed_call|remat|cond|checkpoint|transpose)[A-Za-z]\w*$")


def main() -> None:
    parser = loop_parser(__doc__)
    one_size(parser)
    parser.add_argument("--rows", type=int, default=40, help="of the table")
    options = parser.parse_args()
    enable_compilation_cache()
    model = make_unet(options.kind, options.dtype)
    program, arguments, _ = ours(*model, options, latent_side(options.kind, options.side))
    program = program("fused")
    operations = profile(lambda: jax.block_until_ready(program(*arguments)), program.as_text())

    layers = collections.Counter()
    for operation in operations:
        layers[layer(operation["of"]) or operation["kernel"]] += operation["ms"]
    total = sum(layers.values())
    print(f"{jax.devices()[0].device_kind}, {options.kind}, {options.dtype}: {total:.1f} ms in kernels\n")
    print("| layer, or kernel | ms | share |\n|---|--:|--:|")
    for name, ms in layers.most_common(options.rows):
        print(f"| {name} | {ms:.1f} | {ms / total:.1%} |")
    if options.json:
        write_json(options.json, {"total_ms": total, "operations": operations})


def profile(run, program_text: str) -> list[dict]:
    """The operations of one run, longest first, and their kernels; "of" is an operation's name in the source."""
    named = dict(_INSTRUCTION.findall(program_text))
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        data = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    spent, calls = collections.Counter(), collections.Counter()
    on_gpu = any("GPU" in plane.name for plane in data.planes)
    for plane in data.planes:
        for line in plane.lines if "GPU" in plane.name or not on_gpu else ():
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation and (line.name.startswith("Stream") or not on_gpu):
                    spent[operation, event.name] += event.duration_ns / 1e6
                    calls[operation, event.name] += 1
    return [{"operation": operation, "of": named.get(operation, ""), "kernel": kernel,
             "calls": calls[operation, kernel], "ms": round(ms, 4)}
            for (operation, kernel), ms in spent.most_common()]


def layer(name: str) -> str:
    """The last two modules of an operation's path without their numbers, and its primitive; of no path nothing."""
    *modules, primitive = name.split("/")
    modules = [re.sub(r"_\d+", "", part) for part in modules if _MODULE.match(part)]
    return "/".join([*modules[-2:], primitive])


if __name__ == "__main__":
    main()
