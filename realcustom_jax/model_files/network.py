"""What loading gives: networks with their parameters."""

import dataclasses
from typing import Any

import flax.linen as nn
from transformers import CLIPTokenizer

from realcustom_jax.model_files import fingerprint


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and its parameters."""

    module: nn.Module
    params: Any

    def fingerprint(self) -> str:
        """What it is made of, see module `fingerprint`."""
        return fingerprint.of_network(self.module, self.params)


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and the network that reads its tokens."""

    tokenizer: CLIPTokenizer
    network: Network
