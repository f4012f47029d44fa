"""The curriculum as a pure function of the step."""

import numpy as np
import pytest

from realcustom_jax.training.curriculum import RECIPES, Curriculum

DIFFICULTY = np.array([0, 1 / 3, 2 / 3, 1], np.float32)


@pytest.mark.parametrize("recipe", ["curriculum", "reconstruction", "recontextualisation"])
def test_probabilities(recipe):
    for step in range(0, 101, 5):
        weights = Curriculum(recipe).weights(step, 100, DIFFICULTY)
        assert (weights >= 0).all() and weights.sum() == pytest.approx(1)


def test_moves_from_reconstruction_to_the_hardest_pairs():
    curriculum = Curriculum(start=0.1, end=0.6, final_reconstruction=0.2)
    over_time = np.stack([curriculum.weights(step, 100, DIFFICULTY) for step in range(100)])
    np.testing.assert_allclose(over_time[0], [1, 0, 0, 0])
    np.testing.assert_allclose(over_time[-1], [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3])
    assert (np.diff(over_time @ DIFFICULTY) >= -1e-9).all(), "the mean difficulty never falls"
    assert over_time[30, 3] == 0 < over_time[30, 1], "the hardest pairs wait for their turn"


def test_ablations_are_the_two_ends():
    np.testing.assert_allclose(Curriculum("reconstruction").weights(99, 100, DIFFICULTY), [1, 0, 0, 0])
    np.testing.assert_allclose(Curriculum("recontextualisation").weights(0, 100, DIFFICULTY), [0, 1 / 3, 1 / 3, 1 / 3])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="did you mean 'curriculum'"):
        Curriculum("curiculum")
    with pytest.raises(ValueError, match="start=0.6"):
        Curriculum(start=0.6, end=0.5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_where_there_is_one_kind_of_references_it_is_taken(recipe):
    for difficulty in ([0, 0], [1, 1]):
        np.testing.assert_allclose(Curriculum(recipe).weights(0, 10, difficulty), [0.5, 0.5])


def test_what_a_log_says_of_a_step():
    curriculum = Curriculum(start=0.0, end=0.5, final_reconstruction=0.2)
    assert curriculum.scalars(0, 100, (0, 0.5, 1)) == {
        "curriculum/progress": 0, "curriculum/0.00": 1, "curriculum/0.50": 0, "curriculum/1.00": 0}
    assert curriculum.scalars(50, 100, (0, 0.5, 1)) == pytest.approx({
        "curriculum/progress": 1, "curriculum/0.00": 0.2, "curriculum/0.50": 0.4, "curriculum/1.00": 0.4})
