"""Prompts to tokens, and the tokenizer of a small world of words."""

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from realcustom_jax.errors import check_text, quoted

LONGEST_PROMPT = 10**6
"""Tokens; what a tokenizer says beyond that is transformers' way to say nothing."""

_START, _END = "<|startoftext|>", "<|endoftext|>"


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str], *, allow_empty: bool = False, what: str = "prompt"
) -> np.ndarray:
    """Token ids of prompts, padded to the text encoder's length; a longer prompt is cut, with a warning.

    Args:
        tokenizer: a CLIP tokenizer with offsets; T is its `model_max_length`.
        prompts: one prompt or B of them.
        allow_empty: for the unconditional text of guidance and of condition dropout.
        what: how messages name them, such as "negative prompt".
    Returns:
        int32 [B, T].
    Raises:
        ValueError: for a prompt that is no text, holds halves of characters, or is empty, unless `allow_empty`.
    """
    prompts = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]
    length = max_length(tokenizer)
    for prompt in prompts:
        check_text(what, prompt)
        if not prompt.strip() and not allow_empty:
            raise ValueError(f"The {what} is empty; describe the picture in a few words.")
        offsets = token_offsets(tokenizer, prompt)
        if len(offsets) > length:
            cut = prompt[offsets[length - 1][0]:]
            warnings.warn(f"The {what} exceeds {length} tokens; its end is ignored: {quoted(cut)}.", stacklevel=2)
    encoded = tokenizer(prompts, padding="max_length", truncation=True, max_length=length)
    return np.asarray(encoded["input_ids"], np.int32)


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


def token_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Character spans of all tokens, start and end of text included, before any truncation."""
    return tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]


def max_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of an encoded prompt. Raises ValueError for a tokenizer without it, or without offsets."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer does.")
    if tokenizer.model_max_length > LONGEST_PROMPT:
        raise ValueError("The tokenizer has no model_max_length; set it to the text encoder's (CLIP: 77).")
    return tokenizer.model_max_length
