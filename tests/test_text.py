"""Prompts, phrases and the miniature's tokenizer."""

import numpy as np
import pytest
from transformers import CLIPTokenizer

import realcustom_jax as rc
from realcustom_jax.conditioning.prompts import build_tokenizer, encode_prompt

WORDS = ("a an and now snow no on one in the dog dogs cat beach beaches toy jungle jungles café "
         "elephant red n now").split()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS, max_length=16)


def marked(tokenizer, prompt, phrase, **options):
    """The marked tokens, as text."""
    mask = rc.target_tokens(tokenizer, prompt, phrase, **options)
    assert mask.shape == (16,) and set(np.unique(mask)) <= {0, 1}
    ids = encode_prompt(tokenizer, prompt)[0]
    return [token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids[mask == 1])]


def test_every_word_is_one_token_and_others_fall_into_letters(tokenizer):
    for word in WORDS:
        (token,) = tokenizer.tokenize(word)
        assert tokenizer.convert_tokens_to_ids(token) != tokenizer.unk_token_id
    assert tokenizer.tokenize("zoé!") == ["z", "o", "Ã", "©</w>", "!</w>"]
    ids = encode_prompt(tokenizer, "zoé 7 日!")
    assert (ids != tokenizer.unk_token_id).sum() == 1 + 4 + 1 + 3 + 1


def test_saved_tokenizer_is_read_as_a_clip_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    prompt = "A dog on the beach, zoé"
    np.testing.assert_array_equal(encode_prompt(loaded, prompt), encode_prompt(tokenizer, prompt))
    assert loaded.model_max_length == 16
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<|startoftext|>", "<|endoftext|>", "<|endoftext|>")


def test_ids_depend_on_the_words_alone_and_end_of_text_is_the_largest(tokenizer):
    assert build_tokenizer(WORDS, max_length=16).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.parametrize("word", ["t-shirt", "r2d2", "night city"])
def test_words_that_clip_splits_are_refused(word):
    with pytest.raises(ValueError, match=word):
        build_tokenizer(["dog", word], max_length=8)


def test_prompts_are_padded_and_folded(tokenizer):
    ids = encode_prompt(tokenizer, ["A DOG", "the red cat"])
    assert ids.shape == (2, 16) and ids.dtype == np.int32
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "a dog"
    assert ids[0, 0] == tokenizer.bos_token_id
    assert (ids[0, 3:] == tokenizer.eos_token_id).all()


def test_a_long_prompt_warns_with_what_is_cut(tokenizer):
    prompt = "a dog " * 7 + "on the Beach"
    with pytest.warns(UserWarning, match="'on the Beach'"):
        ids = encode_prompt(tokenizer, prompt)
    assert ids.shape == (1, 16)
    assert ids[0, -1] == tokenizer.eos_token_id


@pytest.mark.filterwarnings("error")
def test_a_prompt_that_just_fits_does_not_warn(tokenizer):
    assert (encode_prompt(tokenizer, "a dog " * 7)[0, 1:15] != tokenizer.eos_token_id).all()


def test_an_empty_prompt_must_be_meant(tokenizer):
    with pytest.raises(ValueError, match="empty"):
        encode_prompt(tokenizer, ["a dog", " "])
    assert encode_prompt(tokenizer, "", allow_empty=True)[0, 1] == tokenizer.eos_token_id


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
    for occurrence in (2, -1):
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


def test_a_tokenizer_without_length_is_refused(tokenizer):
    with pytest.raises(ValueError, match="model_max_length"):
        rc.target_tokens(build_tokenizer(["dog"], max_length=10**7), "dog", "dog")
