"""Words of subjects, where only the names of folders and classes tell them."""

import re

_SYNSET = re.compile(r"\bn\d{8}\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def cleaned(name: str) -> str:
    """What a name such as n02099601-golden_retriever_07 says in words: "golden retriever"; "" where it has none."""
    words = re.sub(r"[\W_]+", " ", _NUMBER.sub(" ", _SYNSET.sub(" ", re.sub(r"[_\-]+", " ", name))))
    return " ".join(words.split())
