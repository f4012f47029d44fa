"""What the annotations of the public functions say."""

import jax
import numpy as np

# An array that a function takes: JAX's, traced or not, or NumPy's. What it returns is JAX's.
Array = jax.Array | np.ndarray
