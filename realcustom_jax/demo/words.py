"""A prompt as words to click on, and the target that the clicked ones name.

Words that stand side by side are one phrase ("red dog"). Where the phrase occurs more than once, the target says which
one is meant: "dog#2" is the second dog.
"""

import collections
import dataclasses
from collections.abc import Sequence
from itertools import pairwise

from realcustom_jax.conditioning.targets import phrase_spans
from realcustom_jax.conditioning.words import same_words, word_places
from realcustom_jax.errors import quoted

LONGEST_PROMPT = 1000
"""Characters. Text encoders read 77 tokens."""

# Words that name no subject, so that their occurrences need no number.
_SMALL = {"a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "is"}


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt.

    Attributes:
        text: as the prompt has it.
        start, end: its characters in the prompt.
        label: what is shown: the text, with the number of its occurrence if there are several.
        key: tells it from the prompt's other words, and what it was when the prompt has changed since.
    """

    text: str
    start: int
    end: int
    label: str
    key: str


def words_to_click(prompt: str) -> list[Word]:
    """The words of a prompt in their order; of a script without spaces, its characters."""
    spans = word_places(prompt)
    texts = [prompt[start:end] for start, end in spans]
    folded = [text.casefold() for text in texts]
    counts, seen = collections.Counter(folded), collections.Counter()
    words = []
    for i, (text, (start, end), same) in enumerate(zip(texts, spans, folded, strict=True)):
        seen[same] += 1
        numbered = counts[same] > 1 and same not in _SMALL
        words.append(Word(text, start, end, f"{text}#{seen[same]}" if numbered else text, f"{i} {text}"))
    return words


def side_by_side(keys: Sequence[str], words: Sequence[Word]) -> list[str]:
    """Of the clicked words, in the order of the clicks: those that stand side by side with the last one clicked.

    Keys of no word, which are those of another prompt, are left out.
    """
    places = {word.key: i for i, word in enumerate(words)}
    clicked = [places[key] for key in keys if key in places]
    if not clicked:
        return []
    first = last = clicked[-1]
    while first - 1 in clicked:
        first -= 1
    while last + 1 in clicked:
        last += 1
    return [word.key for word in words[first : last + 1]]


def target_of(prompt: str, keys: Sequence[str], *, match: str = "word") -> str:
    """The target that the clicked words name, as `Pipeline.__call__` takes it; "" where none is clicked. `match` is the
    preset's, see `targets.target_tokens`.

    Raises:
        ValueError: clicked words that do not stand side by side, or that no target can name.
    """
    clicked = [(i, word) for i, word in enumerate(words_to_click(prompt)) if word.key in keys]
    if not clicked:
        return ""
    places, words = zip(*clicked, strict=True)
    if any(after - before != 1 for before, after in pairwise(places)):
        raise ValueError(f"The words {', '.join(quoted(word.text) for word in words)} do not stand side by side in the "
                         "prompt; choose one word, or neighbours.")
    phrase = prompt[words[0].start : words[-1].end]
    spans = phrase_spans(prompt, phrase, match=match)
    if len(spans) == 1:
        return phrase
    number = 1 + next((i for i, (start, end) in enumerate(spans) if start <= words[0].start < end), -1)
    target = f"{phrase}#{number}"
    if not number or phrase_spans(prompt, target, match=match):
        raise ValueError(f"{quoted(phrase)} stands in the prompt more than once, and this one cannot be told from the "
                         "others; choose more of the words around it, or change the prompt.")
    return target


def words_of_target(prompt: str, phrase: str) -> list[str]:
    """The clicked words that name the first occurrence of a phrase; none where it does not occur."""
    start, end = next(iter(phrase_spans(prompt, phrase)), (0, 0))
    return [word.key for word in words_to_click(prompt) if start <= word.start and word.end <= end]


def kept_words(keys: Sequence[str], prompt: str) -> list[str]:
    """The words of a changed prompt that are the same phrase as the ones clicked before: the phrase's nearest
    occurrence, or none."""
    old = [(int(place), text) for place, _, text in (key.partition(" ") for key in keys)]
    old.sort()
    words = words_to_click(prompt)
    runs = [range(i, i + len(old)) for i in range(len(words) - len(old) + 1)] if old else []
    same = [run for run in runs if all(same_words(words[i].text, text) for i, (_, text) in zip(run, old, strict=True))]
    nearest = min(same, key=lambda run: abs(run.start - old[0][0]), default=())
    return [words[i].key for i in nearest]
