"""Noise schedules and the deterministic solvers of the diffusion ODE.

**Forward process** (DDPM, arXiv 2006.11239). With β_t, t = 0 … T − 1, and ᾱ_t = Π_{s ≤ t} (1 − β_s),

    x_t = α_t x_0 + σ_t ε,      α_t = √ᾱ_t,   σ_t = √(1 − ᾱ_t),   λ_t = ln(α_t / σ_t),   SNR_t = α_t² / σ_t².

A network that predicts ε or the velocity v = α_t ε − σ_t x_0 (arXiv 2202.00512, section 4) also predicts x_0:

    x_0 = (x_t − σ_t ε) / α_t = α_t x_t − σ_t v.

**Solvers.** DPM-Solver++ (arXiv 2211.01095, section 4) integrates the ODE exactly except for the predicted
x_0, m, which it replaces by a polynomial in λ. From time s to time t, with h = λ_t − λ_s, predictions m0
(newest), m1, m2, and E = α_t − α_s σ_t / σ_s (which is −α_t (e^{−h} − 1)), the updates of order 1, 2, 3 are

    all         x_t = (σ_t / σ_s) x_s + …
    order 1     … E m0
    single, 2   … E m1 + ½ E h d           d = (m0 − m1) / (λ_0 − λ_1)
    single, 3   … E m2 + (α_t h − E) d     d = (m0 − m2) / (λ_0 − λ_2)
    multi,  2   … E m0 + ½ E h d0          d0 = (m0 − m1) / (λ_0 − λ_1)
    multi,  3   … E m0 + (α_t h − E) (d0 + (λ_0 − λ_1) c) − (α_t h − ½ α_t h² − E) c
                                           d1 = (m1 − m2) / (λ_1 − λ_2),   c = (d0 − d1) / (λ_0 − λ_2)

where λ_k belongs to the time at which m_k was predicted. A *multistep* update starts from the newest point
(s = 0). A *single-step* update of order p starts again from the anchor, the point p − 1 steps back; its
second order is the midpoint rule ("2S"). The last term of multi 3 is half of the exact integral, as
released. DDIM (arXiv 2010.02502, equation 12, deterministic) is order 1. So is Euler's method for the ODE in
x_t / α_t and σ_t / α_t (arXiv 2206.00364, algorithm 1). No h stands in a denominator: a
last step of length zero is the identity. λ = −∞ (ᾱ = 0 at t = T − 1) enters only through 1 / (λ_0 − λ_k),
which is then 0: the update falls back to the lower order.

Two solvers draw fresh noise ε in each step. With r = α_s σ_t / (α_t σ_s) < 1, the ancestral Euler method
(arXiv 2206.00364, appendix; "Euler a") and the sampler of latent consistency models (arXiv 2310.04378) are

    euler_ancestral     x_t = (r σ_t / σ_s) x_s + α_t (1 − r²) m0 + σ_t √(1 − r²) ε
    lcm                 x_t = α_t (c_skip x_s + c_out m0) + σ_t ε
                        c_skip = ¼ / ((10 s)² + ¼),   c_out = 10 s / √((10 s)² + ¼)

So every step of every solver is

    x' = decay · anchor + Σ_k weights_k m_k + fresh · ε,

and a ``Solver`` is nothing but the tables of these coefficients. Orders follow the released schedulers
(``dpm_s.py``, ``dpm_m.py``, ``ddim.py``): single-step 1, then 1 … p repeating; multistep rises to p and, with
fewer than 15 steps, falls again at the end. The last step goes to t = 0, that of DDIM, of Euler's methods and of
Karras' noise levels to ᾱ = 1. Euler's methods, lcm and `karras` are those of diffusers' EulerDiscreteScheduler,
EulerAncestralDiscreteScheduler, LCMScheduler and DPMSolverMultistepScheduler, but for the scale of x. So are the
others where they are asked for `as_diffusers`, as a model folder's scheduler is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from realcustom_jax.arrays import Array
from realcustom_jax.errors import check_choice
from realcustom_jax.sampling.timesteps import (
    at_timesteps,
    of_distillation,
    signal_and_noise,
    signal_and_noise_in_diffusers,
    spaced,
)
from realcustom_jax.sampling.timesteps import karras as levels_of_karras

# -------------------- noise schedules


def _cosine(u: np.ndarray) -> np.ndarray:
    """ᾱ(u) of Improved DDPM (arXiv 2102.09672, equation 17), up to a factor."""
    return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2


def _linear(u: np.ndarray) -> np.ndarray:
    return 1 - u


def _sigmoid(u: np.ndarray) -> np.ndarray:
    """Squared sigmoid of slope 0.7 on (−6, 6), rescaled to run from 1 to 0 (GeoDiff, arXiv 2203.02923)."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-0.7 * z))

    return ((sigmoid(6 - 12 * u) - sigmoid(-6)) / (sigmoid(6) - sigmoid(-6))) ** 2


_ALPHA_BARS = {"cosine": _cosine, "alphas_cumprod_linear": _linear, "sigmoid": _sigmoid}


def betas(
    name: str = "squared_linear",
    num_steps: int = 1000,
    shift_snr: float = 1.0,
    terminal_pure_noise: bool = False,
) -> np.ndarray:
    """The noise variances β_t of a named schedule.

    Args:
        name: squared_linear is Stable Diffusion's (√β linear from √0.00085 to √0.012); cosine, alphas_cumprod_linear
            and sigmoid are defined by ᾱ(t / T), with β ≤ 0.999.
        num_steps: T.
        shift_snr: multiplies the SNR of every step (arXiv 2301.11093).
        terminal_pure_noise: makes the last ᾱ zero (arXiv 2305.08891, algorithm 1), where only v prediction is defined.
    Returns:
        float32 [T].
    Raises:
        ValueError: an unknown name, or settings that are not positive.

    >>> values = betas()
    >>> values.shape
    (1000,)
    >>> print(values[[0, -1]])
    [0.00085 0.012  ]
    """
    check_choice("schedule", name, ("squared_linear", *_ALPHA_BARS))
    if num_steps < 1 or not shift_snr > 0:
        raise ValueError(f"num_steps and shift_snr must be positive, got {num_steps} and {shift_snr}.")

    if name == "squared_linear":
        values = np.linspace(0.00085**0.5, 0.012**0.5, num_steps) ** 2
    else:
        levels = _ALPHA_BARS[name](np.arange(num_steps + 1) / num_steps)
        values = np.minimum(1 - levels[1:] / levels[:-1], 1.0 if terminal_pure_noise else 0.999)

    if shift_snr != 1:
        bars = np.cumprod(1 - values)
        values = _betas_from_alpha_bars(shift_snr * bars / (1 - bars + shift_snr * bars))
    if terminal_pure_noise and name == "squared_linear":
        alphas = np.sqrt(np.cumprod(1 - values))
        values = _betas_from_alpha_bars(((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2)
    return values.astype(np.float32)


def _betas_from_alpha_bars(bars: np.ndarray) -> np.ndarray:
    return 1 - bars / np.concatenate([[1.0], bars[:-1]])


def snr(betas: ArrayLike) -> jax.Array:
    """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t) of every timestep: float32 [T]."""
    alpha, sigma = signal_and_noise(betas)
    return jnp.asarray((alpha / sigma) ** 2, jnp.float32)


def add_noise(x0: jax.Array, noise: jax.Array, t: ArrayLike, betas: ArrayLike) -> jax.Array:
    """A sample of q(x_t | x_0), α_t x_0 + σ_t ε: float32 [B, …].

    ``x0`` and ``noise``: [B, …]; ``t``: int [B] or scalar, may be traced; ``betas``: [T], concrete.
    """
    alpha, sigma = _at_timestep(t, betas, x0.ndim)
    return alpha * x0 + sigma * noise


def add_more_noise(x: jax.Array, noise: jax.Array, t: ArrayLike, later: ArrayLike, betas: ArrayLike) -> jax.Array:
    """A sample of q(x_s | x_t), √(ᾱ_s/ᾱ_t) x_t + √(1 − ᾱ_s/ᾱ_t) ε, for ``later`` = s ≥ t; else as in ``add_noise``."""
    before, after = (_at_timestep(at, betas, x.ndim)[0] for at in (t, later))
    kept = after / before
    return kept * x + jnp.sqrt(jnp.maximum(1 - kept**2, 0)) * noise


def velocity(x0: jax.Array, noise: jax.Array, t: ArrayLike, betas: ArrayLike) -> jax.Array:
    """The target of v prediction, α_t ε − σ_t x_0; arguments as in ``add_noise``."""
    alpha, sigma = _at_timestep(t, betas, x0.ndim)
    return alpha * noise - sigma * x0


def _at_timestep(t: ArrayLike, betas: ArrayLike, ndim: int) -> list[jax.Array]:
    shape = (-1,) + (1,) * (ndim - 1)
    return [jnp.asarray(table, jnp.float32)[t].reshape(shape) for table in signal_and_noise(betas)]


# -------------------- solvers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SolverState:
    """What a solver carries between steps, all float32."""

    x: jax.Array
    """[…]: the current sample."""
    anchor: jax.Array
    """[…]: the sample from which a single-step update restarts."""
    history: jax.Array
    """[order, …]: the x_0 predictions, newest first."""

    @property
    def x0(self) -> jax.Array:
        """The newest x_0 prediction."""
        return self.history[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Solver:
    """A solver as tables with one row per step; a pytree, which a jitted function can close over or take."""

    timesteps: np.ndarray
    """[steps]: the timestep that the network sees, descending; int32, or float32 where some lie between the
    schedule's."""
    to_x0: np.ndarray
    """float32 [steps, 2]: x_0 = to_x0[0] · x + to_x0[1] · prediction."""
    restart: np.ndarray
    """bool [steps]: whether the current sample becomes the anchor."""
    decay: np.ndarray
    """float32 [steps]: the coefficient of the anchor."""
    weights: np.ndarray
    """float32 [steps, order]: the coefficients of the x_0 predictions, newest first."""
    levels: np.ndarray
    """float32 [steps + 1, 2]: the noise level (α, σ) at which each step begins, and that of the end."""
    fresh: np.ndarray | None = None
    """float32 [steps]: the coefficient of each step's noise; None for a deterministic solver."""
    start: int = field(default=0, metadata={"static": True})
    """How many of the schedule's first steps are left out."""

    @property
    def steps(self) -> int:
        return self.timesteps.shape[0]

    def init(self, x: jax.Array) -> SolverState:
        """The state before step 0; ``x``: […] pure noise of unit variance, any float dtype."""
        x = jnp.asarray(x, jnp.float32)
        return SolverState(x, x, jnp.zeros((self.weights.shape[1], *x.shape), jnp.float32))

    def noisy(self, x0: jax.Array, noise: jax.Array, i: ArrayLike) -> jax.Array:
        """``x0`` […] with the noise that a sample has before step i (may be traced), or with i = steps at the end."""
        level = jnp.asarray(self.levels)[i]
        return level[0] * x0 + level[1] * noise

    def check_noise(self, noise: jax.Array | None, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless ``noise``, of all steps, is what this solver takes for samples of this shape."""
        expected = None if self.fresh is None else (self.steps, *shape)
        given = None if noise is None else noise.shape
        if given != expected:
            raise ValueError(f"the noise of the steps has shape {given}; this solver " + (
                "draws none, so give none." if expected is None else
                f"adds fresh noise in each step and expects {expected}, of unit variance."))

    def step(self, state: SolverState, i: ArrayLike, prediction: jax.Array, noise: jax.Array | None = None
             ) -> SolverState:
        """Step i (may be traced), given the network's ``prediction`` at ``state.x`` and ``timesteps[i]``, and, of a
        solver that draws it, this step's ``noise``, of x's shape and unit variance."""
        row = jax.tree.map(lambda table: jnp.asarray(table)[i], self)
        x0 = row.to_x0[0] * state.x + row.to_x0[1] * jnp.asarray(prediction, jnp.float32)
        history = jnp.concatenate([x0[None], state.history[:-1]])
        anchor = jnp.where(row.restart, state.x, state.anchor)
        # An elementwise sum rather than a dot product: accelerators round the operands of dots to fewer bits.
        x = row.decay * anchor + jnp.sum(row.weights.reshape(-1, *(1,) * x0.ndim) * history, axis=0)
        if self.fresh is not None:
            x = x + row.fresh * noise
        return SolverState(x, anchor, history)


def integrate(
    model_fn: Callable[[jax.Array, jax.Array], jax.Array], x: Array, solver: Solver,
    noise: Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Solves the diffusion ODE from noise to a sample, in one scan.

    Args:
        model_fn: (x, t) -> the prediction […], of a float32 sample […] and a scalar timestep.
        x: […] noise of unit variance.
        solver: of `make_solver`, for the same kind of prediction.
        noise: [steps, …] of unit variance, for a solver that draws some in each step, and only for such.
    Returns:
        (final sample, last x_0 prediction), both float32 […].
    Raises:
        ValueError: noise of another shape.

    A model whose pictures are all zeros: it takes everything that it sees for noise.

    >>> import jax.numpy as jnp
    >>> solver = make_solver("ddim", steps=4)
    >>> sigma = jnp.sqrt(1 - jnp.cumprod(1 - betas()))
    >>> x, x0 = integrate(lambda x, t: x / sigma[t], jnp.ones(3), solver)
    >>> bool(abs(x0).max() < 1e-4)
    True
    """
    solver.check_noise(noise, jnp.shape(x))

    def step(state, i):
        fresh = None if noise is None else jnp.asarray(noise)[i]
        return solver.step(state, i, model_fn(state.x, jnp.asarray(solver.timesteps)[i]), fresh), None

    state, _ = jax.lax.scan(step, solver.init(x), jnp.arange(solver.steps))
    return state.x, state.x0


SOLVERS: tuple[str, ...] = ("dpm_single", "dpm_multi", "ddim", "euler", "euler_ancestral", "lcm")
"""The names that ``make_solver`` takes."""
_TO_NO_NOISE = "ddim", "euler", "euler_ancestral", "lcm"  # whose last step goes to ᾱ = 1
_WITH_KARRAS = "euler", "dpm_multi"
_PUBLISHED = "dpm_single", "dpm_multi", "ddim"  # with the original's own timesteps, unless asked for diffusers'


def make_solver(
    name: str = "dpm_single",
    steps: int = 25,
    *,
    order: int = 2,
    betas: ArrayLike | None = None,
    prediction: str = "epsilon",
    spacing: str = "trailing",
    steps_offset: int = 0,
    karras: bool = False,
    original_steps: int = 50,
    as_diffusers: bool = False,
    start: int = 0,
) -> Solver:
    """Builds the tables of a solver.

    Args:
        name: of `SOLVERS`; dpm_single and dpm_multi are of `order` 1 to 3, the others always of order 1, and
            euler_ancestral and lcm draw noise in each step.
        steps: how many; `timesteps` has exactly as many.
        betas: [T], or None for the default schedule.
        prediction: epsilon | v_prediction.
        spacing: trailing | linspace | leading (arXiv 2305.08891, table 2). steps_offset: is added to leading ones.
        karras: noise levels evenly spaced in their seventh roots (euler and dpm_multi only).
        original_steps: of the distillation of a consistency model, among whose timesteps lcm's are; lcm has no spacing.
        as_diffusers: dpm_single, dpm_multi and ddim with the timesteps, orders and ends of diffusers' schedulers
            instead of the released ones'; the others always are as diffusers'.
        start: how many of the first steps are left out, for a picture that begins with that much less noise.
    Raises:
        ValueError: an unknown name, an order outside 1 to 3, steps outside 1 to T, what a solver does not have, epsilon
            prediction from pure noise, and a start that leaves no step.

    >>> print(make_solver("euler", steps=4).timesteps)
    [999 749 499 249]
    """
    check_choice("solver", name, SOLVERS)
    check_choice("prediction", prediction, ("epsilon", "v_prediction"))
    check_choice("spacing", spacing, ("trailing", "linspace", "leading"))
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}.")
    if karras and name not in _WITH_KARRAS:
        raise ValueError(f"karras=True with solver {name!r}: only {' and '.join(_WITH_KARRAS)} have Karras' levels.")
    of_diffusers = as_diffusers or karras or name not in _PUBLISHED
    betas = _default_betas() if betas is None else betas
    every = (signal_and_noise_in_diffusers if of_diffusers and name not in ("ddim", "lcm") else signal_and_noise)(betas)
    count = len(every[0])
    if not (hasattr(steps, "__index__") and 1 <= steps <= count):
        raise ValueError(f"steps must be a whole number between 1 and the schedule's {count} timesteps, got {steps}.")

    if not 0 <= start < steps:
        raise ValueError(f"start leaves out {start} of {steps} steps; expected 0 to {steps - 1}.")

    # diffusers' DPM solvers end without noise, by a step of order 1: in λ the way there is infinitely long.
    to_no_noise = name in _TO_NO_NOISE or of_diffusers
    if name == "lcm":
        timesteps = of_distillation(original_steps, steps, count)
    else:
        # Euler's methods take evenly spaced timesteps as they are; the others round them.
        timesteps = spaced(spacing, steps, count, steps_offset, whole=not name.startswith("euler"),
                           from_end=of_diffusers, spare=of_diffusers and name.startswith("dpm"))
    if karras:
        timesteps, alpha, sigma = levels_of_karras(timesteps, *every, within=name == "euler")
    else:
        alpha, sigma = at_timesteps(timesteps, *every)
    timesteps, alpha, sigma = timesteps[start:], alpha[start:], sigma[start:]
    if prediction == "epsilon" and not np.all(signal_and_noise(betas)[0][np.ceil(timesteps).astype(int)] > 0):
        raise ValueError(
            "Epsilon prediction is undefined at a timestep of pure noise (alpha = 0): use "
            "prediction='v_prediction' or betas without terminal_pure_noise."
        )
    to_x0 = [alpha, -sigma] if prediction == "v_prediction" else [1 / alpha, -sigma / alpha]

    # Entry i is the noise level at which step i starts, entry i + 1 the one that it goes to.
    last = (1.0, 0.0) if to_no_noise else (every[0][0], every[1][0])
    alpha, sigma = np.append(alpha, last[0]), np.append(sigma, last[1])
    targets = np.stack([alpha[1:], sigma[1:]], axis=1)
    if name == "ddim" and as_diffusers:
        # Its steps all have one length, also where the timesteps' distances are rounded, or are those of linspace.
        goals = timesteps - count // steps
        targets = np.where(goals[:, None] < 0, last, np.stack(every, axis=1)[np.maximum(goals, 0)])
    orders = _step_orders(name, steps, order, start, of_diffusers)
    decay, weights, fresh = np.zeros(len(orders)), np.zeros((len(orders), orders.max())), None
    if name in _DRAWING:
        decay, weights[:, 0], fresh = _DRAWING[name](timesteps, alpha, sigma)
        fresh = fresh.astype(np.float32)
    else:
        for i, p in enumerate(orders):
            levels = (np.append(x[: i + 1], target) for x, target in zip((alpha, sigma), targets[i], strict=True))
            decay[i], weights[i, :p] = _coefficients(*levels, p, name == "dpm_single")
    return Solver(
        timesteps=timesteps,
        to_x0=np.stack(to_x0, axis=1).astype(np.float32),
        restart=np.logical_or(name != "dpm_single", orders == 1),
        decay=decay.astype(np.float32),
        weights=weights.astype(np.float32),
        levels=np.stack([alpha, sigma], axis=1).astype(np.float32),
        fresh=fresh,
        start=start,
    )


_default_betas = betas  # inside make_solver the argument of the same name hides the function


def _euler_ancestral(timesteps, alpha, sigma):
    """(decay, weight, fresh) [steps] for the noise levels [steps + 1]."""
    r = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    return r * sigma[1:] / sigma[:-1], alpha[1:] * (1 - r**2), sigma[1:] * np.sqrt(1 - r**2)


def _consistency(timesteps, alpha, sigma):
    """As `_euler_ancestral`. Ten times the timestep, and data of standard deviation one half."""
    time = 10.0 * timesteps
    return alpha[1:] * 0.25 / (time**2 + 0.25), alpha[1:] * time / np.sqrt(time**2 + 0.25), sigma[1:]


_DRAWING = {"euler_ancestral": _euler_ancestral, "lcm": _consistency}
"""The solvers that draw noise in each step, and what gives their coefficients."""


def _step_orders(name: str, steps: int, order: int, start: int, of_diffusers: bool) -> np.ndarray:
    """The order of each step from `start` on, which has no predecessors."""
    i = np.arange(steps - start)
    if name == "dpm_single":
        orders = i % order + 1 if of_diffusers else np.where(i == 0, 1, (i - 1) % order + 1)
    elif name == "dpm_multi":
        rising = np.minimum(i + 1, order)
        orders = np.minimum(rising, len(i) - i) if steps < 15 else rising
    else:
        return np.ones_like(i)
    return np.append(orders[:-1], 1) if of_diffusers else orders


def _coefficients(alpha: np.ndarray, sigma: np.ndarray, order: int, single: bool) -> tuple[float, np.ndarray]:
    """decay and weights [order] of one update; the last noise level is its target, the one before is m0's."""
    start = -1 - order if single else -2
    decay = sigma[-1] / sigma[start]
    e = alpha[-1] - alpha[start] * decay
    if order == 1:
        return decay, np.array([e])

    with np.errstate(divide="ignore"):
        target, *lam = (np.log(alpha[-2 - order :]) - np.log(sigma[-2 - order :]))[::-1]
    h = target - lam[order - 1 if single else 0]
    m = np.eye(order)  # row k stands for m_k
    oldest = m[order - 1]
    if order == 2:
        slope = (m[0] - m[1]) / (lam[0] - lam[1])
        return decay, e * (oldest if single else m[0]) + 0.5 * e * h * slope
    if single:
        return decay, e * oldest + (alpha[-1] * h - e) * (m[0] - oldest) / (lam[0] - lam[2])
    slope, older_slope = (m[0] - m[1]) / (lam[0] - lam[1]), (m[1] - m[2]) / (lam[1] - lam[2])
    curvature = (slope - older_slope) / (lam[0] - lam[2])
    first = (alpha[-1] * h - e) * (slope + (lam[0] - lam[1]) * curvature)
    second = (alpha[-1] * (h - h**2 / 2) - e) * curvature
    return decay, e * m[0] + first - second
