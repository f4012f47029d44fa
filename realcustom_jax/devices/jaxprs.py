"""What a traced program costs: its arithmetic, and the memory of what it holds on the way."""

import math
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.extend import core


def flops(jaxpr: core.Jaxpr) -> int:
    """Operations in the matrix products and convolutions of a jaxpr, two for each multiply-add, with those of fused
    attention. What a scan holds counts once for each round (XLA's own count takes it once), a Pallas kernel once for
    each tile, what each device of a mesh does by itself once for each device, of alternatives the largest."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted]))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * (kernel.size // features)
        elif cudnn := re.match(r"dot_product_attention_(fwd|bwd)", eqn.primitive.name):
            # Of two products forward and five backward, which computes the weights again.
            query, key = (eqn.invars[i].aval for i in (0, 1))
            total += 2 * {"fwd": 2, "bwd": 5}[cudnn[1]] * query.size * key.shape[1]
        inner = [flops(sub) for sub in inner_jaxprs(eqn)]
        total += max(inner) if eqn.primitive.name == "cond" else _times(eqn) * sum(inner)
    return total


def _times(eqn: core.JaxprEqn) -> int:
    """How often what an operation holds is done."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid)
    return eqn.params["mesh"].size if eqn.primitive.name == "shard_map" else 1


def peak_bytes(jaxpr: core.Jaxpr) -> int:
    """The largest sum of intermediate arrays alive at once, if every operation of a jaxpr made its result whole."""
    last_use = {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, core.Var)}
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        for var in eqn.invars:
            if isinstance(var, core.Var):
                last_use.setdefault(var, i)
    alive, live, peak = {}, 0, 0
    for i, eqn in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(sub) for sub in inner_jaxprs(eqn)), default=0)
        for var in eqn.outvars:
            alive[var] = var.aval.size * var.aval.dtype.itemsize
            live += alive[var]
        peak = max(peak, live + inner)
        for var in {var for var in (*eqn.invars, *eqn.outvars) if isinstance(var, core.Var)}:
            if last_use.get(var, i) <= i:
                live -= alive.pop(var, 0)
    return peak


def inner_jaxprs(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The bodies of loops, branches and functions that an operation holds."""
    for value in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
