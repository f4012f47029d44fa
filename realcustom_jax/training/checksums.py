"""What a checkpoint says of its arrays, so that damage shows: a checksum of each, and whether its numbers are finite.

The checksum is a sum over all elements of a hash of (bit pattern, position), modulo 2^32, twice with different hashes:
64 bits. A sum does not ask for an order, so that it is computed where the arrays lie, in one pass and without a copy,
and is the same on every mesh, number of processes and kind of device. The hash is a bijection of the bit pattern for
each position: one changed element changes both sums for certain. Changes of several elements, such as 16 flipped bytes
or a compressed block that decodes to something else, cancel out in both with a probability of about 2^-64; elements
that changed places are seen, as positions count.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Record = dict[str, tuple[str, tuple[int, ...], str, bool]]
"""By an array's name: dtype, shape, checksum (16 hexadecimal digits), whether all its numbers are finite."""


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The arrays of a tree, by their path with `/` between."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def record(tree: Any) -> Record:
    """Of all arrays of a tree. Of several processes, each has to call it, and each gets the whole."""
    arrays = {name: jnp.asarray(leaf) for name, leaf in leaves_by_name(tree).items()}
    # One after the other: many programs with collectives at once can wait for each other on a CPU's few threads.
    sums = {name: jax.device_get(_program(_everywhere(array))(array)) for name, array in arrays.items()}
    return {name: (array.dtype.name, array.shape, f"{int(sums[name][0]):08x}{int(sums[name][1]):08x}",
                   bool(sums[name][2])) for name, array in arrays.items()}


def not_finite(found: Record) -> list[str]:
    """The names of the arrays with a number that is infinite or none (NaN)."""
    return [name for name, (*_, finite) in found.items() if not finite]


def to_json(found: Record) -> dict[str, Any]:
    """What `from_json` reads: the arrays, and a digest by which damage of the text itself shows."""
    arrays = {name: [dtype, list(shape), checksum] for name, (dtype, shape, checksum, _) in found.items()}
    return {"arrays": arrays, "sha256": _digest(arrays)}


def from_json(saved: Mapping[str, Any]) -> Record:
    """Raises ValueError if it is not as `to_json` wrote it."""
    try:
        arrays, digest = saved["arrays"], saved["sha256"]
    except (KeyError, TypeError):
        arrays, digest = {}, None
    if _digest(arrays) != digest:
        raise ValueError("its checksums are damaged")
    return {name: (dtype, tuple(shape), checksum, True) for name, (dtype, shape, checksum) in arrays.items()}


def _digest(arrays: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arrays, sort_keys=True).encode()).hexdigest()


def _everywhere(array: jax.Array) -> NamedSharding | None:
    """Where a result lies that every process can read."""
    sharding = array.sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


@functools.cache
def _program(result: NamedSharding | None):
    return jax.jit(_sums, out_shardings=result)


def _sums(array: jax.Array) -> jax.Array:
    """uint32 [3]: both sums, and 1 if all is finite."""
    finite = jnp.isfinite(array).all() if jnp.issubdtype(array.dtype, jnp.inexact) else True
    words = _words(array)
    steps = [math.prod(words.shape[axis + 1:]) % 2**32 for axis in range(words.ndim)]
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, step in enumerate(steps):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(step)
    first = _mixed(words ^ _mixed(position + np.uint32(0x9E3779B9)))
    second = _mixed(_mixed(words + np.uint32(0x7F4A7C15)) + _mixed(position * np.uint32(0x2545F491)))
    return jnp.stack([first.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32), jnp.uint32(finite)])


def _words(array: jax.Array) -> jax.Array:
    """The elements' bit patterns as uint32; of elements of 8 bytes two each, along a last axis."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    size = array.dtype.itemsize
    wanted = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, wanted).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit of the result depends on all: MurmurHash3's last step."""
    x ^= x >> 16
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
