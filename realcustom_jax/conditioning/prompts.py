"""Prompts to tokens, and a phrase of the prompt to the tokens that stand for it.

RealCustom++ names the subject by *real words* of the prompt ("a **toy** in the jungle"); their tokens select
the cross-attention maps of which the mask is made.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from realcustom_jax.errors import check_choice

_START, _END = "<|startoftext|>", "<|endoftext|>"


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str], *, allow_empty: bool = False
) -> np.ndarray:
    """Token ids of prompts, padded to the text encoder's length; a longer prompt is cut, with a warning.

    Args:
        tokenizer: a CLIP tokenizer with offsets; T is its `model_max_length`.
        prompts: one prompt or B of them.
        allow_empty: for the unconditional text of guidance and of condition dropout.
    Returns:
        int32 [B, T].
    Raises:
        ValueError: for an empty prompt, unless `allow_empty`.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    length = _max_length(tokenizer)
    for prompt in prompts:
        if not prompt.strip() and not allow_empty:
            raise ValueError("The prompt is empty; describe the picture in a few words.")
        offsets = _offsets(tokenizer, prompt)
        if len(offsets) > length:
            cut = prompt[offsets[length - 1][0]:]
            warnings.warn(f"The prompt exceeds {length} tokens; its end is ignored: {cut!r}.", stacklevel=2)
    encoded = tokenizer(prompts, padding="max_length", truncation=True, max_length=length)
    return np.asarray(encoded["input_ids"], np.int32)


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
        prompt: the text, as given to `encode_prompt`.
        phrase: one or more words of it.
        occurrence: zero-based; None marks every occurrence.
        match: "word": case-insensitive, on word boundaries, the tokens that overlap the phrase's characters;
            "released": case-sensitive substring, placed by counting the tokens of the text before and up to
            its end (`find_phrase_positions_in_text` of the released pipeline).
    Returns:
        int32 [T] of 0 and 1.
    Raises:
        ValueError: if the phrase is empty, does not occur (so often), or is cut off with the prompt's end.
    """
    check_choice("match", match, ("word", "released"))
    length = _max_length(tokenizer)
    if not phrase.strip():
        raise ValueError("The target phrase is empty; give the words of the prompt that name the subject.")
    spans = word_spans(prompt, phrase) if match == "word" else _substring_spans(prompt, phrase)
    if not spans:
        words = ", ".join(re.findall(r"[\w'’-]+", prompt)) or "none"
        raise ValueError(
            f"The target phrase {phrase!r} does not occur in the prompt {prompt!r} (its words: {words}).")
    if occurrence is not None:
        if not 0 <= occurrence < len(spans):
            raise ValueError(f"occurrence={occurrence} (counted from 0) does not exist: the target phrase "
                             f"{phrase!r} occurs {len(spans)} time(s) in the prompt {prompt!r}.")
        spans = [spans[occurrence]]

    mask = np.zeros(length, np.int32)
    for span in spans:
        tokens = (_overlapping_tokens if match == "word" else _counted_tokens)(tokenizer, prompt, span)
        if not tokens:
            raise ValueError(f"The target phrase {phrase!r} stands inside a word of the prompt {prompt!r}, "
                             'where match="released" finds no token of its own; use match="word".')
        if tokens[-1] >= length - 1:  # the last place is the end of text
            raise ValueError(f"The target phrase {phrase!r} is cut off: the prompt {prompt!r} exceeds the "
                             f"{length} tokens of the text encoder; shorten it or put the phrase earlier.")
        mask[tokens] = 1
    return mask


def build_tokenizer(words: Iterable[str], *, max_length: int) -> CLIPTokenizer:
    """A CLIP byte-level BPE tokenizer that knows each of `words` as one token; other words fall into bytes.

    Ids as in CLIP: bytes, bytes at a word's end, merges, start of text, end of text (also the padding).

    Args:
        words: lower-case words; case is folded. Their order fixes the ids.
        max_length: of an encoded prompt, start and end included.
    Returns:
        A tokenizer whose `save_pretrained` folder `CLIPTokenizer.from_pretrained` reads.
    Raises:
        ValueError: for a word that CLIP splits before the merges, such as "t-shirt" or "r2d2".
    """
    words = [word.lower() for word in words]
    merges = _merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), _START, _END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    if split := [word for word in words if len(tokenizer.tokenize(word)) != 1]:
        raise ValueError(f"CLIP's tokenizer splits {split[0]!r}; words of letters only are expected.")
    return tokenizer


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges, in order of precedence, that make one token of each word.

    A word gets new merges only for what the earlier ones leave in pieces. Being later, they come into play
    only where no earlier merge applies, so that the earlier words stay whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    for word in words:
        letters = "".join(piece for piece, _ in to_bytes.pre_tokenize_str(word))
        pieces = _merged([*letters[:-1], letters[-1:] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _merged(pieces, ranks)
    return list(ranks)


def _merged(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while candidates := [i for i, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        i = min(candidates, key=lambda i: ranks[pieces[i], pieces[i + 1]])
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2:]]
    return pieces


def word_spans(prompt: str, phrase: str) -> list[tuple[int, int]]:
    """Where the phrase stands in the prompt as whole words, in any case and with any spaces between them."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    return [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE)]


def _substring_spans(prompt: str, phrase: str) -> list[tuple[int, int]]:
    starts = re.finditer(f"(?={re.escape(phrase)})", prompt)
    return [(match.start(), match.start() + len(phrase)) for match in starts]


def _overlapping_tokens(tokenizer, prompt: str, span: tuple[int, int]) -> list[int]:
    start, end = span
    return [i for i, (first, last) in enumerate(_offsets(tokenizer, prompt)) if first < end and last > start]


def _counted_tokens(tokenizer, prompt: str, span: tuple[int, int]) -> list[int]:
    before, through = (len(_offsets(tokenizer, prompt[:position])) - 1 for position in span)
    return list(range(before, through))


def _offsets(tokenizer, text: str) -> list[tuple[int, int]]:
    """Character spans of all tokens, start and end of text included, before any truncation."""
    return tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]


def _max_length(tokenizer) -> int:
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer does.")
    if tokenizer.model_max_length > 10**6:
        raise ValueError("The tokenizer has no model_max_length; set it to the text encoder's (CLIP: 77).")
    return tokenizer.model_max_length
