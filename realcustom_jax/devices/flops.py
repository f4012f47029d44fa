"""How much arithmetic a traced program does."""

import numpy as np
from jax.extend import core


def flops(jaxpr: core.Jaxpr) -> int:
    """Operations in the matrix products and convolutions of a jaxpr, two for each multiply-add. What a scan holds
    counts once for each round (XLA's own count takes it once), of alternatives the largest."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted]))
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * (kernel.size // features)
        inner = [flops(sub) for sub in core.jaxprs_in_params(eqn.params)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += (eqn.params["length"] if eqn.primitive.name == "scan" else 1) * sum(inner)
    return total
