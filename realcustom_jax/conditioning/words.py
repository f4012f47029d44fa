"""Words in a text: where a phrase stands, as a reader would find it. Neither JAX nor a tokenizer is needed.

Two spellings of a word are the same phrase where a reader sees none or little difference: composed and decomposed
letters (Unicode's canonical caseless match, D145), upper and lower case, typographic and plain apostrophes and hyphens,
spaces of any kind, and characters that cannot be seen. Offsets always count the characters of the text as it was given.
"""

import dataclasses
import functools
import unicodedata

import regex

_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}\p{Cc}]+")
# Written without spaces between words, so that a word has no boundaries that could be seen.
_UNSPACED = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]")
_GRAPHEMES = regex.compile(r"\s|\X")  # a space is one alone: an accent after it is a letter to the tokenizer
_WORDS = regex.compile(r"[[\w'’\-]--\p{Default_Ignorable_Code_Point}]+", regex.VERSION1)
_ALIKE = str.maketrans(dict.fromkeys("’‘‛ʼ′＇`´", "'") | dict.fromkeys("‐‑‒–−﹣－", "-") | dict.fromkeys("“”„‟＂", '"'))

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Letters:
    """A text as it is compared: folded, without white space and without what cannot be seen.

    For each letter, `spans` says which characters of the text it comes from (a whole grapheme), and `gaps` what stands
    before it: nothing, something that cannot be seen, or white space.
    """

    folded: str
    spans: list[Span]
    gaps: list[int]


_NOTHING, _UNSEEN, _SPACE = range(3)


def word_spans(prompt: str, phrase: str) -> list[Span]:
    """Where the phrase stands in the prompt, whole graphemes, on word boundaries where its script has them."""
    text, sought = _letters(prompt), _letters(phrase)
    count, spans = len(sought.folded), []
    start = text.folded.find(sought.folded) if count else -1
    while start >= 0:
        end = start + count
        # A phrase may end neither inside a grapheme (e of é) nor inside a word (cat of concatenate).
        ends = _is_boundary(prompt, text, start) and _is_boundary(prompt, text, end)
        if ends and all(abs(text.gaps[start + i] - sought.gaps[i]) < _SPACE for i in range(1, count)):
            spans.append((text.spans[start][0], text.spans[end - 1][1]))
            start = text.folded.find(sought.folded, end)
        else:
            start = text.folded.find(sought.folded, start + 1)
    return spans


def words_of(text: str) -> list[str]:
    """The different words of a text, in their order."""
    return list(dict.fromkeys(_WORDS.findall(text)))


def word_places(text: str) -> list[Span]:
    """Where the words of a text stand, in their order; in a script without spaces, its characters."""
    places = []
    for word in _WORDS.finditer(text):
        start, letters = word.start(), list(_GRAPHEMES.finditer(text, *word.span()))
        for letter in letters:
            if _UNSPACED.match(letter[0]):
                places += [(start, letter.start())] * (start < letter.start()) + [letter.span()]
                start = letter.end()
        places += [(start, word.end())] * (start < word.end())
    return places


def same_words(one: str, other: str) -> bool:
    """Whether a target that is written in one way is found where the prompt has the other."""
    return folded(one) == folded(other)


def folded(text: str) -> str:
    """The letters of a text as they are compared: equal for two spellings of the same phrase, empty for none."""
    return _letters(text).folded


def _letters(text: str) -> _Letters:
    folded, spans, gaps, gap = [], [], [], _NOTHING
    for grapheme in _GRAPHEMES.finditer(text):
        if grapheme[0].isspace():
            gap = _SPACE
        elif letters := _fold(grapheme[0]):
            folded.append(letters)
            spans += [grapheme.span()] * len(letters)
            gaps += [gap, *[_NOTHING] * (len(letters) - 1)]
            gap = _NOTHING
        else:
            gap = max(gap, _UNSEEN)
    return _Letters("".join(folded), spans, gaps)


@functools.lru_cache(maxsize=4096)
def _fold(grapheme: str) -> str:
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", grapheme).casefold())
    # Turkish has an i with and one without a dot; both are the i of a word that is written in capitals elsewhere.
    return _INVISIBLE.sub("", folded).replace("i\u0307", "i").replace("ı", "i").translate(_ALIKE)


def _is_boundary(prompt: str, text: _Letters, i: int) -> bool:
    """Whether a phrase may begin or end before the letter i."""
    if i in (0, len(text.folded)):
        return True
    before, after = text.spans[i - 1], text.spans[i]
    if before == after:
        return False
    return text.gaps[i] != _NOTHING or not (_joins(prompt[before[0]]) and _joins(prompt[after[0]]))


@functools.lru_cache(maxsize=4096)
def _joins(character: str) -> bool:
    """Whether it makes one word with a neighbour that does, too."""
    plain = character.translate(_ALIKE)
    return (plain.isalnum() or plain == "_") and not _UNSPACED.match(plain)
