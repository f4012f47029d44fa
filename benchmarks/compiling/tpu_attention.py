"""Attention kernels compiled for a TPU that is not there: temporaries, bytes moved, and the kernels' instructions.

    pip install libtpu && python -m benchmarks.compiling.tpu_attention --pixels 4096 --heads 10 --head_size 64

Forward and backward of one layer in bfloat16, by XLA's products, JAX's flash kernel and splash attention with the tiles
that the UNet takes. A kernel's instructions are those of its final schedule, which libtpu writes down when
LIBTPU_INIT_ARGS asks; a part that runs once for a whole row of tiles counts in full, so that they are an upper bound
for each tile. They are no time: what memory makes wait is not in them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from realcustom_jax.devices.topology import tpu_devices
from realcustom_jax.models.attention_kernels import plain_attention
from realcustom_jax.models.tpu_attention import tpu_attention


def flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's older kernel with tiles of 512, lengths that these divide."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    rows, columns = min(512, query.shape[1]), min(512, key.shape[1])
    blocks = pallas.BlockSizes(
        block_q=rows, block_k_major=columns, block_k=columns, block_b=1,
        block_q_major_dkv=rows, block_k_major_dkv=columns, block_k_dkv=columns, block_q_dkv=rows,
        block_k_major_dq=columns, block_k_dq=columns, block_q_dq=rows)
    out = pallas.flash_attention(*(x.swapaxes(1, 2) for x in (query, key, value)),
                                 sm_scale=query.shape[-1] ** -0.5, block_sizes=blocks)
    return out.swapaxes(1, 2)


KERNELS = {"plain": plain_attention, "flash": flash, "splash": tpu_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=4096)
    parser.add_argument("--tokens", type=int, help="default: as many as pixels")
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--kernel", choices=KERNELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernel:
        print(json.dumps(compile_one(options)))
        return
    print("| kernel | temporaries, MB | moved, MB | instructions of each kernel |\n|---|--:|--:|---|")
    for name in KERNELS:
        found, instructions = in_its_own_process(name)
        print(f"| {name} | {found['temporaries'] / 1e6:.1f} | {found['bytes'] / 1e6:.0f} | "
              + ", ".join(f"{kernel} {count}" for kernel, count in sorted(instructions.items())) + " |")


def compile_one(options) -> dict[str, float]:
    """Temporaries and bytes moved of forward and backward on one chip of a v5e."""
    device = SingleDeviceSharding(tpu_devices("v5e:2x2")[0])
    query, key = (jax.ShapeDtypeStruct((1, n, options.heads, options.head_size), jnp.bfloat16, sharding=device)
                  for n in (options.pixels, options.tokens or options.pixels))
    kernel = KERNELS[options.kernel]
    made = jax.jit(lambda q, k, v: jax.vjp(kernel, q, k, v)[1](q)).lower(query, key, key).compile()
    return {"temporaries": made.memory_analysis().temp_size_in_bytes, "bytes": made.cost_analysis()["bytes accessed"]}


def in_its_own_process(name: str) -> tuple[dict[str, float], dict[str, int]]:
    """`compile_one` of this kernel, and the instructions of each Pallas kernel; libtpu reads its options only once."""
    with tempfile.TemporaryDirectory() as folder:
        asks = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, "-m", "benchmarks.compiling.tpu_attention", *sys.argv[1:], "--kernel", name]
        done = subprocess.run(command, env=os.environ | {"LIBTPU_INIT_ARGS": asks}, capture_output=True, text=True,
                              check=True)
        instructions = {}
        for file in Path(folder).glob("*-schedule-analysis_final_bundles.txt"):
            text = file.read_text()
            if "tpu_custom_call" in text:
                kernel = re.sub(r"^\d+-(.*)-\d+-schedule.*", r"\1", file.name)
                instructions[kernel] = int(re.search(r"total scheduled bundles:\s+(\d+)", text)[1])
        return json.loads(done.stdout.splitlines()[-1]), instructions


if __name__ == "__main__":
    main()
