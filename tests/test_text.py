"""Prompts and the miniature's tokenizer; where phrases stand in a prompt is in test_targets.py."""

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


def test_a_message_names_what_is_cut_or_empty(tokenizer):
    with pytest.warns(UserWarning, match="^The negative prompt exceeds 16 tokens; its end is ignored: 'red red '"):
        encode_prompt(tokenizer, "red " * 16, allow_empty=True, what="negative prompt")
    with pytest.raises(ValueError, match="The negative prompt is empty"):
        encode_prompt(tokenizer, " ", what="negative prompt")
    with pytest.warns(UserWarning) as said:
        assert encode_prompt(tokenizer, "a dog " * 10_000).shape == (1, 16)
    assert len(str(said[0].message)) < 300


@pytest.mark.parametrize("prompt, message", [
    ("a dog \ud83d", r"prompt holds half of a character, \\ud83d, in 'a dog \\ud83d'"),
    ("\ude00 dog", r"half of a character, \\ude00"), ("caf\udce9", "the text is not UTF-8"),
    (None, "The prompt is None; expected a text"), (7, "is 7"), (b"a dog", "is 97; expected"),
    (["a dog", None], "None"),
])
def test_what_no_tokenizer_takes_is_one_sentence(tokenizer, prompt, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt(tokenizer, prompt, allow_empty=True)


@pytest.mark.parametrize("prompt", ["a dog\0", "\ufeffa dog", "\u202ea dog\u202c", "a\x07 dog\x1b[31m", "a dog 🐶"])
def test_odd_characters_are_tokens_like_others(tokenizer, prompt):
    assert tokenizer.convert_tokens_to_ids("dog</w>") in encode_prompt(tokenizer, prompt)[0]


def test_a_tokenizer_without_length_is_refused(tokenizer):
    with pytest.raises(ValueError, match="model_max_length"):
        rc.target_tokens(build_tokenizer(["dog"], max_length=10**7), "dog", "dog")
