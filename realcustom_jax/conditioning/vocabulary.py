"""What a model trained on a small world has words for, told to whoever asks for more."""

import dataclasses
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from realcustom_jax.conditioning.words import words_of
from realcustom_jax.errors import quoted

_NAMED = 10  # unknown words that are named


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """nouns (possible subjects) and scenes, to be listed; words: everything that training prompts held, lower case."""

    nouns: tuple[str, ...]
    scenes: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Vocabulary":
        """Reads the mapping in a bundle's `vocabulary.json`. Raises ValueError for anything but lists of words."""
        lists = [config.get(key, []) for key in ("nouns", "held_out_nouns", "scenes", "words")]
        if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
            raise ValueError("nouns, held_out_nouns, scenes and words must be lists of words.")
        nouns, held_out, scenes, words = lists
        return cls(tuple(dict.fromkeys(nouns + held_out)), tuple(scenes), frozenset(word.lower() for word in words))

    def check(self, prompt: str, targets: Sequence[str]) -> None:
        """Warns of words of the prompt that the model never learnt; raises ValueError if a target holds one."""
        knows = f"it knows the nouns {', '.join(self.nouns)} and the scenes {', '.join(self.scenes)}."
        for target in targets:
            if unknown := self._unknown(target):
                raise ValueError(f"This model never learnt {_quoted(unknown)} of the target {quoted(target)}; {knows}")
        if unknown := self._unknown(prompt):
            warnings.warn(f"This model never learnt {_quoted(unknown)} of the prompt {quoted(prompt)}; {knows}",
                          stacklevel=3)

    def _unknown(self, text: str) -> list[str]:
        composed = unicodedata.normalize("NFC", text).lower()
        return [word for word in words_of(composed) if word not in self.words]


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(map(quoted, words[:_NAMED])) + (", …" if len(words) > _NAMED else "")
