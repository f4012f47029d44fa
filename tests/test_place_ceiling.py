"""The ceiling of right place: what its network learns, and that it is scored as the base model's maps are."""

import jax
import numpy as np
import optax
import pytest

from benchmarks.experiments.place_ceiling import (
    PlaceTask,
    Telltale,
    network_maps,
    score,
    summary,
    table,
    told_by,
)
from benchmarks.experiments.two_things import TwoThings
from realcustom_jax.sampling import solvers

SMALL = Telltale(fine=8, coarse=16, blocks=1, groups=4)


def pictures(count: int) -> TwoThings:
    """Latents that show a noun as one channel, in one half of the picture each."""
    rng = np.random.default_rng(0)
    nouns = np.stack([rng.permutation(4)[:2] for _ in range(count)]).astype(np.int32)
    left = rng.random(count) < 0.5
    halves = np.stack([np.arange(8) < 4, np.arange(8) >= 4])
    coverage = np.broadcast_to(np.where(left[:, None, None], halves, ~halves)[:, :, None], (count, 2, 8, 8))
    latents = 3 * np.einsum("nkhw,nkc->nhwc", coverage, np.eye(4)[nouns])
    return TwoThings(np.zeros((count, 2), np.int32), nouns, np.zeros(count, np.int32), latents.astype(np.float32),
                     coverage.astype(np.float32))


def test_the_truth_scores_one_and_a_flat_map_one_half():
    painted = pictures(6)
    np.testing.assert_allclose(score([painted.coverage], painted), 1)
    np.testing.assert_allclose(score([painted.coverage[:, ::-1]], painted), 0)
    np.testing.assert_allclose(score([np.ones((6, 2, 4, 4))], painted), 0.5)


@pytest.mark.slow
def test_the_network_learns_which_of_two_things_is_where():
    seen, unseen = pictures(64), pictures(80).part(slice(64, None))
    task = PlaceTask(SMALL, seen, solvers.betas(), batch_size=32)
    params = task.init(jax.random.key(0))
    optimizer = optax.adam(2e-2)

    @jax.jit
    def step(params, state, batch, key):
        (loss, metrics), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, (), batch, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss, metrics

    def right(params):
        return score([network_maps(SMALL, params, task.betas, unseen, 500)], unseen).mean()

    state, losses, before = optimizer.init(params), [], right(params)
    for i in range(25):
        params, state, loss, metrics = step(params, state, task.batch(i), jax.random.key(i))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert metrics["of_two"] < metrics["of_all"], "whoever is told has less to choose from"
    assert right(params) > max(0.95, before + 0.2)


def test_batches_are_those_of_their_step():
    task = PlaceTask(SMALL, pictures(16), solvers.betas(), batch_size=4)
    np.testing.assert_array_equal(task.batch(3)["latents"], task.batch(3)["latents"])
    assert not np.array_equal(task.batch(3)["latents"], task.batch(4)["latents"])


def test_the_share_is_of_the_way_from_chance():
    found = summary({"maps, plain": np.array([0.7, 0.7, 0.7, 0.7]), "together": np.array([1.0, 0.9, 0.8, 0.9])})
    assert found["together"]["value"] == 0.9 and found["together"]["to_together"]["value"] == 1
    assert found["maps, plain"]["to_together"]["value"] == 0.5 and found["maps, plain"]["to_one"]["value"] == 0.4
    low, high = found["maps, plain"]["to_together"]["ci95"]
    assert 0.4 < low < 0.5 < high < 0.7
    printed = table({"timesteps": {"700": found}, "curve": []})
    assert "| 700 | maps, plain | 0.700 [0.700, 0.700] | 0.50 [" in printed


def test_what_each_of_two_sees_is_told_together():
    painted = pictures(4)
    flat = np.ones((4, 2, 8, 8))
    known = np.arange(4)[:, None, None, None] < 2
    network, plain = np.where(known, painted.coverage, flat), np.where(known, flat, painted.coverage)
    found = told_by(network, {"plain": [plain]}, painted)
    np.testing.assert_allclose(found["network"], [1, 1, 0.5, 0.5])
    np.testing.assert_allclose(found["maps, plain"], [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(found["together"], 1)
