"""Programs and shapes that one process traces and later ones read.

JAX's own cache spares a second process the compilation of a program, but not the tracing before it, in which Python
runs through the whole network: seconds for each of the sampler's. `jit_kept` spares that too. It is `jax.jit`, whose
tracing looks for what another process has traced:

    call → compiled in this process?  yes                                                                      → run
                                      no → kept?  yes  read, as StableHLO (`jax.export`)  → JAX compiles it, or
                                                  no   traced, and kept                     finds it in its cache → run

Both ways JAX compiles what was kept, so that a second process's numbers are the first one's, to the bit. What is kept
is no machine's code: whether compiled programs fit a processor, and XLA's flags, is the business of JAX's cache. A
change of this package makes all traces stale, yet only the programs that it changes are compiled anew.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from realcustom_jax.devices import kept

# Calls of kernels that XLA does not promise to understand in later versions; what is kept is read by the same one.
_SAME_VERSION = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]


def jit_kept(
    function: Callable, *, static_argnums: int | Sequence[int] = (), static_argnames: str | Sequence[str] = (),
    returns: Sequence[type] = (), **options,
) -> Callable:
    """`jax.jit(function, …)` whose traces are kept on disk; `.lower(…)` of it is as `jax.jit`'s.

    It is `jax.jit` alone under a transformation, for arguments on several devices, while a mesh is set, for static
    arguments that `kept.describe` does not know, and where nothing is kept (`kept.keeps`). That something which the
    function uses has been replaced in its module after import is not noticed.

    Args:
        function: a function of its arguments alone.
        static_argnums: as `jax.jit`'s, of arguments that are always given by position.
        static_argnames: as `jax.jit`'s, of arguments that are always given by name.
        returns: the dataclasses and named tuples that its results are made of; static fields are what JSON can write.
        options: others of `jax.jit`.
    """
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
    for kind in returns:
        _register(kind)

    @functools.wraps(function)
    def traced_or_read(*args, **kwargs):
        static = {i: args[i] for i in numbers} | {name: kwargs[name] for name in names if name in kwargs}
        others = ([x for i, x in enumerate(args) if i not in static],
                  {name: x for name, x in kwargs.items() if name not in static})
        leaves, tree = jax.tree.flatten(others)
        exported = _exported(function, static, tree, tuple(map(jax.typeof, leaves)))
        return function(*args, **kwargs) if exported is None else exported.call(*leaves)

    plain, keeping = (jax.jit(of, static_argnums=numbers, static_argnames=names, **options)
                      for of in (function, traced_or_read))

    def jitted(args, kwargs):
        return keeping if kept.keeps() and _on_one_device(jax.tree.leaves((args, kwargs))) else plain

    @functools.wraps(function)
    def call(*args, **kwargs):
        return jitted(args, kwargs)(*args, **kwargs)

    call.lower = lambda *args, **kwargs: jitted(args, kwargs).lower(*args, **kwargs)
    return call


def keep_shapes(trace: Callable[[], dict], *asked: Any) -> dict:
    """`trace()`, a nested dict of `jax.ShapeDtypeStruct`, which depends on nothing but what was `asked`."""
    key = kept.key_of("shapes", *asked) if kept.keeps() else None
    if key is None:
        return trace()
    if (content := kept.read(key)) is not None:
        return unflatten_dict({
            path: jax.ShapeDtypeStruct(tuple(shape), dtype) for path, (shape, dtype) in json.loads(content).items()
        }, sep="/")
    shapes = trace()
    kept.write(key, json.dumps({
        path: (leaf.shape, leaf.dtype.name) for path, leaf in flatten_dict(shapes, sep="/").items()}).encode())
    return shapes


def _exported(function: Callable, static: dict, tree, kinds: tuple) -> export.Exported | None:
    """The function of the leaves of `tree`, which are of these kinds, read or traced; None if it cannot be kept."""
    key = kept.key_of("program", function, tuple(static.items()), tree, kinds)
    if key is None:
        return None
    if (content := kept.read(key)) is not None:
        return export.deserialize(bytearray(content))

    def of_leaves(*leaves):
        args, kwargs = jax.tree.unflatten(tree, leaves)
        for i in sorted(number for number in static if isinstance(number, int)):
            args.insert(i, static[i])
        return function(*args, **kwargs, **{name: x for name, x in static.items() if isinstance(name, str)})

    try:
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in kinds]
        content = bytes(export.export(jax.jit(of_leaves), disabled_checks=_SAME_VERSION)(*given).serialize())
    except Exception:
        # What cannot be traced or exported, for whatever reason, is left to `jax.jit`, whose message is the better one.
        return None
    kept.write(key, content)
    # Read again, because what is written differs a little from what is read: the results have no weak types.
    return export.deserialize(bytearray(content))


def _on_one_device(leaves: Sequence[Any]) -> bool:
    """Whether none of these is traced, the arrays lie on one device of the default kind, and no mesh is set."""
    if any(isinstance(x, jax.core.Tracer) for x in leaves) or not jax.sharding.get_abstract_mesh().empty:
        return False
    devices = set().union(*(x.devices() for x in leaves if isinstance(x, jax.Array)))
    return len(devices) <= 1 and all(device.platform == jax.default_backend() for device in devices)


@functools.cache
def _register(kind: type) -> None:
    """Tells JAX how a type is written down: by its name, and its static fields as JSON."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if hasattr(kind, "_fields"):
        export.register_namedtuple_serialization(kind, serialized_name=name)
    else:
        export.register_pytree_node_serialization(
            kind, serialized_name=name, serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda text: tuple(json.loads(text)))
