"""The readers of benchmarks: synthetic copies in the published layouts, with the cases that the real lists have."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.conditioning.targets import phrase_spans, target_phrase
from realcustom_jax.evaluation.benchmarks import BENCHMARKS, read_benchmark
from realcustom_jax.evaluation.benchmarks.dreambench import UNO_REFERENCES
from realcustom_jax.evaluation.benchmarks.phrases import named, told_apart
from realcustom_jax.evaluation.benchmarks.sprites import SpritesScorer, case_of
from realcustom_jax.evaluation.miniature.cases import make_cases, paint_bounds
from realcustom_jax.evaluation.miniature.judge import Opinions, load_judge
from realcustom_jax.evaluation.miniature.scores import score_pictures
from realcustom_jax.evaluation.rows import ComparedSubject, PictureRow

from mini_bundle import write_mini_bundle

MINI = Path(__file__).parents[1] / "realcustom_jax/assets/mini"
CLASSES = """Classes

subject_name,class
bear_plushie,stuffed animal
cat2,cat
dog6,dog
dog7,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def dreambench(folder: Path) -> Path:
    write(folder / "dataset/prompts_and_classes.txt", CLASSES)
    for name in ("bear_plushie", "cat2", "dog6", "dog7"):
        for i in range(5):
            write(folder / f"dataset/{name}/{i:02d}.jpg")
    write(folder / "dataset/dog6/._00.jpg")  # as archives of a Mac bring them
    return folder


def uno(folder: Path) -> Path:
    dreambench(folder / "datasets/dreambooth")
    of = "./dreambooth/dataset/{}/{:02d}.jpg".format
    single = [{"prompt": f"a {word} {where}", "image_paths": [of(name, i)]}
              for name, word, i in (("bear_plushie", "stuffed animal", 3), ("dog6", "dog", 2))
              for where in ("in the jungle", "in the snow")]
    multi = [{"prompt": "a dog wearing a red hat, next to it is a dog", "image_paths": [of("dog6", 2), of("dog7", 1)]},
             {"prompt": "a cat and a stuffed animal in the snow",
              "image_paths": [of("cat2", 2), of("bear_plushie", 3)]}]
    write(folder / "datasets/dreambench_singleip.json", json.dumps(single))
    write(folder / "datasets/dreambench_multiip.json", json.dumps(multi))
    return folder


def dreambench_plus(folder: Path) -> Path:
    for place, called, prompts in (
            ("live_subject/animal/00", "Kitten", ["A kitten on a bench", "Two kittens in space"]),
            ("object/07", "basketball shoe", ["A shoe of glass", "A thing of beauty"]),
            ("style/01", "ink painting", ["An ink painting of a fox", "A house"])):
        write(folder / f"images/{place}.jpg")
        write(folder / f"captions/{place}.txt", "\n".join([called, *prompts]) + "\n")
    return folder


def dsh_bench(folder: Path) -> Path:
    entries = {}
    for number, subject, prompts in (
            (431, "mug", ["A mug on a mug rack.", "A mug at the sea."]),
            (89, "spider man", ["Spider-Man on a bridge.", "Wide shot of Spider-Man."]),
            (385, "eye shadow", ["An eye shadow on a table.", "A palette made of paper."])):
        path = f"./images/{number}.jpg"
        entries[path] = {
            "ref_image": {"image_path": path, "height": 8, "width": 8}, "subject": subject,
            "prompt": [{"prompt": prompt, "prompt_scenario": "imagination"} for prompt in prompts],
            "metadata": {"subject_difficulty_level": "mid", "cate1": "Photorealistic", "cate2": "Object",
                         "cate3": "Food"}}
        write(folder / "data" / path)
    write(folder / "data/DSH-Bench_image_info.json", json.dumps(entries))
    return folder


def xverse(folder: Path) -> Path:
    def entry(index, prompt, *subjects):
        paths = [f"assets/XVerseBench/{path}.jpg" for path, *_ in subjects]
        for path in paths:
            write(folder / path)
        sources = [{"image_path": path, "caption": f"a {use[0]}"}
                   for path, (_, *use) in zip(paths, subjects, strict=True)]
        words = [[i, use[0], use[0], *use[1:]] for i, (_, *use) in enumerate(subjects)]
        return {"index": index, "input_images": [], "position_delta": [0, -32], "prompt": prompt,
                "modulation": [{"type": "adapter", "src_inputs": sources, "use_words": words}]}

    boy, man, other = ("human/00_boy", "boy"), ("human/05_man", "man"), ("human/06_man", "man", 2)
    spider, old = ("object/71_anime Spider-Man", "anime Spider-Man"), ("human/16_old man", "old man")
    write(folder / "eval/tools/XVerseBench_single.json", json.dumps([
        entry(0, "a polar bear standing on iceberg", ("animal/13_polar bear", "polar bear"))]))
    write(folder / "eval/tools/XVerseBench_multi.json", json.dumps([
        entry(0, "An anime Spider-Man is playing with a boy.", boy, spider),
        entry(1, "A man is standing beside another man.", man, other),
        entry(2, "An old man and a man standing together.", old, other)]))
    return folder


COPIES = {"dreambench": dreambench, "uno_single": uno, "uno_multi": uno, "dreambench_plus": dreambench_plus,
          "dsh_bench": dsh_bench, "xverse_single": xverse, "xverse_multi": xverse}
LISTS = {"dreambench": "dataset/prompts_and_classes.txt", "uno_single": "datasets/dreambench_singleip.json",
         "uno_multi": "datasets/dreambench_multiip.json", "dreambench_plus": "captions/object/07.txt",
         "dsh_bench": "data/DSH-Bench_image_info.json", "xverse_single": "eval/tools/XVerseBench_single.json",
         "xverse_multi": "eval/tools/XVerseBench_multi.json"}


def test_dreambench_has_class_words_for_tokens_and_compares_with_all_photographs(tmp_path):
    rows = read_benchmark("dreambench", dreambench(tmp_path), pictures_per_prompt=2)
    assert [row.name for row in rows[:4]] == ["bear_plushie-00-0", "bear_plushie-00-1", "bear_plushie-01-0",
                                              "bear_plushie-01-1"]
    assert [row.seed for row in rows[:4]] == [0, 1, 0, 1] and len(rows) == 2 * (2 + 3 * 3)
    assert [row.prompt for row in rows[:4:2]] == ["a stuffed animal in the jungle", "a red stuffed animal"]
    (bear,), (dog,) = rows[0].subjects, rows[-1].subjects
    assert (bear.name, bear.phrase) == ("bear_plushie", "stuffed animal")
    assert [path.name for path in dog.compared] == [f"{i:02d}.jpg" for i in range(5)] and dog.reference.name == "00.jpg"
    assert {row.prompt for row in rows if row.subjects[0].name == "cat2"} == {
        "a cat in the jungle", "a cat wearing a red hat", "a wet cat"}
    assert len(read_benchmark("dreambench", tmp_path / "dataset")) == 4 * 11, "four pictures of each, as its authors"


@pytest.mark.parametrize(("reference", "names"), [(0, "00 00 00 00"), (4, "04 04 04 04"), ("uno", "03 02 02 01")])
def test_another_photograph_of_dreambench_is_given_to_the_model(tmp_path, reference, names):
    rows = read_benchmark("dreambench", dreambench(tmp_path), prompts_per_subject=1, pictures_per_prompt=1,
                          reference=reference)
    assert [row.subjects[0].reference.stem for row in rows] == names.split()
    assert all(len(row.subjects[0].compared) == 5 for row in rows)


def test_unos_photographs_are_of_the_thirty_subjects():
    assert len(UNO_REFERENCES) == 30 and UNO_REFERENCES["dog3"] == 5 and sum(UNO_REFERENCES.values()) == 67


def test_unos_lists_take_the_word_from_the_folder_of_the_photograph(tmp_path):
    rows = read_benchmark("uno_single", uno(tmp_path))
    assert [(row.name, row.prompt, row.subjects[0].phrase, row.seed) for row in rows[1:3]] == [
        ("bear_plushie-01-0", "a stuffed animal in the snow", "stuffed animal", 3407),
        ("dog6-00-0", "a dog in the jungle", "dog", 3407)]
    assert [path.stem for path in rows[0].subjects[0].compared] == ["00", "01", "02", "03", "04"]
    assert rows[0].subjects[0].reference.stem == "03" and not rows[0].options
    two, others = read_benchmark("uno_multi", tmp_path / "datasets")
    assert [(s.name, s.phrase, s.reference.stem) for s in two.subjects] == [
        ("dog6", "dog#1", "02"), ("dog7", "dog#2", "01")]
    assert [s.phrase for s in others.subjects] == ["cat", "stuffed animal"]


def test_dreambench_plus_is_called_by_collection_and_scored_by_its_own_prompt(tmp_path):
    rows = read_benchmark("dreambench_plus", dreambench_plus(tmp_path))
    assert [row.name for row in rows[::2]] == [
        "live_subject_animal_00_kitten-0-0", "object_07_basketball_shoe-0-0", "style_01_ink_painting-0-0"]
    assert [row.subjects[0].phrase for row in rows] == ["kitten", "kittens", "shoe", "basketball shoe",
                                                        "ink painting", "ink painting"]
    assert rows[3].prompt == "basketball shoe. A thing of beauty" and rows[3].scored_prompt == "A thing of beauty"
    assert rows[0].scored_prompt is None and rows[0].facts == {"category": "animal"} and rows[0].seed == 42


def test_dsh_bench_finds_other_forms_of_its_words(tmp_path):
    rows = read_benchmark("dsh_bench", dsh_bench(tmp_path))
    assert [row.subjects[0].phrase for row in rows] == ["mug", "mug", "Spider-Man", "Spider-Man", "eye shadow",
                                                        "eye shadow"]
    assert rows[5].prompt == "eye shadow. A palette made of paper."
    assert rows[5].scored_prompt == "A palette made of paper."
    assert rows[2].name == "89_spider_man-00-0" and rows[2].facts == {
        "difficulty": "mid", "style": "Photorealistic", "category": "Object", "kind": "Food", "scenario": "imagination"}


def test_xverse_says_which_occurrence_and_its_subjects_come_in_the_prompts_order(tmp_path):
    (one, *_), rows = (read_benchmark(name, xverse(tmp_path)) for name in ("xverse_single", "xverse_multi"))
    assert [row.seed for row in rows[:4]] == [42, 43, 44, 45] and one.subjects[0].name == "animal_13_polar_bear"
    assert [[subject.phrase for subject in row.subjects] for row in rows[::4]] == [
        ["anime Spider-Man", "boy"], ["man#1", "man#2"], ["old man", "man#2"]]
    assert rows[0].facts == {"words": ["anime Spider-Man", "boy"], "kinds": ["object", "human"]}


@pytest.mark.parametrize("name", COPIES)
def test_rows_have_names_for_files_and_targets_of_their_prompts_and_fewer_are_the_same_ones(tmp_path, name):
    rows = read_benchmark(name, COPIES[name](tmp_path), pictures_per_prompt=3)
    assert len({row.name.casefold() for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[\w.-]+", row.name, re.A) and "  " not in row.prompt
        assert all(target_phrase(row.prompt, subject.phrase) for subject in row.subjects)
        json.dumps([dict(row.facts), dict(row.options)])
    first = read_benchmark(name, tmp_path, subjects=1, prompts_per_subject=1, pictures_per_prompt=2)
    assert first == rows[:2] and [row.seed for row in first] == [BENCHMARKS[name].seed, BENCHMARKS[name].seed + 1]
    assert [row.seed for row in read_benchmark(name, tmp_path, subjects=1, prompts_per_subject=1, seed=7,
                                               pictures_per_prompt=2)] == [7, 8]


@pytest.mark.parametrize("name", COPIES)
def test_the_folder_of_another_benchmark_is_called_by_its_name(tmp_path, name):
    for other in {"dreambench", "dreambench_plus", "dsh_bench", "uno_single", "xverse_multi"} - {name}:
        folder = COPIES[other](tmp_path / other)
        if COPIES[name] is COPIES[other]:
            continue
        with pytest.raises(ValueError, match=rf"holds .*{re.escape(other)}.*, not {re.escape(BENCHMARKS[name].title)}: "
                                             f"expected .* in a copy of {re.escape(BENCHMARKS[name].source)}"):
            read_benchmark(name, folder)


@pytest.mark.parametrize("name", COPIES)
def test_without_its_files_a_sentence_says_where_they_are(tmp_path, name):
    for folder, error in ((tmp_path / "none", FileNotFoundError), (tmp_path, FileNotFoundError),
                          (write(tmp_path / "file"), NotADirectoryError)):
        with pytest.raises(error, match=rf"expected {re.escape(BENCHMARKS[name].lists[0])} in a copy of https://\S+\.$"):
            read_benchmark(name, folder)


@pytest.mark.parametrize("name", COPIES)
def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path, name):
    folder = COPIES[name](tmp_path)
    rows = read_benchmark(name, folder)
    pictures = {path for row in rows for subject in row.subjects for path in (subject.reference, *subject.compared)}
    gone = rows[0].subjects[0].reference
    gone.unlink()
    count = "the only picture" if len(pictures) == 1 else f"1 of the {len(pictures)} pictures"
    if name == "dreambench":  # what it has of a subject is what lies in its folder; all must be gone
        for path in gone.parent.glob("*.jpg"):
            path.unlink()
        count = "1 of the 16 pictures"
    with pytest.raises(FileNotFoundError, match=f"lacks {count} .* first of all {re.escape(str(gone))}; get them"):
        read_benchmark(name, folder)


def test_pictures_of_rows_that_are_left_out_need_not_be_there(tmp_path):
    for path in (dsh_bench(tmp_path) / "data/images").glob("[!4]*.jpg"):
        path.unlink()
    assert len(read_benchmark("dsh_bench", tmp_path, subjects=1)) == 2


def test_without_the_submodule_unos_list_says_so(tmp_path):
    (uno(tmp_path) / "datasets/dreambooth/dataset/prompts_and_classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="git submodule update --init"):
        read_benchmark("uno_single", tmp_path)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[]", b"{}", b"[1]", b'{"a": 1}', b'[{"prompt": 3}]',
                                     b'[{"prompt": "a dog", "image_paths": [], "modulation": [{}]}]'])
def test_a_damaged_list_is_named(tmp_path, name, content):
    path = COPIES[name](tmp_path) / LISTS[name]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not the list that its authors published"):
        read_benchmark(name, tmp_path)


@pytest.mark.parametrize(("name", "old", "new", "reason"), [
    ("dreambench", "cat2,cat", "cat2;cat", "'cat2;cat' is no line of a subject's name and its class"),
    ("dreambench", "Live Subject Prompts", "Others", "it has no part 'Live Subject Prompts'"),
    ("dreambench", "a red {0} {1}", "a red thing", "the prompt 'a red thing' has not {0} and {1}"),
    ("uno_single", "dog6/02", "dog9/02", "entry 2 has a picture in a folder 'dog9'"),
    ("uno_multi", "next to it is a dog", "next to it is a cat", "in entry 0, the prompt .* the word 'dog' 1 time"),
    ("dsh_bench", '"subject"', '"object"', "entry './images/431.jpg' has no 'subject'"),
    ("dsh_bench", '"A mug at the sea."', "[]", "'prompt' of prompt 1 of entry .* is \\[\\]; expected a text"),
    ("xverse_multi", "beside another man", "alone", "in entry 1, the prompt .* the word 'man' 1 time.* 2 are needed"),
    ("xverse_multi", '[1, "man", "man", 2]', '[0, "man", "man", 2]', "entry 1 has 2 pictures, but words for 1 of them"),
    ("xverse_multi", '[1, "man", "man", 2]', '[7, "man", "man", 2]', "'src_inputs' of entry 1 has no 7")])
def test_what_is_wrong_in_a_list_is_said(tmp_path, name, old, new, reason):
    path = COPIES[name](tmp_path) / LISTS[name]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=reason.replace("{0}", r"\{0\}").replace("{1}", r"\{1\}")):
        read_benchmark(name, tmp_path)


@pytest.mark.parametrize(("options", "said"), [
    ({"subjects": 0}, "subjects is 0; expected a whole number from 1 on"),
    ({"prompts_per_subject": 1.5}, "prompts_per_subject is 1.5"),
    ({"pictures_per_prompt": True}, "pictures_per_prompt is True"),
    ({"seed": -1}, "seed is -1; expected a whole number from 0 on"),
    ({"reference": "first"}, "The reference is 'first'; give a number from 0 on, or 'uno'"),
    ({"reference": 5}, "photograph 5, counted from 0, but there are 5 of 'bear_plushie'"),
    ({"reference": [1]}, "expected a number from 0 on, or 'uno'")])
def test_numbers_that_cannot_be_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        read_benchmark("dreambench", dreambench(tmp_path), **options)


def test_unknown_names_and_references_of_other_benchmarks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown benchmark 'dreambooth': .* did you mean 'dreambench'"):
        read_benchmark("dreambooth", tmp_path)
    with pytest.raises(ValueError, match="dsh_bench says itself which picture is the reference"):
        read_benchmark("dsh_bench", tmp_path, reference=1)


@pytest.mark.parametrize(("prompt", "subject", "phrase"), [
    ("A mug on a mug rack.", "mug", "mug"), ("Peonies with fiery red petals", "peony", "Peonies"),
    ("The biscuit floating among stars", "biscuits", "biscuit"), ("A fleet of hot air balloons", "hot air balloon",
                                                                  "hot air balloons"),
    ("Spider-Man on a bridge", "spider man", "Spider-Man"), ("Two men in a boat", "man", "men"),
    ("Butterflies around a child", "butterfly", "Butterflies"), ("A cream in a jar", "face cream", "cream"),
    ("A pack of wolves", "wolf", "wolves")])
def test_a_subjects_words_are_found_in_other_forms(prompt, subject, phrase):
    assert named(prompt, subject) == (prompt, phrase)


def test_words_that_are_nowhere_are_put_first():
    assert named("A palette of earth", "eye  shadow") == ("eye shadow. A palette of earth", "eye shadow")
    assert named("A caterpillar", "cat") == ("cat. A caterpillar", "cat"), "no part of a word"


@pytest.mark.parametrize(("prompt", "words", "numbers", "targets"), [
    ("a toy and a toy", ["toy", "toy"], None, ["toy#1", "toy#2"]),
    ("a man, an old man", ["man", "old man"], None, ["man#1", "old man"]),
    ("an old man, a man", ["man", "old man"], None, ["man#2", "old man"]),
    ("an old man, a man, a man", ["old man", "man", "man"], None, ["old man", "man#2", "man#3"]),
    ("a shark among the shark and an elk", ["shark", "elk"], None, ["shark", "elk"]),
    ("a man, a man, a man", ["man", "man"], [1, 3], ["man#1", "man#3"])])
def test_subjects_of_one_word_are_told_apart(prompt, words, numbers, targets):
    found = told_apart(prompt, words, numbers)
    assert [target for target, _ in found] == targets
    places = [start for _, start in found]
    assert len(set(places)) == len(words)
    assert all(start in {a for a, _ in phrase_spans(prompt, word)} for word, start in zip(words, places, strict=True))


def test_too_few_occurrences_are_refused():
    with pytest.raises(ValueError, match="holds the word 'dog' 1 time.* where 2 are needed"):
        told_apart("a dog and a cat", ["dog", "dog"])


def test_sprites_are_painted_once_and_their_facts_give_the_case_back(tmp_path):
    rows = read_benchmark("sprites", tmp_path / "new", subjects=2, pictures_per_prompt=2)
    assert len(rows) == 4 * 2 * 2 * 2 and len({row.name for row in rows}) == len(rows)
    files = sorted((tmp_path / "new").rglob("*.png"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert read_benchmark("sprites", tmp_path / "new", subjects=2, pictures_per_prompt=2) == rows
    assert before == [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    both = next(row for row in rows if row.facts["task"] == "one2many")
    assert len(both.subjects) == 2 and len({subject.reference for subject in both.subjects}) == 1
    case = make_cases("one2many", 2, 0)[0]
    assert both.prompt == str(case.prompt) and both.seed == case.seed
    assert np.array_equal(np.asarray(Image.open(both.subjects[0].reference)), case.references[0])
    known = case_of(json.loads(json.dumps(dict(both.facts))))
    assert (known.things, known.targets, known.scene) == (case.things, case.targets, case.scene)
    assert str(known.description) == str(case.description)


def test_a_smaller_run_of_sprites_has_every_task(tmp_path):
    rows = read_benchmark("sprites", tmp_path, subjects=2, prompts_per_subject=1)
    assert [(row.facts["task"], row.group) for row in rows] == [
        (task, group) for task in ("one", "bystander", "many", "one2many") for group in ("000", "001")]


METRICS = {"one": {"subject_similarity", "text_controllability"},
           "bystander": {"subject_similarity", "text_controllability", "bystander_fidelity"},
           "many": {"subject_similarity", "text_controllability", "swapped"},
           "one2many": {"subject_similarity", "text_controllability", "swapped"}}


def _guess(images, nouns, *, batch_size=32):
    """A judge that sees some of the things' attributes, by the picture's brightness: no network."""
    count, things = nouns.shape
    rng = [np.random.default_rng(int(image.sum())) for image in images]
    attributes = np.stack([r.integers(0, 3, (things, 5)) for r in rng])
    return Opinions(np.stack([r.random(things) < 0.8 for r in rng]), attributes,
                    np.array([r.integers(0, 2) for r in rng]), np.zeros((count, things, 4, 4)))


@pytest.mark.parametrize("judge", [
    pytest.param(lambda: _guess, id="guess"),
    pytest.param(lambda: load_judge(MINI), id="mini", marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", METRICS)
def test_the_scorer_of_sprites_gives_what_the_miniatures_report_does(tmp_path, task, judge):
    judge, cases = judge(), make_cases(task, 2, 0)
    scorer = SpritesScorer(judge, {})
    rows = [row for row in read_benchmark("sprites", tmp_path, subjects=2) if row.facts["task"] == task]
    pictures = np.concatenate(list(paint_bounds(cases, 0).values()))
    expected = score_pictures(judge, cases * 2, pictures)
    assert len({*map(tuple, np.stack([expected[name] for name in METRICS[task]], 1))}) > 1
    for i, (row, picture) in enumerate(zip(rows * 2, pictures, strict=True)):
        Image.fromarray(picture).save(tmp_path / "picture.png")
        assert scorer.scores(_of(row, tmp_path / "picture.png")) == {name: expected[name][i] for name in METRICS[task]}
    assert METRICS[task] <= set(scorer.metrics) and scorer.skipped == {}


def test_what_the_scorer_cannot_score_is_named(tmp_path):
    row, scorer = read_benchmark("sprites", tmp_path, subjects=1)[0], SpritesScorer.open("mini")
    assert set(scorer.networks["judge"]["sha256"]) == {"config.json", "model.safetensors"}
    with pytest.raises(OSError, match=r"^rows\.jsonl line 3: .*none\.png"):
        scorer.scores(_of(row, tmp_path / "none.png"))
    with pytest.raises(ValueError, match=r"^rows\.jsonl line 3: .*text\.png"):
        scorer.scores(_of(row, write(tmp_path / "text.png", "no picture")))
    for facts in ({}, {**row.facts, "scene": "moon"}, {**row.facts, "targets": [0, 1]}, {**row.facts, "things": [1]},
                  {**row.facts, "things": []}):
        other = PictureRow("rows.jsonl line 3", "x", row.subjects[0].reference, "a dog", (), "x", facts=facts)
        with pytest.raises(ValueError, match="line 3: it has not the facts of a row of the benchmark sprites"):
            scorer.scores(other)
    with pytest.raises(FileNotFoundError, match="judge"):
        SpritesScorer.open(write_mini_bundle(tmp_path / "bundle"))
    with pytest.raises(NotADirectoryError, match="is a file; give a folder, in which the references are painted"):
        read_benchmark("sprites", write(tmp_path / "file"))


def _of(row, picture: Path) -> PictureRow:
    return PictureRow("rows.jsonl line 3", row.name, picture, row.prompt,
                      tuple(ComparedSubject(subject.compared) for subject in row.subjects), "x", facts=row.facts)
