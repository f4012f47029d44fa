"""How arrays lie on the devices, in one place: the mesh, and which axis of which parameter is divided along it.

    data      copies of the parameters, each with its share of the batch; whole slices where there are several
    fsdp      parameters are divided; so is the batch, and each device gathers a layer's parameters when it needs them
    tensor    the inner width of attention and feed-forward layers is divided; devices share the same examples

Every parameter of the published networks has *logical* axes, found by its name; `AxisRules` says where those lie.
Nothing else decides: what the rules do not know is an error, never a silent copy.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
_STACKS = "transformer_blocks"  # whose parameters have a leading axis of layers


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """The mesh axes along which each logical axis is divided; () is none.

    batch: of examples. embed: the width that layers hand on. heads, mlp: the inner widths of attention and of
    feed-forward layers. channels_in, channels_out: of convolutions. layers: of a scanned stack. small: of what is not
    worth dividing (biases, norms, positions, a picture's few channels).
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    channels_in: tuple[str, ...] = ("tensor",)
    channels_out: tuple[str, ...] = ("fsdp",)
    layers: tuple[str, ...] = ()
    small: tuple[str, ...] = ()

    def __post_init__(self):
        for name, axes in vars(self).items():
            if unknown := [axis for axis in axes if axis not in MESH_AXES]:
                raise ValueError(f"AxisRules: {name} lies along {unknown[0]!r}, which is no axis of the mesh; those "
                                 f"are {', '.join(MESH_AXES)}.")

    def spec(self, names: Sequence[str]) -> PartitionSpec:
        """Where an array with these logical axes lies. Raises ValueError for an unknown name, or two axes of the array
        along the same axis of the mesh."""
        known, used, axes = vars(self), {}, []
        for name in names:
            if name not in known:
                raise ValueError(f"There is no logical axis {name!r}; those are {', '.join(known)}.")
            for axis in known[name]:
                if axis in used:
                    raise ValueError(f"The logical axes {used[axis]!r} and {name!r} of one array both lie along the "
                                     f"mesh axis {axis!r}; change AxisRules.")
                used[axis] = name
            axes.append(known[name] or None)
        return PartitionSpec(*axes)


CONVOLUTION = ("small", "small", "channels_in", "channels_out")
_INTO, _OUT_OF = ("embed", "mlp"), ("mlp", "embed")
# Of a parameter's path, the last names; then its logical axes, without that of a stack. A name may have two ranks.
_PARAMETERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(to_[qkv]|to_[kv]_vision|[qkv]_proj|qkv)/kernel", ("embed", "heads")),
    (r"(to_out_0|out_proj|attn/proj)/kernel", ("heads", "embed")),
    (r"(net_0_proj|fc1|linear_1|projector2?_[02]|projector_base|proj_in|time_emb_proj)/kernel", _INTO),
    (r"(net_2|fc2|linear_2|projector2?_4|proj_out|text_projection)/kernel", _OUT_OF),
    (r"(proj_in|proj_out|conv\d?|conv_shortcut)/kernel", CONVOLUTION),
    (r"(conv_in|conv_out|quant_conv|post_quant_conv|patch_embed/proj)/kernel", ("small",) * 4),
    (r"token_embedding/embedding", ("small", "embed")),
    (r"position_embedding/embedding", ("small", "small")),
    (r"(pos_embed|cls_token|reg_token)", ("small",) * 3),
    (r".*/(bias|scale|gamma)", ("small",)),
    (r"ns_coeffs", ("small",)),  # of Muon's state
    (r"(empty|no_image)/\w+", ("small",)),  # what replaces a dropped condition
    (r"(empty|no_image)/\w+", ("small", "small")),
)


def logical_axes(path: Sequence[str], rank: int) -> tuple[str, ...]:
    """The logical axes of a parameter (or of an optimizer's array for it), by the names that lead to it.

    Raises ValueError for a name that no network here has, or one of another rank.
    """
    name = "/".join(path)
    stack = ("layers",) if _STACKS in path else ()
    if rank == 0:
        return ()
    candidates = [stack + axes for pattern, axes in _PARAMETERS if re.search(rf"(^|/)({pattern})$", name)]
    for axes in candidates:
        if len(axes) == rank:
            return axes
    if not candidates:
        raise ValueError(
            f"The parameter {name!r} is unknown to realcustom_jax.devices.sharding: add its logical axes there.")
    raise ValueError(f"The parameter {name!r} has {rank} axes; its logical axes are {candidates[0]}.")


def gathered(kernel: jax.Array, names: Sequence[str], rules: AxisRules = AxisRules()) -> jax.Array:
    """A kernel with these logical axes, whole along `fsdp` on the devices of the mesh in use (`jax.set_mesh`), if any.

    Left to itself, XLA gathers what a convolution reads instead of its kernel: for a large batch far more.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names:
        return kernel
    kept = (tuple(axis for axis in _along(entry) if axis != "fsdp") or None for entry in rules.spec(names))
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec(*kept)))


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, dcn_data: int = 1,
              devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of `devices`; one size may be −1: as many as are left.

    dcn_data: how many slices there are: TPU pods, or hosts of GPUs, that only the data center's network connects. The
    other sizes are of one slice, and the axis "data" is `dcn_data` times as long, slice by slice: a slice has all
    parameters, and gradients alone cross from one to the other.

    Raises ValueError if the sizes do not make the number of devices, or the devices are of another number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    given = dcn_data * math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and given > 0 and len(devices) % given == 0:
        sizes[free[0]] = len(devices) // given
    if dcn_data * math.prod(sizes.values()) != len(devices) or min(dcn_data, *sizes.values()) < 1:
        shown = sizes if dcn_data == 1 else sizes | {"dcn_data": dcn_data}
        asked = ", ".join(f"{name}={size}" for name, size in shown.items())
        raise ValueError(f"A mesh of {asked} does not fit {len(devices)} devices: the product of the sizes must be "
                         "their number (one size may be -1).")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Hosts of GPUs count as slices too, and need not be told apart: their network does not stop a mesh.
    if slices != dcn_data and (dcn_data > 1 or devices[0].platform == "tpu"):
        raise ValueError(f"The devices are of {slices} slice{'s' * (slices > 1)}, and dcn_data is {dcn_data}: it must "
                         "be the number of slices.")
    types = (AxisType.Auto,) * 3
    if dcn_data > 1:
        placed = mesh_utils.create_hybrid_device_mesh(tuple(sizes.values()), (dcn_data, 1, 1), devices,
                                                      allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, devices=devices, axis_types=types)


def shardings(tree, mesh: Mesh, rules: AxisRules = AxisRules()):
    """A NamedSharding for every array (or its shape) of a tree whose paths end in parameters' names: parameters, their
    averages, an optimizer's state.

    Raises ValueError as `logical_axes` and `AxisRules.spec`, and for an axis that its mesh axes do not divide evenly.
    """
    def place(path, leaf):
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        spec = rules.spec(logical_axes(names, np.ndim(leaf)))
        for axis, along in enumerate(map(_along, spec)):
            count = math.prod(mesh.shape[name] for name in along)
            if leaf.shape[axis] % count:
                raise ValueError(f"{'/'.join(names)} of shape {tuple(leaf.shape)}: axis {axis} cannot be divided over "
                                 f"{' × '.join(along)} = {count} devices; choose another mesh.")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def _along(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else entry or ()


def batch_sharding(mesh: Mesh, batch_size: int, rules: AxisRules = AxisRules()) -> NamedSharding:
    """Of arrays whose first axis is the examples'. Raises ValueError if they cannot be shared out evenly."""
    shares = math.prod(mesh.shape[axis] for axis in rules.batch)
    if batch_size % shares:
        raise ValueError(f"batch_size={batch_size} cannot be divided over {shares} devices; choose a multiple.")
    return NamedSharding(mesh, rules.spec(("batch",)))


def vmapped_axes(count: int, rows: int, rules: AxisRules = AxisRules()) -> tuple[str, ...] | None:
    """The axes of the mesh in use (`jax.set_mesh`) along which `count` examples that are vmapped lie, for
    `jax.vmap(…, spmd_axis_name=…)`: without it, every device runs a kernel that XLA cannot divide for all of them.

    None without a mesh, where it does not divide them evenly, or where it has so few devices that it may divide the
    `rows` of each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(rules.batch) <= set(mesh.axis_names):
        return None
    shares = math.prod(mesh.shape[axis] for axis in rules.batch)
    return rules.batch if shares > rows and count % shares == 0 else None


def examples_here(shares: NamedSharding, batch_size: int) -> np.ndarray:
    """Which examples of a batch this process's devices hold, in order."""
    held = [np.arange(batch_size)[at] for at in shares.addressable_devices_indices_map((batch_size,)).values()]
    return np.unique(np.concatenate(held))


def distribute_batch(batch, shares: NamedSharding, batch_size: int):
    """A batch on the devices, from arrays that hold all examples, or those that are held here (`examples_here`)."""
    here = examples_here(shares, batch_size)

    def array(x):
        held = here if len(x) < batch_size else np.arange(batch_size)
        return jax.make_array_from_callback(
            (batch_size, *x.shape[1:]), shares, lambda at: x[np.searchsorted(held, np.arange(batch_size)[at[0]])])

    return jax.tree.map(array, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def distribute(tree, placed):
    """Arrays of every process's memory, laid out on the devices; every process must hold the same values."""
    def array(x, where):
        return jax.make_array_from_callback(np.shape(x), where, lambda at: x[at])

    return jax.tree.map(array, tree, placed)


def shapes(tree, placed):
    """The shapes of a tree's arrays, each with its sharding: what a compilation or a restored checkpoint asks for."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, placed)


def collect(tree, mesh: Mesh):
    """The inverse of `distribute`: numpy arrays, whole in every process."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda x: x, out_shardings=jax.tree.map(lambda _: replicated(mesh), tree))(tree)
    return jax.device_get(tree)


def describe_tree(tree, placed, title: str) -> str:
    """A line for every array of a tree and its shardings: name, shape, where it lies, bytes on each device."""
    lines, total = [], 0
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(placed), strict=True):
        size = _shard_bytes(leaf, sharding)
        total += size
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        where = ", ".join("×".join(_along(entry)) or "–" for entry in sharding.spec) or "–"
        lines.append(f"{name:90} {str(tuple(leaf.shape)):22} ({where})  {size:>12,} bytes")
    return "\n".join([f"{title}: {total:,} bytes on each device", *lines])


def bytes_per_device(tree, placed) -> int:
    """Bytes of a tree of arrays (or shapes) on each device."""
    return sum(map(_shard_bytes, jax.tree.leaves(tree), jax.tree.leaves(placed)))


def _shard_bytes(array, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(tuple(array.shape))) * np.dtype(array.dtype).itemsize
