"""The words of a prompt that stand for its subjects, as targets of the pipeline."""

from collections.abc import Iterator, Sequence

from realcustom_jax.conditioning.words import Span, word_spans
from realcustom_jax.errors import quoted

_IRREGULAR = {"man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice",
              "goose": "geese", "foot": "feet", "tooth": "teeth"}


def named(prompt: str, subject: str) -> tuple[str, str]:
    """The prompt that the model is given for a subject, and the words in it that stand for the subject.

    A list may call the subject by words that a prompt of it does not hold. Tried in this order: the words themselves;
    the last of them in the other number, and all of them with hyphens or in one ("spider man", Spider-Man); the same
    of their last words alone (the cream of "face cream"). If nothing is found, the subject's words are put before the
    prompt, because RealCustom++ needs a word for each reference: "eye shadow. A palette made of …".
    """
    words = subject.split()
    for i in range(len(words)):
        for form in _forms(words[i:]):
            if spans := word_spans(prompt, form):
                return prompt, prompt[slice(*spans[0])]
    return f"{' '.join(words)}. {prompt}", " ".join(words)


def _forms(words: Sequence[str]) -> Iterator[str]:
    *before, last = words
    for word in (last, *_other_number(last)):
        yield " ".join([*before, word])
        if before:
            yield "-".join([*before, word])
            yield "".join([*before, word])


def _other_number(word: str) -> list[str]:
    """What may be the word's plural or singular; other forms than it has do no harm."""
    lower = word.lower()
    forms = [plural for one, plural in _IRREGULAR.items() if lower == one]
    forms += [one for one, plural in _IRREGULAR.items() if lower == plural]
    for ending, other in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if lower.endswith(ending) and len(lower) > len(ending) + 1:
            forms.append(lower[: -len(ending)] + other)
    if lower.endswith("y"):
        forms.append(f"{lower[:-1]}ies")
    if lower.endswith(("f", "fe")):
        forms.append(f"{lower.removesuffix('e')[:-1]}ves")
    return [*forms, f"{lower}s", f"{lower}es"]


def told_apart(prompt: str, words: Sequence[str], numbers: Sequence[int | None] | None = None
               ) -> list[tuple[str, int]]:
    """The target of each of several subjects of a prompt, and where in the prompt it stands first.

    A word that occurs also for another subject, or in another's words ("man" and "old man"), gets the number of the
    occurrence that is meant: `numbers`, counted from 1, says it; otherwise the n-th such word means the n-th place
    that is not within another's longer words.

    Raises:
        ValueError: a word does not occur, or not so often; says which.
    """
    found = [word_spans(prompt, word) for word in words]
    targets = []
    for i, (word, spans, number) in enumerate(zip(words, found, numbers or [None] * len(words), strict=True)):
        others = [j for j, other in enumerate(words) if j != i and word_spans(other, word)]
        longer = [span for j in others if not word_spans(word, words[j]) for span in found[j]]
        free = [k for k, span in enumerate(spans) if not any(_within(span, other) for other in longer)]
        earlier = sum(j < i and bool(word_spans(word, words[j])) for j in others)
        if number is None and others:
            number = free[earlier] + 1 if earlier < len(free) else len(spans) + 1
        if not 1 <= (number or 1) <= len(spans):
            raise ValueError(f"the prompt {quoted(prompt)} holds the word {quoted(word)} {len(spans)} time(s), where "
                             f"{number or 1} are needed to name the subjects {', '.join(words)}")
        targets.append((f"{word}#{number}" if number and len(spans) > 1 else word, spans[(number or 1) - 1][0]))
    return targets


def _within(span: Span, other: Span) -> bool:
    return other[0] <= span[0] and span[1] <= other[1]
