"""cuDNN's attention in the program of a GPU that is not there.

`jax.nn.dot_product_attention` asks the machine for cuDNN's version when it is traced. Here the same custom call is
written down through JAX's public foreign functions, so that the program can be compiled without cuDNN. Forward only.
"""

import contextlib
import json
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp

from realcustom_jax.models import attention_kernels

_ELEMENTS = {"bfloat16": "BF16", "float16": "F16"}


@contextlib.contextmanager
def absent_cudnn() -> Iterator[None]:
    """Within it, the UNet's attention by cuDNN is traced without a GPU."""
    with mock.patch.object(attention_kernels, "_cudnn", attention):
        yield


@jax.custom_batching.custom_vmap
def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention [B, N, heads, d] of query [B, N, heads, d], key and value [B, L, heads, d] in half precision."""
    batch, pixels, heads, head_size = query.shape
    call = jax.ffi.ffi_call(
        "__cudnn$fmhaSoftmax",
        (jax.ShapeDtypeStruct((batch, heads, pixels, head_size), query.dtype), jax.ShapeDtypeStruct((0,), jnp.uint8)),
        output_layouts=((0, 2, 1, 3), (0,)), custom_call_api_version=2,
        legacy_backend_config=_description(query, key.shape[1]))
    return call(query, key, value)[0].swapaxes(1, 2)


@attention.def_vmap
def _of_rows(size, batched, *inputs):
    """cuDNN takes one axis of rows: those of all examples, one after the other."""
    assert batched == [True] * 3
    out = attention(*(x.reshape(-1, *x.shape[2:]) for x in inputs))
    return out.reshape(size, -1, *out.shape[1:]), True


def _description(query: jax.Array, tokens: int) -> str:
    """What XLA wants to know of the call, its `CudnnfMHABackendConfig`."""
    batch, pixels, heads, head_size = query.shape
    layout = {
        "dim_level_types": [], "dim_unique": [], "dim_ordered": [], "minor_to_major": ["3", "2", "1", "0"], "tiles": [],
        "element_size_in_bits": "0", "memory_space": "0", "index_primitive_type": "PRIMITIVE_TYPE_INVALID",
        "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID", "dynamic_shape_metadata_prefix_bytes": "0"}
    weights = {
        "element_type": _ELEMENTS[query.dtype.name], "dimensions": [str(n) for n in (batch, heads, pixels, tokens)],
        "tuple_shapes": [], "layout": layout, "is_dynamic_dimension": [False] * 4}
    algorithm = {"algo_id": "0", "math_type": "TENSOR_OP_MATH", "tuning_knobs": {"17": "1", "24": "0"},
                 "is_cudnn_frontend": True, "workspace_size": "0"}

    def product(contracted, batched):
        sides = zip(("lhs", "rhs"), contracted, batched, strict=True)
        return {f"{side}_{name}_dimensions": [str(axis) for axis in axes] for side, over, along in sides
                for name, axes in (("contracting", [over]), ("batch", along))}

    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": {
        "algorithm": algorithm, "fmha_scale": head_size**-0.5, "intermediate_tensor_shape": weights,
        "is_flash_attention": True, "mask_type": "NO_MASK",
        "bmm1_dot_dimension_numbers": product((3, 3), ((0, 2), (0, 2))),
        "bmm2_dot_dimension_numbers": product((3, 1), ((0, 1), (0, 2))),
        "dropout_rate": 0.0, "seed": 42, "sliding_window_length": 0, "max_seg_per_batch": 1,
        "is_paged_attention": False}})
