"""The brief's mechanical naming rule, for tests that run without `realcustom_jax.weights`."""

import re

import numpy as np
from flax.traverse_util import unflatten_dict
from goldens import FIXTURES
from safetensors.numpy import load_file


def load_params(name: str, prefix: str = "") -> dict:
    """The torch weights of ``tests/fixtures/NAME.safetensors`` under `prefix` as nested Flax parameters."""
    params = {}
    for key, value in load_file(FIXTURES / f"{name}.safetensors").items():
        if key.startswith(prefix):
            *modules, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", key.removeprefix(prefix)).split(".")
            if leaf == "weight":
                matrix = "embedding" if modules[-1].endswith("embedding") else "kernel"
                leaf = "scale" if value.ndim == 1 else matrix
            if leaf == "kernel":
                value = np.transpose(value, (1, 0) if value.ndim == 2 else (2, 3, 1, 0))
            params[(*modules, leaf)] = value
    return unflatten_dict(params)
