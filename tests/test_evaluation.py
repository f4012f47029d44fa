"""The score: metrics on known cases, held-out cases, the judge's files, and the command's errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from realcustom_jax import pipeline
from realcustom_jax.data.sprites.world import (
    HELD_OUT_NOUNS,
    NOUNS,
    SCENES,
    paint_reference,
    random_identity,
    split_of,
)
from realcustom_jax.evaluation import generate
from realcustom_jax.evaluation.cases import Case, make_cases, make_exam, paint_bounds
from realcustom_jax.evaluation.cli import main
from realcustom_jax.evaluation.generate import Generator
from realcustom_jax.evaluation.judge import (
    ATTRIBUTES,
    HEADS,
    Judge,
    JudgeConfig,
    Opinions,
    TrainedJudge,
    Verdict,
    init_judge,
    load_judge,
    save_judge,
)
from realcustom_jax.evaluation.metrics import agreement, bootstrap_interval, roc_area, summarize
from realcustom_jax.evaluation.scores import Generated, distance, examine, report_method, score_masks, score_pictures
from realcustom_jax.sampling.sampler import Samples
from realcustom_jax.training.miniature.judge import JudgeTask, disturb, single_subject_rows

from mini_bundle import write_mini_bundle

SMALL = JudgeConfig(widths=(8, 8, 16), hidden=16, groups=4)


@pytest.fixture(scope="module")
def params():
    """Random ones of a small judge; compiling its own initialisation takes longer than most tests."""
    shapes = jax.eval_shape(lambda: init_judge(Judge(SMALL), jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(shape):
        if len(shape.shape) == 1:
            return jnp.full(shape.shape, 0.1)
        return jnp.asarray(rng.standard_normal(shape.shape) * np.prod(shape.shape[:-1]) ** -0.5, jnp.float32)

    return jax.tree.map(draw, shapes)


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


def test_agreement_is_the_share_of_equal_attributes():
    assert agreement([[1, 2, 3, 0, 1], [0, 0, 0, 0, 0]], [[1, 2, 0, 0, 0], [0, 0, 0, 0, 0]]).tolist() == [0.6, 1.0]


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


def test_summary_separates_the_groups():
    entry = summarize(np.array([1, 1, 0.5, 0]), np.array([0, 0, 1, 1]), np.array([False, False, True, True]))
    assert (entry["value"], entry["held_out_identities"], entry["held_out_nouns"]) == (0.625, 1.0, 0.25)
    assert entry["ci95"] == [0.25, 1.0]
    assert summarize(np.ones(2), np.arange(2), np.zeros(2, bool))["held_out_nouns"] is None


# -------------------- cases


def test_cases_are_held_out_and_follow_the_seed():
    cases = make_cases(24, 0)
    assert len(cases) == 48 and {case.subject for case in cases} == set(range(24))
    assert {split_of(case.identity) for case in cases} == {"test"}
    assert sum(case.held_out_noun for case in cases) == 16
    assert {case.identity.noun for case in cases if case.held_out_noun} == set(HELD_OUT_NOUNS)
    for first, second in zip(cases[::2], cases[1::2], strict=True):
        assert first.identity == second.identity and first.seed == second.seed and first.scene != second.scene
    again, other = make_cases(24, 0), make_cases(24, 1)
    assert [c.prompt for c in again] == [c.prompt for c in cases] and [c.seed for c in again] == [c.seed for c in cases]
    assert np.array_equal(again[5].reference, cases[5].reference)
    assert [c.identity for c in other] != [c.identity for c in cases] and other[0].seed != cases[0].seed


# -------------------- the judge and its scores


class Oracle:
    """A judge whose opinions are given."""

    def __init__(self, labels, subject):
        self.opinions = Opinions(labels, subject)

    def __call__(self, images):
        return self.opinions


def truth(cases):
    attributes = np.stack([case.identity.attributes for case in cases]).T
    nouns, scenes = [NOUNS.index(c.identity.noun) for c in cases], [SCENES.index(c.scene) for c in cases]
    return {"noun": np.array(nouns), "scene": np.array(scenes)} | dict(
        zip(ATTRIBUTES, attributes, strict=True))


def test_scores_of_an_all_knowing_judge():
    cases = make_cases(3, 0)
    labels, subject = truth(cases), np.zeros((6, 64, 64), np.float32)
    subject[:, 16:48, 16:48] = 1
    scores = score_pictures(Oracle(labels, subject), cases, np.zeros((6, 64, 64, 3), np.uint8))
    assert (scores["subject_similarity"] == 1).all() and (scores["text_controllability"] == 1).all()

    wrong = labels | {"scene": (labels["scene"] + 1) % 10, "pattern": (labels["pattern"] + 1) % 4}
    scores = score_pictures(Oracle(wrong, subject), cases, np.zeros((6, 64, 64, 3), np.uint8))
    assert (scores["text_controllability"] == 0.5).all() and np.allclose(scores["subject_similarity"], 0.8)
    assert report_method(scores, cases)["details"]["scene"] == 0

    masks = np.zeros((6, 8, 8), np.float32)
    masks[:, 2:6, 2:6] = 1
    made = Generated(np.zeros((6, 64, 64, 3), np.uint8), masks, 1 - masks, np.zeros((6, 16, 16, 4)))
    areas = score_masks(Oracle(labels, subject), made)
    assert (areas["mask_auc"] > 0.99).all() and (areas["map_auc"] < 0.01).all()


def test_distance_of_two_methods():
    cases, rng = make_cases(3, 0), np.random.default_rng(0)
    latents, masks = rng.normal(size=(2, 6, 16, 16, 4)), np.zeros((2, 6, 8, 8))
    masks[0, :, :4], masks[1, :, 2:4] = 0.5, 1
    a, b = (Generated(None, mask, mask, x) for mask, x in zip(masks, latents, strict=True))
    same, other = distance(a, a, cases), distance(a, b, cases)
    assert same["mask_overlap"]["value"] == 1 and same["latent_difference"]["value"] == 0
    assert other["mask_overlap"]["value"] == 0.5 and abs(other["latent_difference"]["value"] - 2**0.5) < 0.05


def test_bounds_show_the_prompted_scene_and_differ():
    cases = make_cases(2, 3)
    bounds = paint_bounds(cases, 3)
    assert all(images.shape == (4, 64, 64, 3) and images.dtype == np.uint8 for images in bounds.values())
    assert not np.array_equal(bounds["same_subject"], bounds["other_subject"])


def test_exam_grades_each_head():
    exam = make_exam(8, 0)
    assert list(exam.labels) == list(HEADS)
    wrong = exam.labels | {"build": 1 - exam.labels["build"]}
    grades = examine(Oracle(wrong, exam.subject.astype(np.float32)), exam)
    assert grades == {**dict.fromkeys(HEADS, 1.0), "build": 0.0, "segmentation_iou": 1.0}


def test_judge_round_trips_through_its_bundle(tmp_path, params):
    judge = TrainedJudge(Judge(SMALL), params)
    save_judge(tmp_path, SMALL, params)
    loaded = load_judge(tmp_path)
    assert loaded.module == judge.module
    images = make_exam(3, 1).images
    before, after = judge(images, batch_size=2), loaded(images, batch_size=2)
    assert before.subject.shape == (3, 64, 64) and before.attributes.shape == (3, 5)
    assert np.allclose(before.subject, after.subject, atol=1e-2)

    file = tmp_path / "judge" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_judge(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"judge/model\.safetensors is missing"):
        load_judge(tmp_path)


def test_judge_config_refuses_another_world():
    config = SMALL.to_config()
    assert JudgeConfig.from_config(config) == SMALL
    config["classes"]["noun"][0] = "zebra"
    with pytest.raises(ValueError, match="classes"):
        JudgeConfig.from_config(config)
    with pytest.raises(ValueError, match="depth"):
        JudgeConfig.from_config({"depth": 3})


# -------------------- generation


@pytest.fixture(scope="module")
def generator(tmp_path_factory, params):
    folder = write_mini_bundle(tmp_path_factory.mktemp("model"))
    save_judge(folder, SMALL, params)
    return Generator.load(folder)


def some_cases():
    identity = random_identity(np.random.default_rng(0), noun="dog", split="test")
    reference = paint_reference(identity, seed=0)
    return [Case(0, identity, reference, scene, 7) for scene in ("beach", "snow")]


def test_cases_are_sampled_from_what_the_pipeline_samples_from(generator, monkeypatch):
    case, calls = some_cases()[1], []
    latents, masks = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 4, 4))
    results = {generate: (latents, masks, masks), pipeline: Samples(latents, masks[None])}
    for module, name in ((generate, "_generate"), (pipeline, "_sample")):
        def record(*arguments, module=module, **options):
            calls.append((arguments[2:], options))
            return results[module]

        monkeypatch.setattr(module, name, record)

    generator([case], "fused")
    generator.pipeline(Image.fromarray(case.reference), case.prompt, "dog", seed=7)
    (ours, our_options), (expected, options) = calls
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape and np.allclose(x, y, atol=1e-5)
    assert np.array_equal(our_options["solver"].timesteps, options["solver"].timesteps)
    for name in ("guidance_scale", "freeze_mask_step", "mask"):
        assert our_options[name] == options[name]


def test_described_names_the_attributes_in_the_tokens_alone(generator, monkeypatch):
    """Of the text that the base model gets; its picture is made as that of text_only."""
    case, calls = some_cases()[0], []
    shapes = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 4, 4)), jnp.zeros((1, 1, 4, 4))
    monkeypatch.setattr(generate, "_generate", lambda *arguments, **_: calls.append(arguments) or shapes)
    monkeypatch.setattr(Case, "description", "a dog in the snow")  # other words, known to the little model
    for method in ("text_only", "described"):
        generator([case], method)
    plain, described = (arguments[3] for arguments in calls)
    assert np.array_equal(plain.pooled, described.pooled) and not np.allclose(plain.text, described.text)
    assert np.allclose(described.text, generator.pipeline.encode_prompts("a dog in the snow").text)


def test_methods_differ_only_by_the_reference(generator):
    cases = some_cases()
    text_only = generator(cases, "text_only")
    repainted = [dataclasses.replace(case, reference=255 - case.reference) for case in cases]
    assert np.array_equal(generator(repainted, "text_only").images, text_only.images)
    assert np.allclose(text_only.masks, np.where(text_only.masks > 0, text_only.maps, 0), atol=1e-6)


def test_autoencoding_keeps_shape_and_order(generator):
    images = np.stack([case.reference[::4, ::4] for case in some_cases()])
    images[1] = 0
    back = generator.autoencode(images)
    assert back.shape == images.shape and back.dtype == np.uint8
    assert np.array_equal(generator.autoencode(images[1:])[0], back[1]) and not np.array_equal(back[0], back[1])


# -------------------- the stage


def batch_of(count):
    exam = make_exam(count, 5)
    attributes = np.stack([exam.labels[name] for name in ATTRIBUTES], axis=1)
    masks = np.stack([exam.subject, np.zeros_like(exam.subject)], axis=1)
    nouns = np.stack([exam.labels["noun"], np.full(count, -1)], axis=1)
    attributes = np.stack([attributes, np.full_like(attributes, -1)], axis=1)
    return {
        "target": exam.images, "masks": masks, "nouns": nouns, "attributes": attributes, "scene": exam.labels["scene"]}


class Knowing:
    """In the place of the network: logits of `sharpness` for the classes of a batch, and no opinion of the pixels."""

    def __init__(self, labels, sharpness):
        logits = {name: sharpness * jax.nn.one_hot(labels[name], len(HEADS[name])) for name in HEADS}
        self.verdict = Verdict(logits, jnp.zeros((8, 64, 64)))

    def apply(self, variables, images):
        assert images.shape == (8, 64, 64, 3)
        return self.verdict


def test_stage_asks_each_head_for_its_own_truth():
    task = JudgeTask(dataclasses.asdict(SMALL), [batch_of(8)], segmentation_weight=3.0)
    batch = task.batch(0)
    for name, truth in make_exam(8, 5).labels.items():
        assert np.array_equal(batch[name], truth)
    blind, knowing = Knowing(batch, 0.0), Knowing(batch, 50.0)
    task.module = knowing
    loss, metrics = task.loss({}, None, batch, jax.random.key(0))
    # A pixel without an opinion costs log 2, whatever it shows.
    assert metrics["segmentation"] == pytest.approx(np.log(2), rel=1e-3)
    assert loss == pytest.approx(3 * np.log(2), rel=1e-3)
    assert all(metrics[name] == 1 for name in HEADS)
    task.module = blind
    expected = sum(np.log(len(classes)) for classes in HEADS.values()) + 3 * np.log(2)
    assert task.loss({}, None, batch, jax.random.key(0))[0] == pytest.approx(expected, rel=1e-3)


def test_single_subject_rows():
    assert single_subject_rows(np.array([[3, -1], [2, 5], [0, -1]])).tolist() == [0, 2]


def test_disturbance_moves_picture_and_mask_alike():
    masks = np.zeros((16, 64, 64), np.float32)
    masks[:, 20:40, 16:30] = 1
    images = np.repeat(2 * masks[..., None] - 1, 3, axis=-1)
    disturbed, moved = jax.jit(disturb)(jax.random.key(3), jnp.asarray(images), jnp.asarray(masks))
    assert ((np.asarray(disturbed).mean(-1) > 0) == (np.asarray(moved) > 0.5)).mean() > 0.98
    assert np.abs(disturbed).max() <= 1 and not np.allclose(moved, masks)


# -------------------- the command


@pytest.mark.parametrize(("arguments", "says"), [
    (["--num-subjects", "0"], "number of subjects is 0"),
    (["--seed", "-1"], "seed is -1"),
    (["--batch-size", "0"], "--batch-size is 0"),
    (["--json", "nowhere/at/all.json"], "does not exist"),
    (["--json", "."], "--json . is a folder"),
    (["--out", __file__], "is a file; give the name of a folder"),
    (["--model", "no-such-model"], "no-such-model"),
])
def test_command_explains_bad_arguments(arguments, says, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
