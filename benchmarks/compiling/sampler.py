"""How long the full-size sampler takes to trace, lower and compile, and what memory it needs; no weights are made.

    python -m benchmarks.compiling.sampler --kind sdxl --side 1024

The whole fused sampler, bfloat16, 25 steps, mask frozen at step 12, one reference, one picture, for this machine's
backend.
"""

import argparse
import time
from pathlib import Path

from benchmarks.common import parser_of, show
from realcustom_jax.devices.ahead_of_time import Sampler
from realcustom_jax.memory import temporary_bytes
from realcustom_jax.model_files import single_file


def main() -> None:
    options = parse_size(__doc__)
    sampler = Sampler(single_file.CONFIGS[options.kind]["unet"], options.side)
    params, inputs = sampler.arguments()

    figures = {"kind": options.kind, "side": options.side, "backend": sampler.unet.platform.name}
    start = time.perf_counter()
    traced = sampler.function((params,)).trace(params, inputs)
    figures["trace_s"], start = round(time.perf_counter() - start, 1), time.perf_counter()
    lowered = traced.lower()
    figures["lower_s"], start = round(time.perf_counter() - start, 1), time.perf_counter()
    figures["estimated_bytes"] = temporary_bytes(traced.jaxpr.jaxpr, params, sampler.unet.platform)
    start = time.perf_counter()
    compiled = lowered.compile()
    figures["compile_s"] = round(time.perf_counter() - start, 1)
    memory = compiled.memory_analysis()
    figures |= {"argument_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes}
    show(figures, options.json)


def parse_size(description: str) -> argparse.Namespace:
    """The options of what compiles a whole sampler."""
    parser = parser_of(description)
    parser.add_argument("--kind", choices=("sdxl", "sd15"), default="sdxl")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
