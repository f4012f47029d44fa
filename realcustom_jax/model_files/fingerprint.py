"""What something was made from, as a short text: equal for equal content, wherever that lies and however it is stored.

Files that are made once and found again (features, pictures of a batch, checkpoints) carry the fingerprint of what they
were made from, so that none of them is taken for the result of a model that has been trained anew since. Every byte of
every tensor counts: a sample of them would miss a model of which only a part was trained.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from realcustom_jax.models.context import layers_apart

_LENGTH = 16  # hexadecimal digits, 64 bits: files are told apart, nobody is kept from forging them


def of_values(*values: Any) -> str:
    """Of values whose `repr` says all that they are: texts, numbers, tuples, frozen dataclasses, other fingerprints."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:_LENGTH]


def of_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """Of tensors by name: their names, shapes, precisions and all their bytes, in any order."""
    return of_values(sorted(_digest(name, value) for name, value in tensors.items()))


def of_parameters(params) -> str:
    """Of a nested dict of parameters; the same whether equal layers are stacked or apart, and on any device."""
    return of_tensors(flatten_dict(layers_apart(jax.tree.map(np.asarray, params)), sep="/"))


def of_network(module, params) -> str:
    """Of a network: its configuration, its precision and its parameters."""
    return of_values(type(module).__name__, module.config, jnp.dtype(module.dtype).name, of_parameters(params))


def of_tokenizer(tokenizer) -> str:
    """Of a tokenizer: its tokens and how it makes them of a text."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for of_the_last_call in ("padding", "truncation"):
        rules.pop(of_the_last_call, None)
    return of_values(sorted(tokenizer.get_vocab().items()), tokenizer.model_max_length, json.dumps(rules))


def _digest(name: str, value: np.ndarray) -> tuple[str, str]:
    value = np.ascontiguousarray(value)
    digest = hashlib.sha256(f"{value.dtype} {value.shape} ".encode())
    digest.update(value.reshape(-1).view(np.uint8))
    return name, digest.hexdigest()
