"""The score: metrics on known cases, held-out cases of four tasks, what methods make of them, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax import pipeline
from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.data.sprites.captions import TELLABLE, VOCABULARY, caption
from realcustom_jax.data.sprites.world import HELD_OUT_NOUNS, SCENES, Identity, Placement, paint, split_of
from realcustom_jax.evaluation.intervals import bootstrap_interval, ratio_with_interval
from realcustom_jax.evaluation.miniature import generate
from realcustom_jax.evaluation.miniature.cases import TASKS, Case, make_cases, paint_bounds
from realcustom_jax.evaluation.miniature.command import main
from realcustom_jax.evaluation.miniature.generate import METHODS, Generator
from realcustom_jax.evaluation.miniature.judge import ATTRIBUTES, Opinions, save_judge
from realcustom_jax.evaluation.miniature.leaks import LEAKS, score_leaks
from realcustom_jax.evaluation.miniature.measures import overlap, quality, roc_area, summarize
from realcustom_jax.evaluation.miniature.report import TaskResult, markdown_table, task_sheet, worst_cases
from realcustom_jax.evaluation.miniature.scores import (
    METRICS,
    Generated,
    compare,
    distance,
    report_method,
    score_masks,
    score_pictures,
)
from realcustom_jax.sampling.sampler import Samples

from mini_bundle import SMALL_JUDGE, judge_params, write_mini_bundle

pytestmark = pytest.mark.usefixtures("quickly_compiled")
WORLD = BankConfig(side=32, cut_out=36)


@pytest.fixture(scope="module")
def cases():
    """Those of three subjects in each task."""
    return {task: make_cases(task, 3, 0, WORLD) for task in TASKS}


# -------------------- metrics


def test_roc_area_of_known_cases():
    labels = np.array([[0, 0], [1, 1]])
    assert roc_area(np.array([[0.1, 0.2], [0.3, 0.4]]), labels) == 1.0
    assert roc_area(np.array([[0.3, 0.4], [0.1, 0.2]]), labels) == 0.0
    assert roc_area(np.zeros((2, 2)), labels) == 0.5
    # Pairs (positive, negative): 0.5 beats 0, ties with 0.5; 0 ties with 0, loses to 0.5.
    assert roc_area([0.5, 0.0, 0.5, 0.0], [1, 1, 0, 0]) == pytest.approx(0.5)
    assert roc_area([0.9, 0.2, 0.5, 0.1], [1, 1, 0, 0]) == pytest.approx(0.75)
    assert roc_area([0.3, 0.2], [0, 0]) == roc_area([0.3, 0.2], [1, 1]) == 0.5


def test_roc_area_counts_pairs():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.3
    difference = values[positive][:, None] - values[~positive]
    assert roc_area(values, positive) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_bootstrap_interval_covers_the_mean_and_widens_with_clusters():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        values = rng.normal(0.7, 0.2, 40)
        low, high = bootstrap_interval(values, np.arange(40), seed=trial)
        covered += low <= 0.7 <= high
    assert covered >= 85
    values = np.repeat(rng.normal(0, 1, 20), 10)
    narrow, wide = bootstrap_interval(values, np.arange(200)), bootstrap_interval(values, np.repeat(np.arange(20), 10))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert bootstrap_interval(values, np.arange(200)) == narrow


def test_a_ratio_is_of_means_and_pairs_cancel_what_subjects_share():
    subjects, values = np.repeat(np.arange(20), 2), np.random.default_rng(0).uniform(0.2, 1, 40)
    same = ratio_with_interval(0.9 * values, values, subjects)
    assert same == {"value": 0.9, "ci95": [0.9, 0.9]}
    assert ratio_with_interval(np.array([1.0, 0.0]), np.array([1.0, 3.0]), np.array([0, 1]))["value"] == 0.25
    low, high = ratio_with_interval(values[::-1], values, subjects)["ci95"]
    assert low < 1 < high and high - low > 0.1


def test_summary_separates_the_groups():
    entry = summarize(np.array([1, 1, 0.5, 0]), np.array([0, 0, 1, 1]), np.array([False, False, True, True]))
    assert (entry["value"], entry["held_out_identities"], entry["held_out_nouns"]) == (0.625, 1.0, 0.25)
    assert entry["ci95"] == [0.25, 1.0]
    assert summarize(np.ones(2), np.arange(2), np.zeros(2, bool))["held_out_nouns"] is None


def test_overlap_of_known_regions():
    a, b = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    a[0, :2], b[0, 1:3], a[1, 0] = True, True, True
    np.testing.assert_allclose(overlap(a, b), [1 / 3, 0, 1])


def test_quality_counts_what_is_swapped_against_a_picture_and_leaves_masks_out():
    scores = {"subject_similarity": np.array([1, 0.5]), "swapped": np.array([0, 1]), "mask_auc": np.array([0, 1])}
    np.testing.assert_allclose(quality(scores, ("subject_similarity", "swapped", "mask_auc")), [1, 0.25])


# -------------------- cases


@pytest.mark.parametrize("task", TASKS)
def test_cases_are_held_out_and_follow_the_seed(task):
    cases = make_cases(task, 6, 0, WORLD)
    assert len(cases) == 12 and {case.subject for case in cases} == set(range(6))
    assert {split_of(thing) for case in cases for thing in case.things} == {"test"}
    assert sum(case.held_out_noun for case in cases) == 4
    for first, second in zip(cases[::2], cases[1::2], strict=True):
        assert first.things == second.things and first.seed == second.seed and first.scene != second.scene
    again, other = make_cases(task, 6, 0, WORLD), make_cases(task, 6, 1, WORLD)
    assert [(c.things, c.scene, c.seed) for c in again] == [(c.things, c.scene, c.seed) for c in cases]
    assert all(np.array_equal(*pair) for a, c in zip(again, cases, strict=True)
               for pair in zip(a.references, c.references, strict=True))
    assert [c.things for c in other] != [c.things for c in cases] and other[0].seed != cases[0].seed
    assert not np.array_equal(other[0].references[0], cases[0].references[0])


def test_a_third_of_the_subjects_are_of_the_held_out_nouns_and_bystanders_are_of_trained_ones():
    cases = make_cases("many", 24, 0, dataclasses.replace(WORLD, side=16, cut_out=18))
    assert sum(case.held_out_noun for case in cases) == 16
    assert {case.things[0].noun for case in cases if case.held_out_noun} == set(HELD_OUT_NOUNS)
    for case in cases:
        assert case.things[1].noun not in (case.things[0].noun, *HELD_OUT_NOUNS)


def test_tasks_share_their_subjects_and_differ_in_what_is_told_and_shown(cases):
    for one, bystander, many, one2many in zip(*cases.values(), strict=True):
        for case in (bystander, many, one2many):
            assert (case.things[0], case.scene, case.seed) == (one.things[0], one.scene, one.seed)
        assert bystander.things == many.things == one2many.things
        first, second = many.things
        assert str(one.prompt) == str(caption([(first, ())], one.scene))
        assert str(bystander.prompt) == str(caption([(first, ()), (second, TELLABLE)], one.scene))
        assert str(many.prompt) == str(one2many.prompt) == str(caption([(first, ()), (second, ())], one.scene))
        assert str(bystander.description) == str(caption([(first, TELLABLE), (second, TELLABLE)], one.scene))
        assert [len(case.references) for case in (one, bystander, many, one2many)] == [1, 1, 2, 1]
        assert [case.targets for case in (one, bystander, many, one2many)] == [(0,), (0,), (0, 1), (0, 1)]
        assert np.array_equal(one.references[0], bystander.references[0])


def test_bounds_show_the_prompted_scene_and_differ(cases):
    for task in ("one", "many"):
        bounds = paint_bounds(cases[task], 3, WORLD)
        assert all(images.shape == (6, 32, 32, 3) and images.dtype == np.uint8 for images in bounds.values())
        assert not np.array_equal(bounds["same_subject"], bounds["other_subject"])


# -------------------- scores


class Oracle:
    """A judge whose opinions are given."""

    def __init__(self, found, attributes, scene, places=None):
        self.opinions = Opinions(np.asarray(found), np.asarray(attributes), np.asarray(scene), places)

    def __call__(self, images, nouns):
        assert nouns.shape == self.opinions.found.shape
        return self.opinions


def truth(cases):
    """(found, attributes, scene) of pictures that are all that was asked for."""
    attributes = np.stack([[thing.attributes for thing in case.things] for case in cases])
    return np.ones(attributes.shape[:2], bool), attributes, np.array([SCENES.index(case.scene) for case in cases])


def pair_of_opposites(task):
    """A case of two things that have no attribute in common."""
    things = (Identity("dog", "red", "blue", "plain", "none", "slim"),
              Identity("car", "green", "pink", "spots", "hat", "stout"))
    return [Case(task, 0, things[: 1 if task == "one" else 2], (), (0,) if task in ("one", "bystander") else (0, 1),
                 "beach", 7)]


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_picture_has_perfect_scores(cases, task):
    scores = score_pictures(Oracle(*truth(cases[task])), cases[task], None)
    best = {"swapped": 0.0}
    for name in METRICS[task]:
        assert name == "mask_auc" or (scores[name] == best.get(name, 1.0)).all(), name
    assert all((scores[name] == 1).all() for name in (*ATTRIBUTES, "nouns", "scene"))


def test_each_thing_is_compared_with_its_own_reference():
    case = pair_of_opposites("many")
    found, attributes, scene = truth(case)
    scores = score_pictures(Oracle(found, attributes[:, ::-1], scene), case, None)
    assert scores["swapped"] == 1 and scores["subject_similarity"] == 0 and scores["text_controllability"] == 1
    one_right = attributes.copy()
    one_right[:, 1] = attributes[:, 0]
    scores = score_pictures(Oracle(found, one_right, scene), case, None)
    assert scores["swapped"] == 0.5 and scores["subject_similarity"] == 0.5
    neither = score_pictures(Oracle(found, np.full((1, 2, 5), -1), scene), case, None)
    assert neither["swapped"] == 0, "what is like neither is not swapped"


def test_a_thing_that_is_not_found_counts_nothing():
    for task in ("many", "one2many"):
        case = pair_of_opposites(task)
        _, attributes, scene = truth(case)
        scores = score_pictures(Oracle([[True, False]], attributes, scene), case, None)
        assert scores["subject_similarity"] == 0.5 and scores["swapped"] == 0
        assert scores["text_controllability"] == pytest.approx(2 / 3) and scores["nouns"] == 0.5
        lost = score_pictures(Oracle([[False, False]], attributes[:, ::-1], scene), case, None)
        assert lost["subject_similarity"] == lost["swapped"] == 0


def test_a_bystander_is_scored_by_itself():
    case = pair_of_opposites("bystander")
    found, attributes, scene = truth(case)
    touched = attributes.copy()
    touched[:, 1, :2] = attributes[:, 0, :2]  # its colours are the reference's
    scores = score_pictures(Oracle(found, touched, scene), case, None)
    assert scores["subject_similarity"] == 1 and scores["bystander_fidelity"] == pytest.approx(0.6)
    assert "swapped" not in scores
    scores = score_pictures(Oracle([[True, False]], attributes, (scene + 1) % 10), case, None)
    assert scores["bystander_fidelity"] == 0 and scores["text_controllability"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_copied_reference_leaks_and_a_painting_of_its_own_does_not():
    world = BankConfig(side=64, cut_out=72)
    cases = make_cases("one", 16, 0, world)
    found, attributes, _ = truth(cases)
    painted = [_answer(case, world, *pose) for case, pose in zip(cases, _independent_poses(cases), strict=True)]
    copied = [_answer(case, world, *case.shown[0]) for case in cases]
    scores = {}
    for name, pairs in {"copied": copied, "painted": painted}.items():
        images, places = (np.stack(each) for each in zip(*pairs, strict=True))
        scenes = [SCENES.index(case.reference_scenes[0] if name == "copied" else case.scene) for case in cases]
        scores[name] = score_leaks(Oracle(found, attributes, scenes, places[:, None]), cases, images)
        assert set(scores[name]) == set(LEAKS)
    copy, own = ({key: value.mean() for key, value in scores[name].items()} for name in ("copied", "painted"))
    assert copy["facing_leak"] > 0.9 and copy["pose_leak"] > 0.75 and copy["background_leak"] == 1
    assert 0.4 < own["facing_leak"] < 0.6 and abs(own["pose_leak"]) < 0.2 and own["background_leak"] == 0
    lost = score_leaks(Oracle(~found, attributes, scenes, places[:, None]), cases, images)
    assert (lost["facing_leak"] == 0.5).all() and (lost["pose_leak"] == 0).all()


def _independent_poses(cases):
    rng = np.random.default_rng(5)
    return [(rng.uniform(-1, 1), bool(case.shown[0][1]) != bool(i % 2)) for i, case in enumerate(cases)]


def _answer(case, world, pose, left):
    """The case's thing at this pose and facing, uint8 [P, P, 3], and where it is at half that size."""
    where = Placement(0.5, 0.5, 0.7, "left" if left else "right", pose)
    image, masks = paint([(case.things[0], where)], case.scene, seed=0, size=world.side)
    return image, masks[0, ::2, ::2].astype(np.float32)


def made_of(masks, latents=None, images=None):
    return Generated(images, masks, 1 - masks, latents)


def test_each_phrases_mask_is_compared_with_its_own_things_places(cases):
    many, places = cases["many"], np.zeros((6, 2, 16, 16), np.float32)
    places[:, 0, :, :8], places[:, 1, :, 8:] = 1, 1
    masks = places[:, :, ::2, ::2].copy()
    oracle = Oracle(*truth(many), places)
    areas = score_masks(oracle, many, made_of(masks))
    assert (areas["mask_auc"] > 0.99).all() and (areas["map_auc"] < 0.01).all()
    assert (score_masks(oracle, many, made_of(masks[:, ::-1]))["mask_auc"] < 0.01).all()
    # Of a bystander's picture, only the first thing has a mask.
    bystander = cases["bystander"]
    assert (score_masks(oracle, bystander, made_of(masks[:, :1]))["mask_auc"] > 0.99).all()


def test_reports_have_each_tasks_metrics_and_differences_are_paired(cases):
    for task in TASKS:
        rng = np.random.default_rng(0)
        a, b = ({name: rng.random(6) for name in (*METRICS[task], "nouns")} for _ in range(2))
        entry = report_method(a, cases[task])
        assert set(entry) == {*METRICS[task], "details"} and set(entry["details"]) == {"nouns"}
        same, other = compare(a, a, cases[task]), compare(a, b, cases[task])
        for name in METRICS[task]:
            assert same[name] == {"value": 0.0, "ci95": [0.0, 0.0]}
            assert other[name]["value"] == pytest.approx(a[name].mean() - b[name].mean(), abs=1e-4)
            low, high = other[name]["ci95"]
            assert low <= other[name]["value"] <= high
    # The same luck of a subject in both methods leaves no doubt about their difference.
    lucky = {name: rng.random(6) for name in METRICS["one"]}
    better = {name: value + 0.25 for name, value in lucky.items()}
    assert compare(better, lucky, cases["one"])["subject_similarity"] == {"value": 0.25, "ci95": [0.25, 0.25]}


def test_distance_of_two_methods(cases):
    rng = np.random.default_rng(0)
    latents, masks = rng.normal(size=(2, 6, 16, 16, 4)), np.zeros((2, 6, 2, 8, 8))
    masks[0, :, 0, :4], masks[1, :, 1, 2:4] = 0.5, 1
    a, b = (made_of(mask, x) for mask, x in zip(masks, latents, strict=True))
    same, other = distance(a, a, cases["many"]), distance(a, b, cases["many"])
    assert same["mask_overlap"]["value"] == 1 and same["latent_difference"]["value"] == 0
    assert other["mask_overlap"]["value"] == 0.5 and abs(other["latent_difference"]["value"] - 2**0.5) < 0.05


# -------------------- generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of random weights that knows the painted world's words, with a judge; it makes pictures of 16 × 16."""
    folder = write_mini_bundle(tmp_path_factory.mktemp("model"), words=VOCABULARY, length=32)
    save_judge(folder, SMALL_JUDGE, judge_params())
    return folder


@pytest.fixture(scope="module")
def generator(folder):
    return Generator.load(folder)


SHAPES = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 4, 4)), jnp.zeros((1, 1, 4, 4))


@pytest.mark.parametrize("task", [
    "many", pytest.param("one", marks=pytest.mark.slow), pytest.param("one2many", marks=pytest.mark.slow)])
def test_cases_are_sampled_from_what_the_pipeline_samples_from(generator, cases, monkeypatch, task):
    case, calls = cases[task][1], []
    latents, masks = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, len(case.targets), 4, 4))
    results = {generate: (latents, masks), pipeline: Samples(latents, masks[None])}
    for module, name in ((generate, "_generate"), (pipeline, "_sample")):
        def record(*arguments, module=module, **options):
            calls.append((arguments[2:], options))
            return results[module]

        monkeypatch.setattr(module, name, record)
    monkeypatch.setattr(generate, "_masks_of", lambda *_, **__: (masks, masks))

    generator([case], "fused")
    generator.pipeline([Image.fromarray(reference) for reference in case.references], str(case.prompt),
                       [case.things[i].noun for i in case.targets], seed=case.seed)
    (ours, our_options), (expected, options) = calls
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape and np.allclose(x, y, atol=1e-4)
    assert np.array_equal(our_options["solver"].timesteps, options["solver"].timesteps)
    for name in ("guidance_scale", "freeze_mask_step", "mask"):
        assert our_options[name] == options[name]


def test_described_names_the_attributes_in_the_tokens_alone(generator, cases, monkeypatch):
    """Of the text that the base model gets; its picture is made as that of text_only."""
    case, calls = cases["bystander"][0], []
    monkeypatch.setattr(generate, "_generate", lambda *arguments, **_: calls.append(arguments) or (SHAPES[0], None))
    monkeypatch.setattr(generate, "_masks_of", lambda *_, **__: SHAPES[1:])
    for method in ("text_only", "described"):
        generator([case], method)
    plain, described = (arguments[3] for arguments in calls)
    assert np.array_equal(plain.pooled, described.pooled) and not np.allclose(plain.text, described.text)
    assert np.allclose(described.text, generator.pipeline.encode_prompts(str(case.description)).text)


@pytest.mark.slow
def test_methods_differ_only_by_the_reference(generator, cases):
    two = cases["one"][:2]
    text_only = generator(two, "text_only")
    repainted = [dataclasses.replace(case, references=(255 - case.references[0],)) for case in two]
    assert np.array_equal(generator(repainted, "text_only").images, text_only.images)
    assert np.allclose(text_only.masks, np.where(text_only.masks > 0, text_only.maps, 0), atol=1e-6)


def test_autoencoding_keeps_shape_and_order(generator, cases):
    images = np.stack([case.references[0][::2, ::2] for case in cases["one"][::2]])
    images[1] = 0
    back = generator.autoencode(images)
    assert generator.picture_size == 16
    assert back.shape == images.shape and back.dtype == np.uint8
    assert np.array_equal(generator.autoencode(images[1:])[0], back[1]) and not np.array_equal(back[0], back[1])


# -------------------- the report


def results_of(cases, rng):
    made = {method: made_of(rng.random((6, len(cases[0].targets), 4, 4)), None,
                            rng.integers(0, 255, (6, 32, 32, 3), np.uint8)) for method in METHODS}
    scores = {method: {name: rng.random(6) for name in METRICS[cases[0].task]} for method in METHODS}
    return TaskResult(cases, made, scores)


def test_sheets_show_references_methods_and_masks_and_failures_are_the_worst_of_all_tasks(cases):
    rng = np.random.default_rng(0)
    results = {task: results_of(cases[task], rng) for task in TASKS}
    widths = {task: task_sheet(result).width for task, result in results.items()}
    assert widths["bystander"] == widths["one"] < widths["one2many"] < widths["many"]
    assert widths["many"] - widths["one2many"] == widths["one2many"] - widths["one"]
    assert worst_cases(list(results.values())).width == widths["many"]
    worst = results["bystander"]
    for name in METRICS["bystander"]:
        worst.scores["fused"][name][:] = -1
    only = worst_cases([worst])
    assert np.array_equal(np.asarray(worst_cases(list(results.values())))[: 26 + 134 * 6, : 176 + 128],
                          np.asarray(only)[:, : 176 + 128])


def test_a_table_has_a_row_for_each_method_bound_and_difference(cases):
    rng, task = np.random.default_rng(0), "bystander"
    scores = results_of(cases[task], rng).scores
    entry = {
        "methods": {method: report_method(values, cases[task]) for method, values in scores.items()},
        "bounds": {"same_subject": report_method({"subject_similarity": np.ones(6)}, cases[task])},
        "differences": {"fused_minus_no_mask": compare(scores["fused"], scores["no_mask"], cases[task])}}
    lines = markdown_table(task, entry).splitlines()
    assert lines[0] == ("| bystander | subject similarity | ± | text controllability | ± | bystander fidelity | ± | "
                        "mask auc | ± |")
    assert [line.split(" | ")[0] for line in lines[2:9]] == [
        "| text only", "| described", "| no mask", "| sequential", "| fused", "| painted, same subject",
        "| fused minus no mask"]
    assert lines[7].endswith("| 1.000 | 0.00 | – | – | – | – | – | – |")
    assert all(line.count("|") == 10 for line in lines)


# -------------------- the command


@pytest.mark.parametrize(("arguments", "says"), [
    (["--num-subjects", "0"], "number of subjects is 0"),
    (["--seed", "-1"], "seed is -1"),
    (["--batch-size", "0"], "--batch-size is 0"),
    (["--tasks", "one,too"], "Unknown task 'too': known are one, bystander, many, one2many"),
    (["--tasks", "bystanders"], "did you mean 'bystander'?"),
    (["--json", "nowhere/at/all.json"], "does not exist"),
    (["--json", "."], "--json . is a folder"),
    (["--out", __file__], "is a file; give the name of a folder"),
    (["--model", "no-such-model"], "no-such-model"),
    (["--adapter", "no-such-adapter"], "no-such-adapter"),
])
def test_command_explains_bad_arguments(arguments, says, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_the_command_scores_every_task_and_a_seed_changes_everything(folder, tmp_path, capsys):
    found = {}
    for seed, tasks in ((0, TASKS), (1, ("many", "one"))):
        arguments = ["--model", str(folder), "--num-subjects", "2", "--seed", str(seed), "--batch-size", "3", "--json",
                     str(tmp_path / f"{seed}.json"), "--out", str(tmp_path / f"sheets{seed}")]
        assert main(arguments + (["--tasks", ",".join(tasks)] if seed else [])) == 0
        found[seed] = json.loads((tmp_path / f"{seed}.json").read_text())
        assert {path.name for path in (tmp_path / f"sheets{seed}").iterdir()} == {
            *(f"{task}.png" for task in tasks), "failures.png"}
    said = capsys.readouterr()
    assert all(f"## {task}" in said.out for task in TASKS) and "80/80" in said.err
    report = found[0]
    assert list(report["tasks"]) == list(TASKS) and list(found[1]["tasks"]) == ["one", "many"]
    assert set(report["judge"]) == {"noun", "false_noun", "scene", *ATTRIBUTES, "segmentation_iou"}
    for task, entry in report["tasks"].items():
        assert entry["num_cases"] == 4 and list(entry["methods"]) == list(METHODS)
        for scores in entry["methods"].values():
            assert set(scores) == {*METRICS[task], "details", "leaks"} and list(scores["leaks"]) == list(LEAKS)
            assert all({"value", "ci95"} <= set(scores[name]) for name in METRICS[task])
        assert set(entry["differences"]) == {f"fused_minus_{method}" for method in METHODS if method != "fused"}
        assert set(entry["differences"]["fused_minus_no_mask"]) == set(METRICS[task])
        assert set(entry["bounds"]) == {"same_subject", "other_subject", "same_subject_autoencoded"}
    # Random weights draw nothing that the judge would find, but nothing that they draw is the same.
    for task in ("one", "many"):
        assert report["tasks"][task]["distances"] != found[1]["tasks"][task]["distances"]
        sheets = [(tmp_path / f"sheets{seed}" / f"{task}.png").read_bytes() for seed in found]
        assert sheets[0] != sheets[1]
