"""What the captions of the painted world say: nouns, attributes and the scene, in words that are one token each.

    a dog on the beach
    a bare slim red and blue striped dog and a car in the snow
    a dog with a hat and a stout red and white spotted car in space

A thing's *attributes* can be told one by one, so that text alone can say what a reference shows. "bare" tells that
it wears nothing; where no accessory is told, it may wear one.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from realcustom_jax.data.sprites.world import (
    ACCESSORIES,
    BUILDS,
    COLOURS,
    NOUNS,
    PATTERN_WORDS,
    SCENE_PHRASES,
    Identity,
)

TELLABLE: tuple[str, ...] = ("colours", "pattern", "accessory", "build")
"""What can be told of a thing; its two colours are told together."""

VOCABULARY: tuple[str, ...] = tuple(sorted({
    "and", "a", "an", "with", "bare", *NOUNS, *" ".join(SCENE_PHRASES.values()).split(), *BUILDS, *COLOURS,
    *PATTERN_WORDS.values(), *ACCESSORIES[1:]}))


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption's words, and at which of them each thing's noun stands."""

    words: tuple[str, ...]
    nouns: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def caption(things: Sequence[tuple[Identity, Collection[str]]], scene: str | None) -> Caption:
    """The caption of a picture of `things`, each with what is told of it (of `TELLABLE`), in `scene`.

    Without a scene it is the description of the things alone: "a red and blue dog and a car".
    """
    words: list[str] = []
    nouns = []
    for identity, told in things:
        if words:
            words.append("and")
        before, after = _attributes(identity, told)
        phrase = [*before, identity.noun]
        article = "an" if phrase[0][0] in "aeiou" else "a"
        nouns.append(len(words) + 1 + len(before))
        words += [article, *phrase, *after]
    if scene is not None:
        words += SCENE_PHRASES[scene].split()
    return Caption(tuple(words), tuple(nouns))


def _attributes(identity: Identity, told: Collection[str]) -> tuple[list[str], list[str]]:
    """The words before and after the noun."""
    before, after = [], []
    if "accessory" in told and identity.accessory == "none":
        before.append("bare")
    if "build" in told:
        before.append(identity.build)
    if "colours" in told:
        before += [identity.primary, "and", identity.secondary]
    if "pattern" in told:
        before.append(PATTERN_WORDS[identity.pattern])
    if "accessory" in told and identity.accessory != "none":
        after += ["with", "a", identity.accessory]
    return before, after


class Spelling:
    """Captions as token ids, without the tokenizer's work: every word is one token.

    Args:
        tokenizer: made by `conditioning.prompts.build_tokenizer` of `VOCABULARY`.
    """

    def __init__(self, tokenizer):
        self.length = tokenizer.model_max_length
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        vocabulary = tokenizer.get_vocab()
        self._ids = {word: vocabulary[f"{word}</w>"] for word in VOCABULARY}
        self._words = {number: word for word, number in self._ids.items()}

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """int32 [T], padded with the end of text as CLIP's tokenizer pads. Raises ValueError if they are too many."""
        if len(words) > self.length - 2:
            raise ValueError(f"The caption {' '.join(words)!r} has {len(words)} words; at most {self.length - 2} fit.")
        ids = np.full(self.length, self.end, np.int32)
        ids[0] = self.start
        ids[1 : 1 + len(words)] = [self._ids[word] for word in words]
        return ids

    def text(self, ids: np.ndarray) -> str:
        """The words of ids [T]."""
        return " ".join(self._words[int(i)] for i in ids if int(i) in self._words)

    def place(self, word: int) -> int:
        """The token of the word number `word`."""
        return word + 1
