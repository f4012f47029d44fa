"""Any text as prompt and as target: marks that the tokenizer's offsets bear out, or one sentence."""

import functools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from realcustom_jax import batch
from realcustom_jax.conditioning.prompts import build_tokenizer, encode_prompt
from realcustom_jax.conditioning.targets import mark_targets, target_tokens
from realcustom_jax.conditioning.words import word_spans

LENGTH = 24
# What people's texts are made of, and what comes of it on the way: marks, joiners, halved emoji, all kinds of spaces.
PIECES = [
    "dog", "Dog", "red toy", "café", "cafe\u0301", "ß", "ẞ", "İ", "ﬁ", "ʼ", "’", "'s", "狗", "แมว",
    "ガ", "カ\u3099", "각", "\u1100\u1161", "कु", "👨\u200d👩", "🐶", "❤\ufe0f", " ", " ", "  ", "\u00a0", "\u200b",
    "\u00ad", "\ufeff", "\0", "\u202e", "\n", "#2", "!", "!!!", "-", "_", "7", "a", "<|endoftext|>", "\ud83d", "\u0301",
    "\u0f71\u0f72", "\u0344"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
fuzzed = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@functools.cache
def tokenizer():
    return build_tokenizer(["a", "dog", "red", "toy", "café", "s", "!!!"], max_length=LENGTH)


def spans_of_prompt(prompt):
    """Character spans of the tokens that the encoder sees, but for the start and the end of text."""
    offsets = tokenizer()(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [offsets[i] if 0 < i < min(len(offsets), LENGTH) - 1 else (0, 0) for i in range(LENGTH)]


def check(prompt, target, **options):
    """The marks, or the sentence of the only error that may be raised."""
    try:
        marks = target_tokens(tokenizer(), prompt, target, **options)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000 and str(error).isprintable()
        return str(error)
    assert marks.shape == (LENGTH,) and set(marks.tolist()) <= {0, 1} and marks.any()
    return marks


@pytest.mark.filterwarnings("ignore:The prompt exceeds")
@given(texts, texts)
@example("a cafe\u0301", "café")
@example("a dog", "dog#1")
@fuzzed
def test_marks_are_tokens_of_the_phrase_or_there_is_a_sentence(prompt, target):
    marks = check(prompt, target)
    check(prompt, target, match="released")
    if not isinstance(marks, str):
        encode_prompt(tokenizer(), prompt, allow_empty=True)
        found = word_spans(prompt, target) or word_spans(prompt, target.rpartition("#")[0])
        for marked, (first, last) in zip(marks, spans_of_prompt(prompt), strict=True):
            assert not marked or any(first < end and last > start for start, end in found)


@given(texts, texts, texts)
@fuzzed
def test_a_word_of_the_prompt_is_found_in_any_of_its_spellings(before, word, after):
    """What stands alone between spaces is found, however it is written; every token over it is marked."""
    prompt, start = f"{before} {word} {after}", len(before) + 1
    for target in (word, unicodedata.normalize("NFD", word), unicodedata.normalize("NFC", word), f" {word}\u200b"):
        marks = check(prompt, target)
        if isinstance(marks, str):
            assert "empty" in marks or "half of a character" in marks or "cut off" in marks
            continue
        spans = spans_of_prompt(prompt)
        assert any(marks[i] for i, (first, last) in enumerate(spans) if first < start + len(word) and last > start
                   ) or len(word_spans(prompt, target)) > 1


@given(texts, st.lists(texts, min_size=1, max_size=3))
@fuzzed
def test_every_subject_has_tokens_of_its_own_or_there_is_a_sentence(prompt, targets):
    try:
        marks = mark_targets([tokenizer()], prompt, targets)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        for i, row in enumerate(marks):
            assert row.any() and all((row & ~other).any() for j, other in enumerate(marks) if i != j)


# -------------------- batches


def stub(references, prompt, targets, *, negative_prompt="", num_images=1, seed=0, **options):
    """A pipeline that reads its words and pictures as ours does, and paints nothing."""
    ids = encode_prompt(tokenizer(), prompt)
    encode_prompt(tokenizer(), negative_prompt, allow_empty=True, what="negative prompt")
    mark_targets([tokenizer()], prompt, targets)
    for reference in references:
        try:
            Image.open(reference).load()
        except Exception as error:
            raise ValueError(f"The image {reference} cannot be read ({error}).") from None
    if options.get("width", 8) % 8:
        raise ValueError("the width is no multiple of 8")
    made = [Image.fromarray(np.full((8, 8, 3), ids.sum() % 255, np.uint8))] * num_images
    return type("Result", (), {"images": made})


BAD = [
    '{"prompt": "a dog', "[]", "null", "7", '"dog"', '{"prompt": "a dog"}', b'{"prompt": "caf\xe9"}', b"\xff\xfe\x00",
    "[" * 9000, {"prompt": 7}, {"prompt": ["a dog"]}, {"prompt": ""}, {"prompt": "a dog \ud83d"}, {"target": "\ud83d"},
    {"negative_prompt": "\udc00"}, {"target": "cat"}, {"target": ["dog", "dog"]}, {"target": {}}, {"image": "gone.png"},
    {"image": "broken.png"}, {"image": "\0.png"}, {"image": "x" * 5000}, {"image": "."}, {"seed": -1}, {"seed": 2**32},
    {"seed": float("nan")}, {"seed": 1.5}, {"width": float("inf")}, {"width": 9}, {"width": True}, {"num_images": 0},
    {"num_images": 10**12}, {"steps": 3}, {"Prompt": "a dog"}, {"name": "../up"}, {"name": "\ud83d"},
    {"name": "x" * 300}, {"prompt": "a " * 20_000 + "dog"}, {"negative_prompt": None}]
GOOD = [
    {}, {"prompt": "a cafe\u0301", "target": "café"}, {"seed": 2**32 - 1}, {"num_images": 2}, {"prompt": "狗dog\0"},
    {"width": 16}, {"prompt": "dog and dog", "target": "dog#2"}, {"negative_prompt": "a\u202e"}, {"target": ["dog"]},
    {"image": ["dog.png"]}, {"prompt": "dog dog", "target": ["dog", "dog"]}, {"prompt": "\ufeffdog"}]


@pytest.mark.filterwarnings("ignore:The prompt exceeds")
@given(st.randoms(use_true_random=False), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@settings(fuzzed, max_examples=4)
def test_a_batch_of_which_half_is_broken_makes_the_other_half_once(tmp_path_factory, random, ends, mark):
    folder = tmp_path_factory.mktemp("batch")
    Image.new("RGB", (4, 4)).save(folder / "dog.png")
    (folder / "broken.png").write_bytes((folder / "dog.png").read_bytes()[:30])
    rows = [(bad, False) for bad in random.sample(BAD, 25)] + [(random.choice(GOOD), True) for _ in range(25)]
    random.shuffle(rows)
    base = {"prompt": "a dog", "image": "dog.png", "target": "dog"}
    lines = [line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else
             json.dumps({**base, **line}).encode() for line, _ in rows]
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" * mark + ends.join(lines))
    good = [f"{i:04d}" for i, (_, is_good) in enumerate(rows, 1) if is_good]
    calls = []

    def pipeline(*arguments, **options):
        calls.append(stub(*arguments, **options))
        return calls[-1]

    for made, skipped in ((25, 0), (0, 25)):
        told = []
        calls.clear()
        summary = batch.run_batch(pipeline, batch.read_rows(folder / "rows.jsonl"), folder / "out", options={},
                                  report=told.append)
        assert summary == batch.Summary(made=made, skipped=skipped, failed=25) and len(calls) == made
        assert len(told) == 25 and all(line.isprintable() and 20 < len(line) < 1200 for line in told)
        assert {file.stem for file in (folder / "out").glob("*.json")} == set(good)
        for name in good:
            record = json.loads((folder / "out" / f"{name}.json").read_bytes())
            assert all((folder / "out" / file).is_file() for file in record["files"])
