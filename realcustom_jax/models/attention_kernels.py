"""Dot-product attention, softmax(Q Kᵀ/√d) V, by the kernel that suits the platform.

    attend         by fused ("flash") kernels that never hold the weights, where there is one
    target_maps    the mean over heads of chosen keys' weights: the target word's maps

Shapes: query [B, N, heads, d], key and value [B, L, heads, d]. Softmax is in float32 everywhere.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from realcustom_jax.devices.platform import Platform
from realcustom_jax.devices.sharding import AxisRules
from realcustom_jax.models.parts import largest_divisor
from realcustom_jax.models.tpu_attention import LANES, tpu_attention

_LONG = 2**18
"""N·L from which a TPU's fused kernel pays; the weights of less are small."""
_QUERIES_AT_ONCE = 1024


def attend(query: jax.Array, key: jax.Array, value: jax.Array, platform: Platform) -> jax.Array:
    """Attention [B, N, heads, d], of the inputs' dtype, by the platform's kernel.

    That is cuDNN's fused attention on NVIDIA GPUs from Ampere on (half precision only), JAX's splash attention on TPUs,
    and XLA's products elsewhere or where the shapes do not suit the kernel.
    """
    if _cudnn_can(query, platform):
        return _cudnn(query, key, value)
    if _pallas_can(query, key, platform):
        return _on_every_device(tpu_attention, query.shape)(query, key, value)
    return plain_attention(query, key, value)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attend` by XLA's products. The sum of the weights divides the output, which is smaller than they are: on a CPU,
    3 % of SDXL's time less."""
    weights = _exponentials(query, key)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (out / total).astype(value.dtype).swapaxes(1, 2)


def _cudnn_can(query: jax.Array, platform: Platform) -> bool:
    head_size, half = query.shape[-1], query.dtype in (jnp.bfloat16, jnp.float16)
    return platform.attention == "cudnn" and half and head_size <= 128 and not head_size % 8


def _pallas_can(query: jax.Array, key: jax.Array, platform: Platform) -> bool:
    pixels, tokens, head_size = query.shape[-3], key.shape[-3], query.shape[-1]
    # A text has few keys: filled up to the kernel's tiles they would take more memory traffic than plain products do,
    # 0.22 instead of 0.16 GB for SDXL's 4096 pixels, forward and backward (benchmarks.compiling.tpu_attention).
    worthwhile = pixels * tokens >= _LONG and tokens > LANES
    return platform.attention == "pallas" and worthwhile and head_size <= 128


@jax.custom_vjp
def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _cudnn_forward(query, key, value):
    """cuDNN's gradient wants even lengths: an odd number of keys gets one more, which is masked."""
    pixels, tokens = query.shape[1], key.shape[1]
    odd = tokens % 2

    def even(query, key, value):
        key, value = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (key, value))
        lengths = jnp.full(len(key), tokens, jnp.int32) if odd else None
        return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")

    return jax.vjp(plain_attention if pixels % 2 else even, query, key, value)


_cudnn.defvjp(_cudnn_forward, lambda pulled_back, out: pulled_back(out))


def _on_every_device(kernel, shape: tuple[int, ...]):
    """`kernel`, on a mesh (`jax.set_mesh`) run by each device on its own part of batch and heads,
    because XLA cannot divide it."""
    mesh, rules = jax.sharding.get_abstract_mesh(), AxisRules()
    if mesh.empty or mesh.size == 1:
        return kernel

    def along(axes, length):  # all devices compute what does not divide evenly
        return axes if length % math.prod(mesh.shape[name] for name in axes) == 0 else None

    spec = PartitionSpec(along(rules.batch, shape[0]), None, along(rules.heads, shape[2]))
    return jax.shard_map(kernel, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)


def target_maps(query: jax.Array, key: jax.Array, target: jax.Array, platform: Platform) -> jax.Array:
    """How strongly each query attends to the marked tokens: float32 [G, R, N], for the first G lanes of query and key.

    It is the weights of the tokens that target [G, R, L] marks, summed over these tokens and averaged over heads. The
    weights [G, heads, N, L] are never whole, because they would be the largest arrays of the network. On NVIDIA GPUs
    the marks are given to cuDNN as values, and what it attends to are the maps. All lanes take part, because cutting
    out the first would take longer. Elsewhere a number of queries is taken at a time. `attend` makes the same weights
    once more inside its kernel, which costs next to nothing; sharing them would cost memory.
    """
    lanes, references, (heads, head_size) = len(target), target.shape[1], query.shape[2:]
    if _cudnn_can(query, platform) and references <= head_size:
        marks = jnp.pad(target.astype(key.dtype).swapaxes(1, 2),
                        ((0, len(key) - lanes), (0, 0), (0, head_size - references)))
        marks = jnp.broadcast_to(marks[:, :, None], key.shape)
        attended = attend(query, key, marks, platform)[:lanes, ..., :references]
        return attended.mean(axis=2, dtype=jnp.float32).swapaxes(1, 2)

    query, key, marked = query[:lanes], key[:lanes], target.astype(jnp.float32) / heads

    def some(query):
        return jnp.einsum("bhqk,brk->brq", attention_weights(query, key), marked)

    batch, pixels = query.shape[:2]
    part = largest_divisor(pixels, _QUERIES_AT_ONCE)
    if part == pixels:
        return some(query)
    parts = query.reshape(batch, -1, part, *query.shape[2:]).swapaxes(0, 1)
    return jnp.moveaxis(jax.lax.map(some, parts), 0, 2).reshape(batch, target.shape[1], pixels)


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax weights [B, heads, N, L] in float32."""
    weights = _exponentials(query, key)
    return weights / weights.sum(axis=-1, keepdims=True)


def _exponentials(query: jax.Array, key: jax.Array) -> jax.Array:
    """The weights [B, heads, N, L] before they are normalised, the largest of each query 1, in float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    return jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
