"""A CLIP tokenizer's folder: read, and refused where an interrupted copy has left it without some of its words.

CLIP's vocabulary is 256 bytes, the same at a word's end, one token for each merge, and the start and the end of text.
A token that no merge makes can therefore never come up, and says that merges are lost.
"""

import json
import string
from pathlib import Path

from transformers import CLIPTokenizer

from realcustom_jax.conditioning.prompts import LONGEST_PROMPT
from realcustom_jax.model_files.kinds import check_is_itself

_WORD_END = "</w>"


def read_tokenizer(folder: Path, positions: int | None) -> CLIPTokenizer:
    """The tokenizer in a folder.

    Args:
        folder: holds tokenizer_config.json, and tokenizer.json or vocab.json with merges.txt.
        positions: how many tokens the text encoder takes, for a file that does not say how many the tokenizer makes;
            None: not known.
    Raises:
        FileNotFoundError, ValueError: a file is missing, cannot be read or is not complete.
    """
    there = {file.name for file in folder.glob("*.*") if file.is_file()}
    words = ("vocab.json", "merges.txt") if "vocab.json" in there else ("tokenizer.json",)
    for name in ("tokenizer_config.json", *(() if "tokenizer.json" in there else words)):
        if name not in there:
            # transformers would make do with a tokenizer that knows no word.
            raise FileNotFoundError(f"The model is not complete: {folder / name} is missing.")
    for name in sorted(there):
        if name.endswith((".json", ".txt")):
            check_is_itself(folder / name)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds for a broken file
        raise ValueError(f"{folder}: the tokenizer cannot be read ({error}).") from None
    _check_complete(tokenizer, folder)
    tokenizer.model_max_length = _length(tokenizer.model_max_length, folder / "tokenizer_config.json", positions)
    return tokenizer


def _length(given, file: Path, positions: int | None) -> int:
    """Tokens of a prompt, as the file says or else as the text encoder takes them."""
    if isinstance(given, (int, float)) and given > LONGEST_PROMPT:  # transformers' value where the file says nothing
        if positions is None:
            raise ValueError(f"{file} lacks model_max_length, the number of tokens that the text encoder takes; add it "
                             "(Stable Diffusion's is 77).")
        return positions
    if type(given) is not int or given < 3:
        raise ValueError(f"{file}: model_max_length is {given!r}; expected a whole number of tokens, at least 3: the "
                         "start of text, a word and the end (Stable Diffusion's is 77).")
    return given


def _check_complete(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Raises ValueError if the vocabulary or the merges were cut."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    files = "tokenizer.json" if (folder / "tokenizer.json").is_file() else "vocab.json or merges.txt"
    problem = f"{folder}: {files} is not complete: {{}}; copy it anew."
    # CLIP's vocabulary ends with these two. transformers adds them anew to one that lacks its end.
    if lost := [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token not in vocabulary]:
        raise ValueError(problem.format(f"the vocabulary of {len(vocabulary)} tokens lacks {lost[0]}"))
    made = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges}
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    lost = [token for token in vocabulary if token not in made and token not in special and not _is_letter(token)]
    # A toy vocabulary that has not even the alphabet lists words without merges, and never was CLIP's.
    if lost and (not merges or all(letter + _WORD_END in vocabulary for letter in string.ascii_lowercase)):
        raise ValueError(problem.format(f"{len(lost)} of the {len(vocabulary)} tokens in the vocabulary, such as "
                                        f"{lost[0]!r}, are made by none of the {len(merges)} merges"))


def _is_letter(token: str) -> bool:
    """Whether it is one byte, written as one letter, inside a word or at its end."""
    return len(token.removesuffix(_WORD_END)) == 1 or token == _WORD_END
