"""RealCustom++ in JAX and Flax."""

import os

# Of transformers only the tokenizers are used: that torch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
