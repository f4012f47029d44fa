"""The judge: its verdicts on regions and nouns, its files, and its own exam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.data.sprites.bank import BankConfig
from realcustom_jax.data.sprites.world import NOUNS
from realcustom_jax.evaluation.miniature.cases import make_exam
from realcustom_jax.evaluation.miniature.judge import (
    ATTRIBUTES,
    SMALLEST_THING,
    Judge,
    JudgeConfig,
    Opinions,
    TrainedJudge,
    load_judge,
    save_judge,
)
from realcustom_jax.evaluation.miniature.scores import examine

from mini_bundle import SMALL_JUDGE, judge_params

pytestmark = pytest.mark.usefixtures("quickly_compiled")
WORLD = BankConfig(side=32, cut_out=36)


@pytest.fixture(scope="module")
def params():
    return judge_params()


class Examinee:
    """A judge that knows the exam by heart, but for the builds, and finds nothing that is not there."""

    def __init__(self, exam):
        self.exam = exam

    def __call__(self, images, nouns):
        exam = self.exam
        found = (exam.nouns >= 0) & (nouns == exam.nouns)
        attributes = exam.attributes.copy()
        attributes[..., 4] = 1 - attributes[..., 4]
        return Opinions(found, attributes, exam.scenes, exam.coverage.reshape(-1, 2, 16, 2, 16, 2).mean((3, 5)))


def test_an_exam_grades_each_head_on_things_that_are_there():
    exam = make_exam(12, 0, WORLD)
    assert exam.images.shape == (12, 32, 32, 3) and (exam.nouns[:, 1] < 0).any() and (exam.nouns[:, 1] >= 0).any()
    grades = examine(Examinee(exam), exam)
    heads = {"noun", "scene", *ATTRIBUTES, "segmentation_iou"}
    assert grades == {**dict.fromkeys(heads, 1.0), "build": 0.0, "false_noun": 0.0}


def test_a_verdict_on_a_region_is_of_that_region_alone(params):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    regions = np.zeros((2, 2, 32, 32), np.float32)
    regions[:, 0, :16], regions[:, 1, 16:, 8:24] = 1, 1

    @jax.jit
    def of_regions(images, regions):
        return Judge(SMALL_JUDGE).apply({"params": params}, images, regions=regions)

    @jax.jit
    def of_nouns(images, nouns):
        return Judge(SMALL_JUDGE).apply({"params": params}, images, nouns=nouns)

    given, turned = of_regions(images, regions), of_regions(images, regions[:, ::-1])
    half = of_regions(images, regions * np.array([1, 0])[:, None, None])
    for name, logits in given.things.items():
        assert logits.shape == (2, 2, len(ATTRIBUTES[name]))
        np.testing.assert_allclose(turned.things[name], logits[:, ::-1], atol=1e-5)
        np.testing.assert_allclose(half.things[name][:, 0], logits[:, 0], atol=1e-5)
        assert not np.allclose(logits[:, 0], logits[:, 1], atol=1e-4)
        # Nowhere looks the same in every picture.
        np.testing.assert_allclose(half.things[name][0, 1], half.things[name][1, 1], atol=1e-5)
    # The regions that it finds itself are its shares of the noun.
    nouns = np.array([[3, -1], [0, 17]])
    shares = np.asarray(jax.nn.softmax(given.places))
    own = np.stack([[shares[b, ..., 1 + noun] if noun >= 0 else 0 * shares[b, ..., 0] for noun in nouns[b]]
                    for b in range(2)]).repeat(2, axis=2).repeat(2, axis=3)
    found, expected = of_nouns(images, nouns), of_regions(images, own)
    for name in ATTRIBUTES:
        np.testing.assert_allclose(found.things[name], expected.things[name], atol=1e-4)
    np.testing.assert_allclose(found.scene, given.scene, atol=1e-5)


def test_a_noun_is_found_where_it_fills_enough_places(params):
    bias = np.zeros(1 + len(NOUNS), np.float32)
    bias[1 + NOUNS.index("cat")] = 9
    places = {"kernel": 0 * params["places"]["kernel"], "bias": jnp.asarray(bias)}
    judge = TrainedJudge(Judge(SMALL_JUDGE), {**params, "places": places})
    opinions = judge(np.zeros((3, 32, 32, 3), np.uint8), np.tile([NOUNS.index("cat"), NOUNS.index("dog"), -1], (3, 1)))
    assert opinions.found.tolist() == [[True, False, False]] * 3
    assert opinions.places[:, 0].min() > 0.9 and opinions.places[:, 1:].max() < 0.1 and SMALLEST_THING < 0.03


def test_judge_round_trips_through_its_bundle(tmp_path, params):
    judge = TrainedJudge(Judge(SMALL_JUDGE), params)
    save_judge(tmp_path, SMALL_JUDGE, params)
    loaded = load_judge(tmp_path)
    assert loaded.module == judge.module
    rng = np.random.default_rng(0)
    images, nouns = rng.integers(0, 255, (3, 32, 32, 3), np.uint8), np.array([[0, 1], [2, -1], [3, 4]])
    before, after = judge(images, nouns, batch_size=2), loaded(images, nouns, batch_size=2)
    assert before.places.shape == (3, 2, 16, 16) and before.attributes.shape == (3, 2, 5)
    assert not before.places[1, 1].any() and not before.found[1, 1]
    assert np.allclose(before.places, after.places, atol=1e-2)

    file = tmp_path / "judge" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_judge(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"judge/model\.safetensors is missing"):
        load_judge(tmp_path)


def test_judge_config_refuses_another_world():
    config = SMALL_JUDGE.to_config()
    assert JudgeConfig.from_config(config) == SMALL_JUDGE
    config["classes"]["noun"][0] = "zebra"
    with pytest.raises(ValueError, match="classes"):
        JudgeConfig.from_config(config)
    with pytest.raises(ValueError, match="depth"):
        JudgeConfig.from_config({"depth": 3})
