"""Attention on a TPU: JAX's splash attention (a Pallas kernel), its tiles chosen by the shapes.

Nothing is masked but what fills the lengths up, so splash attention's sparsity is not used. It is taken because its
backward pass keeps one number a query, where JAX's older flash kernel keeps three copies of 128. Compiled for a v5e
(libtpu 0.0.52, `python -m benchmarks.compiling.tpu_attention`), forward and backward of SDXL's self-attention, 4096
pixels and 10 heads of 64, together take 1 MB of temporaries and move 0.30 GB, instead of 53 MB and 0.62 GB. Not timed
on a chip yet.
"""

import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu import splash_attention

LANES = 128
"""Of a TPU's vector registers: every tile is a multiple of it."""
_PARKED, _PASSING, _PASSING_WIDE = 512, 2048, 1024


def tiles(pixels: int, tokens: int, head_size: int) -> "splash_attention.BlockSizes":
    """The tiles of a forward and a backward pass over `pixels` queries and `tokens` keys, lengths of `filled`.

    Each kernel keeps one tile and its sums while the tiles of the other length pass by. What begins and ends a tile's
    sums is paid once for each of those, so that they are long: 2048. The tile that stays is short, 512, because the
    weights of both are in the chip's scratch memory at once, in float32: 4 MiB of the 16 MiB that XLA gives a kernel.
    More than 64 channels of a head halve what passes. For 512 x 512 weights a v5e's compiled kernels then have 1322,
    1902 and 1422 instructions (forward, gradient of keys and values, of queries), with 512 x 512 tiles 1960, 2342 and
    1669, the flash kernel 1717, 2511 and 1893. Both backward kernels fused have 2475 of 3324, but their temporaries are
    34 instead of 2 MB, and they move 0.42 instead of 0.25 GB.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    passing = _PASSING if head_size <= 64 else _PASSING_WIDE
    rows, columns = _tile(pixels, _PARKED), _tile(tokens, passing)
    return splash_attention.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
        block_q_dkv=_tile(pixels, passing), block_kv_dkv=_tile(tokens, _PARKED),
        block_kv_dkv_compute=_tile(tokens, _PARKED))


def filled(length: int) -> int:
    """A length that tiles of at least 256 divide, or 128 itself: as few as are needed are added."""
    return next(n for n in itertools.count(-(-length // LANES) * LANES, LANES) if _tile(n, _PARKED) >= min(n, 256))


def _tile(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides the length."""
    return next(size for size in range(limit, 0, -LANES) if not length % size)


def tpu_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attention_kernels.attend` of any lengths, d ≤ 128: both are filled up (`filled`), and added keys are masked."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    batch, pixels, heads, head_size = query.shape
    tokens = key.shape[1]
    rows, columns = filled(pixels), filled(tokens)
    segments = None
    if columns > tokens:
        segments = splash_attention.SegmentIds(
            jnp.ones(rows, jnp.int32), (jnp.arange(columns) < tokens).astype(jnp.int32))
    # Examples are given as more heads, because JAX's interpreter cannot run this kernel under a vmap.
    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((rows, columns))] * (batch * heads))
    kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=tiles(rows, columns, head_size))

    def heads_first(x: jax.Array, length: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return x.swapaxes(1, 2).reshape(batch * heads, length, head_size)

    # The kernel does not divide the logits by √d itself.
    scaled = (query.astype(jnp.float32) * head_size**-0.5).astype(query.dtype)
    out = kernel(heads_first(scaled, rows), heads_first(key, columns), heads_first(value, columns), segments)
    return out.reshape(batch, heads, rows, head_size).swapaxes(1, 2)[:, :pixels]
