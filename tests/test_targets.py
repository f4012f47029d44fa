"""Where a phrase stands in a prompt, which tokens stand for it, and whose they are where several subjects share one."""

import json
import unicodedata

import numpy as np
import pytest
from transformers import CLIPTokenizer

import realcustom_jax as rc
from realcustom_jax.conditioning.prompts import build_tokenizer, encode_prompt
from realcustom_jax.conditioning.targets import mark_targets, target_phrase
from realcustom_jax.conditioning.words import word_spans

WORDS = ("a an and now snow no on one in the dog dogs cat beach beaches toy jungle jungles café "
         "elephant red n now").split()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS, max_length=16)


@pytest.fixture(scope="module")
def two_tokenizers():
    """As SDXL has them: the second one pads with "!", so that each one in a prompt is a token of its own there."""
    first = build_tokenizer([*WORDS, "!!!", "wow"], max_length=16)
    rules = json.loads(first.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in rules["merges"]]
    return first, CLIPTokenizer(vocab=rules["vocab"], merges=merges, model_max_length=16, pad_token="!")


def marked(tokenizer, prompt, phrase, **options):
    """The marked tokens, as text."""
    mask = rc.target_tokens(tokenizer, prompt, phrase, **options)
    assert mask.shape == (16,) and set(np.unique(mask)) <= {0, 1}
    ids = encode_prompt(tokenizer, prompt)[0]
    return [token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids[mask == 1])]


@pytest.mark.parametrize("prompt, phrase, expected", [
    ("a dog on the beach", "dog", ["dog"]),
    ("A Dog on the beach", "DOG", ["dog"]),
    ("a dog on the beach", "a", ["a"]),
    ("dogs and a dog", "dog", ["dog"]),
    ("a dog, the dog!", "dog", ["dog", "dog"]),
    ("a red  toy\nin the jungle", "red toy", ["red", "toy"]),
    ("the café", "café", ["café".encode().decode("latin-1")]),
    ("a zebu", "zebu", list("zebu")),
])
def test_words_are_found_on_their_boundaries(tokenizer, prompt, phrase, expected):
    assert marked(tokenizer, prompt, phrase) == expected


def test_one_occurrence_can_be_named(tokenizer):
    prompt = "a dog and the dog"
    np.testing.assert_array_equal(np.flatnonzero(rc.target_tokens(tokenizer, prompt, "dog")), [2, 5])
    np.testing.assert_array_equal(np.flatnonzero(rc.target_tokens(tokenizer, prompt, "dog", occurrence=1)), [5])
    for occurrence in (2, -1, "1"):
        with pytest.raises(ValueError, match=r"2 time\(s\)"):
            rc.target_tokens(tokenizer, prompt, "dog", occurrence=occurrence)


def test_released_matching_is_a_substring_placed_by_token_counts(tokenizer):
    assert marked(tokenizer, "a dog on the beach", "dog", match="released") == ["dog"]
    # "dogs" is one token; the substring "dog" of it has the same count.
    assert marked(tokenizer, "dogs and a dog", "dog", match="released") == ["dogs", "dog"]
    with pytest.raises(ValueError, match="does not occur"):
        rc.target_tokens(tokenizer, "a dog", "Dog", match="released")
    with pytest.raises(ValueError, match="inside a word"):
        rc.target_tokens(tokenizer, "a beach", "each", match="released")
    with pytest.raises(ValueError, match="match"):
        rc.target_tokens(tokenizer, "a dog", "dog", match="words")


def test_a_phrase_that_does_not_occur_is_an_error_that_names_both(tokenizer):
    with pytest.raises(ValueError, match=r"'cat'.*a, dog, on, the, beach"):
        rc.target_tokens(tokenizer, "a dog on the beach", "cat")
    with pytest.raises(ValueError, match="empty"):
        rc.target_tokens(tokenizer, "a dog", " ")


@pytest.mark.parametrize("match", ["word", "released"])
def test_a_phrase_that_is_cut_off_is_an_error(tokenizer, match):
    fits = "a dog " * 6 + "a cat"
    assert marked(tokenizer, fits, "cat", match=match) == ["cat"]
    for prompt, phrase in (("a dog " * 7 + "cat", "cat"), ("a dog " * 6 + "the red cat", "red cat")):
        with pytest.raises(ValueError, match="cut off"):
            rc.target_tokens(tokenizer, prompt, phrase, match=match)


# -------------------- one word in several spellings


SPELLINGS = [("café", "café"), ("piñata", "piñata"), ("Zürich", "zürich"), ("강아지", "강아지"), ("ガラス", "ガラス"),
             ("q\u0323\u0307x", "q\u0307\u0323x")]


@pytest.mark.parametrize("word, phrase", SPELLINGS)
def test_composed_and_decomposed_letters_are_one_word_with_the_same_tokens(word, phrase):
    tokenizer = build_tokenizer(["a", "table"], max_length=32)
    expected = None
    for form in ("NFC", "NFD"):
        prompt = unicodedata.normalize(form, f"a {word} table")
        ids = encode_prompt(tokenizer, prompt)[0]
        table, = np.flatnonzero(ids == tokenizer.convert_tokens_to_ids("table</w>"))
        for other in ("NFC", "NFD"):
            marks = rc.target_tokens(tokenizer, prompt, unicodedata.normalize(other, phrase))
            np.testing.assert_array_equal(np.flatnonzero(marks), np.arange(2, table))
        expected = ids if expected is None else expected
        np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("prompt, phrase, found", [
    ("a STRASSE", "straße", "STRASSE"), ("a Straße", "STRAẞE", "Straße"), ("in İstanbul", "istanbul", "İstanbul"),
    ("in ISTANBUL", "ıstanbul", "ISTANBUL"), ("ΣΊΣΥΦΟΣ", "σίσυφος", "ΣΊΣΥΦΟΣ"), ("a ﬁsh", "fish", "ﬁsh"),
    ("the dog’s toy", "dog's", "dog’s"), ("the dog's toy", "dog’s toy", "dog's toy"), ("dogʼs toy", "dog", "dog"),
    ("a t\u2011shirt", "t-shirt", "t\u2011shirt"), ("a\u00a0red\u2003toy", "red toy", "red\u2003toy"),
    ("a red toy", "red\u00a0toy", "red toy"), ("a red\u200btoy", "red toy", "red\u200btoy"),
    ("a red toy", " red\u200b toy\ufeff", "red toy"), ("a\u200bdog", "dog", "dog"), ("a do\u00adg", "dog", "do\u00adg"),
    ("\ufeffdog\0", "\u200fdog", "dog"), ("a ❤️ on", "❤", "❤️"), ("wow!dog🐶", "🐶", "🐶"),
    ("一只狗在海滩上", "狗", "狗"), ("海辺の犬が走る", "犬", "犬"), ("前のネコ", "ネコ", "ネコ"),
    ("หมาและแมวบนหาด", "แมว", "แมว"),
    ("ໝາຢູ່ຫາດຊາຍ", "ຫາດ", "ຫາດ"), ("ឆ្កែនៅលើឆ្នេរ", "លើ", "លើ"), ("一只dog在", "dog", "dog"), ("ခွေးနှင့်", "ခွေး", "ခွေး"),
])
def test_spellings_that_a_reader_takes_for_one_are_found(prompt, phrase, found):
    (start, end), = word_spans(prompt, phrase)
    assert prompt[start:end] == found


@pytest.mark.parametrize("prompt, phrase", [
    ("concatenate", "cat"), ("a café", "cafe"), (unicodedata.normalize("NFD", "a café"), "cafe"), ("dogs", "dog"),
    ("कुत्ता", "कु"), ("강아지가", "강아지"), (unicodedata.normalize("NFD", "한국"), "하"), ("Straße", "Stras"),
    ("redtoy", "red toy"), ("red toy", "redtoy"), ("dog_2", "dog"), ("สี", "ส"), ("a dog", "\u200b"), ("", "dog"),
])
def test_a_part_of_a_word_or_of_a_letter_is_not_found(prompt, phrase):
    assert word_spans(prompt, phrase) == []


def test_an_absent_phrase_is_told_with_the_nearest_word_and_not_with_all_words(tokenizer):
    def said(prompt, phrase, **options):
        with pytest.raises(ValueError) as error:
            rc.target_tokens(tokenizer, prompt, phrase, **options)
        return str(error.value)

    assert said("a dog on the beach", "dgo") == (
        "The target phrase 'dgo' does not occur in the prompt 'a dog on the beach' (its words: a, dog, on, the, beach)"
        "; did you mean 'dog'?")
    assert said("a Red dog", "red dgo").endswith("did you mean 'Red dog'?")
    assert said("a dog", "Dog", match="released").endswith("did you mean 'dog'?")
    assert "did you mean" not in said("a dog", "zeppelin") and "words: none" in said("…", "dog")
    long = said(" ".join(f"word{i}" for i in range(100_000)), "x" * 100_000)
    assert "word19, …)" in long and "word20" not in long.partition("its words")[2] and len(long) < 1000
    assert len(said("a" * 100_000, "dog")) < 500


@pytest.mark.parametrize("prompt, phrase, message", [
    ("a dog", "\u200b", "target phrase is empty"), ("a dog", "\ud83d", "target phrase holds half of a character"),
    ("a \ud83d dog", "dog", "The prompt holds half of a character"), ("a dog", None, "target phrase is None"),
    (None, "dog", "The prompt is None"),
])
def test_what_is_no_phrase_is_one_sentence(tokenizer, prompt, phrase, message):
    for match in ("word", "released"):
        with pytest.raises(ValueError, match=message):
            rc.target_tokens(tokenizer, prompt, phrase, match=match)


# -------------------- several occurrences


@pytest.mark.parametrize("match", ["word", "released"])
def test_an_occurrence_beyond_the_last_token_is_left_out(tokenizer, match):
    prompt = "a dog and " + "red " * 12 + "dog dog"
    assert np.flatnonzero(rc.target_tokens(tokenizer, prompt, "dog", match=match)).tolist() == [2]
    assert np.flatnonzero(rc.target_tokens(tokenizer, prompt, "dog", match=match, occurrence=0)).tolist() == [2]
    for cut in ({"phrase": "dog", "occurrence": 1}, {"phrase": "dog#3"}):
        with pytest.raises(ValueError, match="'dog' is cut off"):
            rc.target_tokens(tokenizer, prompt, match=match, **cut)


def test_a_number_names_an_occurrence_unless_the_prompt_holds_it(tokenizer):
    def at(prompt, phrase, **options):
        return np.flatnonzero(rc.target_tokens(tokenizer, prompt, phrase, **options)).tolist()

    prompt = "a dog and the dog"
    assert at(prompt, "dog#1") == [2] and at(prompt, "Dog#2 ") == [5] and at(prompt, "the dog#1") == [4, 5]
    assert at("a dog#2 and a dog", "dog#2") == [2, 3, 4]
    assert at(prompt, "dog#2", match="released") == [5]
    for phrase, message in (("dog#3", "'dog' occurs 2 times"), ("dog#0", "counted from 1"), ("cat#1", "'cat' does not"),
                            ("#1", "phrase '#1' does not occur"), ("dog#" + "9" * 5000, "does not occur")):
        with pytest.raises(ValueError, match=message):
            at(prompt, phrase)
    with pytest.raises(ValueError, match="both say which one"):
        at(prompt, "dog#2", occurrence=0)
    assert target_phrase(prompt, "dog#2") == "dog" and target_phrase("a dog#2", "dog#2") == "dog#2"


@pytest.mark.parametrize("prompt, targets, expected", [
    ("a dog and a dog", ["dog", "dog"], [[2], [5]]), ("a dog and a Dog", ["DOG", "dog"], [[2], [5]]),
    ("a dog and a cat", ["cat", "dog"], [[5], [2]]), ("a dog and a dog", ["dog#2", "dog#1"], [[5], [2]]),
    ("a dog a cat a dog", ["dog", "cat", "dog"], [[2], [4], [6]]), ("a dog and a dog", ["dog"], [[2, 5]]),
    ("dog dog dog", ["dog#3", "dog#1"], [[3], [1]]), ("a dog and a red dog", ["dog", "red dog"], [[2, 6], [5, 6]]),
    ("dog and dog " + "a " * 20 + "dog", ["dog", "dog"], [[1], [3]]),
])
def test_the_nth_target_of_a_phrase_is_its_nth_occurrence(tokenizer, prompt, targets, expected):
    for match in ("word", "released")[: 2 if "DOG" not in targets else 1]:
        marks = mark_targets([tokenizer], prompt, targets, match=match)
        assert marks.dtype == np.int32 and marks.shape == (len(targets), 16)
        assert [np.flatnonzero(row).tolist() for row in marks] == expected


@pytest.mark.parametrize("prompt, targets, message", [
    ("a dog", ["dog", "dog"], "'dog' is given 2 times, but occurs once .* other words for each subject"),
    ("dog dog dog", ["dog", "dog"], "is given 2 times, but occurs 3 times .* such as 'dog#1'"),
    ("dog dog", ["dog"] * 3, "given 3 times, but occurs 2 times"),
    ("a dog " + "a " * 20 + "dog", ["dog", "dog"], "given 2 times, but occurs once in what is read of"),
    ("a red dog", ["dog", "red dog"], "All words of the target 'dog' .* are those of the target 'red dog' too"),
    ("dog dog", ["dog", "dog#2"], "All words of the target 'dog#2'"), ("dog dog", ["dog#1", "dog#1"], "All words"),
])
def test_targets_that_would_leave_a_mask_empty_are_one_sentence(tokenizer, prompt, targets, message):
    with pytest.raises(ValueError, match=message):
        mark_targets([tokenizer], prompt, targets)
    assert mark_targets([tokenizer], prompt, targets, overlapping=True).any(1).all()


# -------------------- two tokenizers


def test_where_two_tokenizers_disagree_the_tokens_of_both_are_marked(two_tokenizers):
    prompt = "wow!!! a dog on the beach"
    places = [np.flatnonzero(encode_prompt(t, prompt)[0] == t.convert_tokens_to_ids("dog</w>")) for t in two_tokenizers]
    np.testing.assert_array_equal(places, [[4], [6]])
    assert np.flatnonzero(mark_targets(two_tokenizers, prompt, ["dog"])).tolist() == [4, 6]
    assert np.flatnonzero(mark_targets(two_tokenizers, "a dog", ["dog"])).tolist() == [2]
    # The second tokenizer's text ends before the dog, the first one's does not.
    assert np.flatnonzero(mark_targets(two_tokenizers, "!!! " * 5 + "dog", ["dog"])).tolist() == [6]
    with pytest.raises(ValueError, match="cut off"):
        mark_targets(two_tokenizers, "!!! " * 14 + "dog", ["dog"])
