import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.sampling.solvers import add_more_noise, add_noise, snr, velocity

from goldens import assert_close, golden, nchw, nhwc

GOLDEN = golden("schedulers")
BETAS = [key for key in GOLDEN if key.startswith("betas|")]
RUNS = [key.removesuffix("|timesteps") for key in GOLDEN if key.endswith("|timesteps")]
MORE = golden("schedulers_more")
MORE_RUNS = [key.removesuffix("|timesteps") for key in MORE if key.endswith("|timesteps")]
SOLVERS = [("dpm_single", p) for p in (1, 2, 3)] + [("dpm_multi", 2), ("dpm_multi", 3), ("ddim", 2)]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def golden_model(x, t):
    return jnp.tanh(0.7 * x) + 0.3 * t / 1000


def exact_model(x0, prediction, schedule):
    """The network that knows that every sample is ``x0``."""
    bars = jnp.asarray(np.cumprod(1 - schedule.astype(np.float64)), jnp.float32)

    def model(x, t):
        alpha, sigma = jnp.sqrt(bars[t]), jnp.sqrt(1 - bars[t])
        noise = (x - alpha * x0) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * x0

    return model


@pytest.mark.parametrize("key", BETAS)
def test_betas_golden(key):
    _, name, shift, terminal = key.split("|")
    assert_close(rc.betas(name, 1000, float(shift), terminal == "True"), GOLDEN[key], 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_solver_golden(run):
    name, steps, prediction = run.split("|")
    order = 3 if name.endswith("_o3") else 2
    solver = rc.make_solver(name.removesuffix("_o3"), int(steps), order=order, prediction=prediction)
    np.testing.assert_array_equal(solver.timesteps, GOLDEN[f"{run}|timesteps"])
    x, x0 = rc.integrate(golden_model, nhwc(GOLDEN["x_T"]), solver)
    assert_close(nchw(x), GOLDEN[f"{run}|x"])
    assert_close(nchw(x0), GOLDEN[f"{run}|x0"])


@pytest.mark.parametrize("run", MORE_RUNS)
def test_solver_released(run):
    """Settings that the goldens lack, run with the released schedulers on the goldens' model."""
    name, order, steps, prediction, spacing, terminal = run.split("|")
    solver = rc.make_solver(
        name,
        int(steps),
        order=int(order),
        betas=rc.betas(terminal_pure_noise=terminal == "True"),
        prediction=prediction,
        spacing=spacing,
    )
    np.testing.assert_array_equal(solver.timesteps, MORE[f"{run}|timesteps"])
    x, x0 = rc.integrate(golden_model, nhwc(MORE["x_T"]), solver)
    assert_close(nchw(x), MORE[f"{run}|x"])
    assert_close(nchw(x0), MORE[f"{run}|x0"])


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("trailing", [999, 799, 599, 399, 199]),
        ("linspace", [999, 749, 500, 250, 0]),
        ("leading", [800, 600, 400, 200, 0]),
    ],
)
def test_spacing(spacing, expected):
    assert rc.make_solver(steps=5, spacing=spacing).timesteps.tolist() == expected


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("steps", [1, 7, 30, 61, 333, 1000])
def test_spacing_gives_exactly_the_steps_asked_for(spacing, steps):
    timesteps = rc.make_solver(steps=steps, spacing=spacing).timesteps
    assert timesteps.dtype == np.int32 and len(timesteps) == steps
    assert np.all(np.diff(timesteps) < 0) and timesteps[-1] >= 0


@pytest.mark.parametrize(
    ("name", "order", "steps", "orders"),
    [
        ("dpm_single", 2, 6, [1, 1, 2, 1, 2, 1]),
        ("dpm_single", 3, 8, [1, 1, 2, 3, 1, 2, 3, 1]),
        ("dpm_multi", 2, 4, [1, 2, 2, 1]),
        ("dpm_multi", 3, 6, [1, 2, 3, 3, 2, 1]),
        ("dpm_multi", 3, 15, [1, 2] + [3] * 13),
        ("ddim", 3, 4, [1, 1, 1, 1]),
    ],
)
def test_order_of_each_step(name, order, steps, orders):
    # The last non-zero weight tells the order; single-step order 3 has no use for its middle prediction.
    weights = rc.make_solver(name, steps, order=order).weights
    assert [int(np.flatnonzero(row)[-1]) + 1 for row in weights] == orders


@pytest.mark.parametrize(("name", "order"), SOLVERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_a_point_mass_is_recovered(name, order, prediction, spacing):
    """With all data at x0, the solution is α x0 + σ ε, which every solver reaches in any number of steps."""
    schedule = rc.betas()
    x0, noise = normal(0, 2, 1, 3, 3, 2)
    solver = rc.make_solver(name, 5, order=order, prediction=prediction, spacing=spacing)
    start = add_noise(x0, noise, int(solver.timesteps[0]), schedule)
    end = x0 if name == "ddim" else add_noise(x0, noise, 0, schedule)
    x, last_x0 = rc.integrate(exact_model(x0, prediction, schedule), start, solver)
    np.testing.assert_allclose(last_x0, x0, atol=1e-4)
    np.testing.assert_allclose(x, end, atol=1e-4)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm_single", 2), ("dpm_multi", 2)])
def test_order_of_convergence(name, order):
    """Halving the step divides the error by 2^order. Data x_0 ~ N(1, ¼): the ODE has a closed solution."""
    bars = 1 / (1 + np.exp(2 * np.linspace(-2, 2, 4096)))  # λ linear in t: steps of equal length
    schedule = 1 - bars / np.append(1.0, bars[:-1])
    deviation = np.sqrt(bars / 4 + 1 - bars)

    def model(x, t):
        bar = jnp.asarray(bars, jnp.float32)[t]
        return jnp.sqrt(1 - bar) * (x - jnp.sqrt(bar)) / (bar / 4 + 1 - bar)

    def error(steps):
        solver = rc.make_solver(name, steps, order=order, betas=schedule)
        x, _ = rc.integrate(model, jnp.array([2.0]), solver)
        if name == "ddim":  # it ends beyond t = 0, at the data: ᾱ = 1, deviation ½
            return float(x[0]) - (1 + 0.5 / deviation[-1] * (2 - np.sqrt(bars[-1])))
        return float(x[0]) - (np.sqrt(bars[0]) + deviation[0] / deviation[-1] * (2 - np.sqrt(bars[-1])))

    assert error(16) / error(32) == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize(("name", "order"), SOLVERS)
@pytest.mark.parametrize("schedule", ["squared_linear", "cosine", "alphas_cumprod_linear", "sigmoid"])
def test_terminal_pure_noise_stays_finite_and_exact(name, order, schedule):
    values = rc.betas(schedule, terminal_pure_noise=True)
    x0, noise = normal(1, 2, 1, 3, 3, 2)
    solver = rc.make_solver(name, 20, order=order, betas=values, prediction="v_prediction")
    start = add_noise(x0, noise, 999, values)
    x, last_x0 = rc.integrate(exact_model(x0, "v_prediction", values), start, solver)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(last_x0, x0, atol=1e-4)


def test_first_step_from_pure_noise_is_ddim():
    values = rc.betas(terminal_pure_noise=True)
    solver = rc.make_solver("dpm_multi", 20, order=3, betas=values, prediction="v_prediction")
    reference = rc.make_solver("ddim", 20, betas=values, prediction="v_prediction")
    for i in (0, 1):  # λ = −∞ behind step 1 lowers it to order 1 as well
        np.testing.assert_allclose(solver.weights[i], [reference.weights[i, 0], 0, 0], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(solver.decay[i], reference.decay[i], rtol=1e-6)


def test_driving_init_and_step_equals_integrate():
    solver = rc.make_solver(steps=6)
    x = nhwc(GOLDEN["x_T"])
    state = solver.init(x)
    for i in range(solver.steps):
        state = solver.step(state, i, golden_model(state.x, solver.timesteps[i]))
    final, x0 = rc.integrate(golden_model, x, solver)
    np.testing.assert_allclose(state.x, final, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.x0, x0, rtol=1e-5, atol=1e-5)


def test_state_is_float32_whatever_the_model_computes_in():
    solver = rc.make_solver(steps=3)
    state = solver.init(jnp.ones((1, 2, 2, 1), jnp.bfloat16))
    state = solver.step(state, 0, jnp.ones((1, 2, 2, 1), jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_one_trace_for_solvers_of_one_size():
    traces = []

    @jax.jit
    def run(x, solver):
        traces.append(1)
        return rc.integrate(golden_model, x, solver)

    x = jnp.asarray(GOLDEN["x_T"])
    single, again = (run(x, rc.make_solver(name, 10))[0] for name in ("dpm_single", "dpm_multi"))
    assert len(traces) == 1
    assert not np.allclose(single, again)


def test_training_targets():
    schedule = rc.betas()
    x0, noise = normal(2, 2, 3, 4, 4, 2)
    t = jnp.array([0, 500, 999])
    noisy = jax.jit(functools.partial(add_noise, betas=schedule))(x0, noise, t)
    assert noisy.dtype == jnp.float32

    bars = np.cumprod(1 - schedule.astype(np.float64))[np.asarray(t)].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(noisy, np.sqrt(bars) * x0 + np.sqrt(1 - bars) * noise, atol=1e-5)
    v = velocity(x0, noise, t, schedule)
    np.testing.assert_allclose(np.sqrt(bars) * noisy - np.sqrt(1 - bars) * v, x0, atol=1e-5)
    np.testing.assert_allclose(snr(schedule)[t], (bars / (1 - bars)).ravel(), rtol=1e-5)
    np.testing.assert_allclose(add_noise(x0, noise, 500, schedule)[1], noisy[1], atol=1e-6)


def test_noise_added_later_is_as_if_added_at_once():
    """Two parts of independent noise have the deviation of one."""
    schedule = rc.betas()
    t, later = jnp.array([0, 300]), jnp.array([600, 600])
    start = add_noise(jnp.ones((2, 4)), 0.0, t, schedule)
    noisier = add_more_noise(start, 0.0, t, later, schedule)
    np.testing.assert_allclose(noisier, add_noise(jnp.ones((2, 4)), 0.0, later[:2], schedule), rtol=1e-5)
    parts = [add_more_noise(x, y, t, later, schedule) for x, y in (
        (add_noise(0.0 * start, 1.0, t, schedule), 0.0), (0.0 * start, 1.0))]
    whole = add_noise(0.0 * start, 1.0, later, schedule)
    np.testing.assert_allclose(np.hypot(*parts), whole, rtol=1e-4)


def test_shift_multiplies_the_snr():
    np.testing.assert_allclose(snr(rc.betas(shift_snr=0.25)), 0.25 * snr(rc.betas()), rtol=2e-3)


def test_terminal_pure_noise_ends_at_snr_zero():
    assert snr(rc.betas(terminal_pure_noise=True))[-1] == 0
    assert snr(rc.betas())[-1] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rc.betas("linear"), "known are squared_linear, cosine"),
        (lambda: rc.betas(num_steps=0), "must be positive"),
        (lambda: rc.betas(shift_snr=0.0), "must be positive"),
        (lambda: rc.make_solver("dpm_singel"), "did you mean 'dpm_single'"),
        (lambda: rc.make_solver(prediction="eps"), "known are epsilon, v_prediction"),
        (lambda: rc.make_solver(spacing="karras"), "known are trailing, linspace, leading"),
        (lambda: rc.make_solver("ddim", karras=True), "only euler and dpm_multi have Karras' levels"),
        (lambda: rc.make_solver("lcm", 8, original_steps=4), "at most original_steps=4 steps.*got 8"),
        (lambda: rc.make_solver("euler", karras=True, betas=rc.betas(terminal_pure_noise=True)),
         "use prediction='v_prediction'"),
        (lambda: rc.integrate(golden_model, np.ones(3), rc.make_solver("lcm", 4)), "fresh noise .* \\(4, 3\\)"),
        (lambda: rc.integrate(golden_model, np.ones(3), rc.make_solver(), np.ones((25, 3))), "give none"),
        (lambda: rc.make_solver(order=4), "order must be 1, 2 or 3, got 4"),
        (lambda: rc.make_solver(steps=0), "between 1 and the schedule's 1000 timesteps, got 0"),
        (lambda: rc.make_solver(steps=1001), "got 1001"),
        (lambda: rc.make_solver("euler", 4.5), "steps must be a whole number between 1 and .* got 4.5"),
        (lambda: rc.make_solver(betas=np.full(10, np.nan)), "values in \\(0, 1\\]"),
        (lambda: rc.make_solver(betas=np.zeros((5, 2))), "shape \\(5, 2\\)"),
        (lambda: rc.make_solver(betas=rc.betas(terminal_pure_noise=True)), "use prediction='v_prediction'"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpm_multi"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_schedules_that_end_in_pure_noise_have_numbers(name, spacing):
    """Their first noise level is infinite; like diffusers', ours is that of ᾱ = 2⁻²⁴."""
    solver = rc.make_solver(name, 4, betas=rc.betas(terminal_pure_noise=True), prediction="v_prediction",
                            spacing=spacing, as_diffusers=True)
    for table in (solver.to_x0, solver.decay, solver.weights, solver.levels):
        assert np.isfinite(table).all()
    np.testing.assert_allclose(solver.levels[0], [2**-12, 1], atol=1e-6)


def test_halves_are_rounded_as_diffusers_rounds_them():
    """16 trailing timesteps of 1000 lie at 936.5 and so on: the released schedules round these down, diffusers up."""
    assert rc.make_solver("dpm_single", 16).timesteps[:2].tolist() == [999, 936]
    for name, options in (("euler", {}), ("euler_ancestral", {}), ("ddim", {"as_diffusers": True})):
        assert rc.make_solver(name, 16, **options).timesteps[:2].tolist() == [999, 937]


def test_diffusers_solvers_end_without_noise():
    """Spaced for one step more, and with a last step of order 1."""
    multi = rc.make_solver("dpm_multi", 4, order=3, spacing="linspace", as_diffusers=True)
    assert multi.timesteps.tolist() == [999, 749, 500, 250] and multi.levels[-1].tolist() == [1, 0]
    assert (multi.weights != 0).sum(axis=1).tolist() == [1, 2, 2, 1]
    single = rc.make_solver("dpm_single", 5, order=3, spacing="linspace", as_diffusers=True)
    assert single.restart.tolist() == [True, False, False, True, True]
    ddim = rc.make_solver("ddim", 3, spacing="linspace", as_diffusers=True)  # whose steps all have a third's length
    bars = np.cumprod(1 - np.float64(rc.betas()))
    np.testing.assert_allclose(ddim.decay[0], np.sqrt((1 - bars[666]) / (1 - bars[999])), rtol=1e-5)
