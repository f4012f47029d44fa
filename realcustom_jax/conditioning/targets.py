"""Where a target phrase stands in a prompt, and the tokens that stand for it.

RealCustom++ names the subject by *real words* of the prompt ("a **toy** in the jungle"); their tokens select the
cross-attention maps of which the mask is made. Where a phrase stands, as a reader would find it, is module `words`.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from numbers import Integral

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.conditioning.prompts import max_length, token_offsets
from realcustom_jax.conditioning.words import Span, folded, word_spans, words_of
from realcustom_jax.errors import check_choice, check_text, quoted, visible

_MATCHES = ("word", "released")
_NUMBERED = re.compile(r"(.*)[#＃](\d{1,9})\s*", re.DOTALL)
_SHOWN_WORDS, _SHOWN_LETTERS, _SEARCHED_WORDS = 20, 40, 500


@dataclasses.dataclass(frozen=True)
class _Found:
    """A target in a prompt: its phrase, all its places, and which of them is meant, from 0 (None: every one)."""

    phrase: str
    spans: tuple[Span, ...]
    occurrence: int | None


def target_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    phrase: str,
    *,
    occurrence: int | None = None,
    match: str = "word",
) -> np.ndarray:
    """Marks the tokens of a phrase in the encoded prompt.

    Args:
        tokenizer: a CLIP tokenizer with offsets; T is its `model_max_length`.
        prompt: the text, as it is encoded.
        phrase: one or more words of it. "dog#2" is the second dog, unless the prompt itself holds the text dog#2.
        occurrence: zero-based; None marks every occurrence that the encoder sees: what stands beyond the T tokens is
            left out.
        match: "word": as a reader would find it (case, accents' spelling, apostrophes, hyphens and spaces do not
            matter), on word boundaries where the script has them, the tokens that overlap the phrase's characters;
            "released": case-sensitive substring, placed by counting the tokens of the text before and up to
            its end (`find_phrase_positions_in_text` of the released pipeline).
    Returns:
        int32 [T] of 0 and 1.
    Raises:
        ValueError: if the phrase is empty, does not occur (so often), or is cut off with the prompt's end.

    With the miniature's tokenizer, token 0 is the start of text, and the words follow:

    >>> from realcustom_jax.model_files.source import ModelSource
    >>> tokenizer = ModelSource.open("mini").tokenizer(0)
    >>> print(target_tokens(tokenizer, "a dog and a car in the snow", "dog")[:8])
    [0 0 1 0 0 0 0 0]
    >>> print(target_tokens(tokenizer, "a dog and a dog in the snow", "dog#2")[:8])
    [0 0 0 0 0 1 0 0]
    """
    found = _find(prompt, phrase, match)
    if occurrence is not None:
        if found.occurrence is not None:
            raise ValueError(f"The target {quoted(phrase)} and occurrence={occurrence} both say which one is meant; "
                             "give one of them.")
        if not isinstance(occurrence, Integral) or not 0 <= occurrence < len(found.spans):
            raise ValueError(f"occurrence={quoted(occurrence)} (counted from 0) does not exist: the target phrase "
                             f"{quoted(phrase)} occurs {len(found.spans)} time(s) in the prompt {quoted(prompt)}.")
        found = dataclasses.replace(found, occurrence=occurrence)
    return _marks([tokenizer], _meant([tokenizer], prompt, found, match))


def mark_targets(
    tokenizers: Sequence[PreTrainedTokenizerBase], prompt: str, targets: Sequence[str], *, match: str = "word",
    overlapping: bool = False,
) -> np.ndarray:
    """The marked tokens of R targets of one prompt.

    Args:
        tokenizers: of all text encoders, whose texts the UNet reads side by side, so that a token is marked if it is
            the phrase's for one of them. (SDXL's second one pads with "!", which makes tokens of their own of "!!!".)
        prompt, match: see `target_tokens`.
        targets: phrases. If one is given as often as it occurs, the n-th one given is the n-th that occurs.
        overlapping: whether two masks may cover the same place. If not, each position belongs to one target, and a
            target without a token of its own would get none.
    Returns:
        int32 [R, T] of 0 and 1.
    Raises:
        ValueError: as `target_tokens`, and for targets of which one would have an empty mask.
    """
    found = [_find(prompt, target, match) for target in targets]
    meant = [_meant(tokenizers, prompt, one, match) for one in found]
    whole = [one.spans if one.occurrence is None else None for one in found]  # equal for equal phrases, however written
    for i, (target, tokens) in enumerate(zip(targets, list(meant), strict=True)):
        count = 1 if whole[i] is None else whole.count(whole[i])
        if count == 1:
            continue
        if count == len(tokens):
            meant[i] = [tokens[whole[:i].count(whole[i])]]
        elif not overlapping:
            advice = (f"let each target name one of them, such as {quoted(target + '#1')}" if len(tokens) > count else
                      "give other words for each subject, or let the prompt hold these as often")
            raise ValueError(f"The target {quoted(target)} is given {count} times, but occurs {_times(len(tokens))} in "
                             f"what is read of the prompt {quoted(prompt)}, so a mask would be empty; {advice}.")
    marks = np.stack([_marks(tokenizers, tokens) for tokens in meant])
    if not overlapping:
        _check_apart(prompt, targets, marks)
    return marks


def target_phrase(prompt: str, target: str, *, match: str = "word") -> str:
    """The words of a target, without the number that says which of them is meant. Raises as `target_tokens`."""
    return _find(prompt, target, match).phrase


def phrase_spans(prompt: str, phrase: str, *, match: str = "word") -> list[Span]:
    """Where the phrase stands in the prompt; `match` as of `target_tokens`."""
    return word_spans(prompt, phrase) if match == "word" else _substring_spans(prompt, phrase)


def _find(prompt: str, target: str, match: str) -> _Found:
    """Raises ValueError for a target that is no text, is empty or does not occur."""
    check_choice("match", match, _MATCHES)
    check_text("prompt", prompt)
    check_text("target phrase", target)
    if not folded(target):
        raise ValueError("The target phrase is empty; give the words of the prompt that name the subject.")
    if spans := phrase_spans(prompt, target, match=match):
        return _Found(target, tuple(spans), None)
    numbered = _NUMBERED.fullmatch(target)
    if numbered is None or not folded(numbered[1]):
        raise ValueError(_absent(prompt, target))
    phrase, number = numbered[1], int(numbered[2])
    if not (spans := phrase_spans(prompt, phrase, match=match)):
        raise ValueError(_absent(prompt, phrase))
    if not 1 <= number <= len(spans):
        raise ValueError(f"The target {quoted(target)} does not exist: {quoted(phrase)} occurs {_times(len(spans))} in "
                         f"the prompt {quoted(prompt)}, and occurrences are counted from 1.")
    return _Found(phrase, tuple(spans), number - 1)


def _meant(tokenizers, prompt: str, found: _Found, match: str) -> list[list[int]]:
    """The tokens of each occurrence that is meant, of all tokenizers together, without what is cut off.

    Raises ValueError if nothing is left.
    """
    spans = found.spans if found.occurrence is None else [found.spans[found.occurrence]]
    kept: list[set[int]] = [set() for _ in spans]
    for tokenizer in tokenizers:
        last = max_length(tokenizer) - 1  # the place of the end of text
        place = (_overlapping_tokens if match == "word" else _counted_tokens)(tokenizer, prompt)
        for tokens, span in zip(kept, spans, strict=True):
            if not (here := place(span)):
                advice = ('match="released" finds no token of its own; use match="word".' if match == "released" else
                          "it has no token of its own; name the whole word.")
                raise ValueError(f"The target phrase {quoted(found.phrase)} stands inside a word of the prompt "
                                 f"{quoted(prompt)}, where {advice}")
            if here[-1] >= last:
                break  # and so are all later ones
            tokens.update(here)
    if not any(kept):
        raise ValueError(f"The target phrase {quoted(found.phrase)} is cut off: the prompt {quoted(prompt)} exceeds "
                         f"the {max_length(tokenizers[0])} tokens of the text encoder; shorten it or put the phrase "
                         "earlier.")
    return [sorted(tokens) for tokens in kept if tokens]


def _marks(tokenizers, places: Sequence[Sequence[int]]) -> np.ndarray:
    marks = np.zeros(max(map(max_length, tokenizers)), np.int32)
    for tokens in places:
        marks[tokens] = 1
    return marks


def _check_apart(prompt: str, targets: Sequence[str], marks: np.ndarray) -> None:
    """Raises ValueError if all tokens of a target are another one's too, whose map is then nowhere the weaker one."""
    for i, inner in enumerate(marks):
        for j, outer in enumerate(marks):
            if i != j and not (inner & ~outer).any():
                raise ValueError(
                    f"All words of the target {quoted(targets[i])} in the prompt {quoted(prompt)} are those of the "
                    f"target {quoted(targets[j])} too, so its mask would be empty; give each subject words of its own.")


def _absent(prompt: str, phrase: str) -> str:
    words = words_of(prompt)
    count, searched = len(phrase.split()), words[:_SEARCHED_WORDS]
    groups = {" ".join(searched[i : i + count])[:_SHOWN_LETTERS] for i in range(len(searched) - count + 1)} - {phrase}
    folded = {group.casefold(): group for group in sorted(groups)}
    near = difflib.get_close_matches(phrase[:_SHOWN_LETTERS].casefold(), folded, n=1)
    suggestion = f"; did you mean {folded[near[0]]!r}?" if near else "."
    listed = visible(", ".join(word if len(word) <= _SHOWN_LETTERS else f"{word[:_SHOWN_LETTERS]}…"
                               for word in words[:_SHOWN_WORDS])) or "none"
    more = ", …" if len(words) > _SHOWN_WORDS else ""
    return (f"The target phrase {quoted(phrase)} does not occur in the prompt {quoted(prompt)} (its words: "
            f"{listed}{more}){suggestion}")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _substring_spans(prompt: str, phrase: str) -> list[Span]:
    spans, start = [], prompt.find(phrase)
    while start >= 0:
        spans.append((start, start + len(phrase)))
        start = prompt.find(phrase, start + 1)
    return spans


def _overlapping_tokens(tokenizer, prompt: str):
    """Span → the tokens that overlap it."""
    offsets = np.asarray(token_offsets(tokenizer, prompt)).reshape(-1, 2)
    return lambda span: np.flatnonzero((offsets[:, 0] < span[1]) & (offsets[:, 1] > span[0])).tolist()


def _counted_tokens(tokenizer, prompt: str):
    """Span → the tokens between the counts of the text before it and of the text up to its end."""
    def count(position: int) -> int:
        return len(token_offsets(tokenizer, prompt[:position])) - 1

    return lambda span: list(range(count(span[0]), count(span[1])))
