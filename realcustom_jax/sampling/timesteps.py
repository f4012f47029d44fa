"""The timesteps at which a solver asks the network, and the noise there (module `solvers` says what α and σ are)."""

import numpy as np

_RHO = 7.0  # of Karras' noise levels (arXiv 2206.00364, equation 5)
_FAINTEST = 2.0**-24  # diffusers' least ᾱ, where a schedule ends in pure noise


def signal_and_noise(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α_t and σ_t, float64 [T], of betas [T]. Raises ValueError unless these are a vector of values in (0, 1]."""
    values = np.asarray(betas, np.float64)
    if values.ndim != 1 or not np.all((values > 0) & (values <= 1)):
        raise ValueError(
            f"betas must be a vector of values in (0, 1], got shape {values.shape} with values from "
            f"{values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}."
        )
    return _roots(np.cumprod(1 - values))


def signal_and_noise_in_diffusers(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `signal_and_noise`, but of 1 − β in float32, by which Karras' timesteps are rounded, and of pure noise with a
    trace of signal, so that its noise level σ / α is a number."""
    signal_and_noise(betas)
    bars = np.cumprod(np.float64(np.float32(1) - np.asarray(betas, np.float32)))
    return _roots(np.where(bars == 0, _FAINTEST, bars))


def _roots(bars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sqrt(bars), np.sqrt(1 - bars)


def spaced(
    spacing: str, steps: int, num_train: int, offset: int = 0, *, whole: bool = True, from_end: bool = False,
    spare: bool = False,
) -> np.ndarray:
    """Exactly `steps` descending timesteps: int32, or float32 where they are not to be `whole` and are not.

    Args:
        spacing: trailing | linspace | leading. offset: is added to leading ones.
        from_end: whether trailing ones are rounded as numbers of steps from the end of the schedule, as in diffusers,
            which differs where they lie halfway (16, 32, 48 … of 1000).
        spare: whether linspace and leading ones are those of one step more, of which the last is left out.
    """
    if spacing == "trailing":
        if from_end:  # in diffusers' words, as rounding halves hangs on the last bit
            return (np.round(np.arange(num_train, 0, -num_train / steps)[:steps]) - 1).astype(np.int32)
        return np.round(num_train - 1 - np.arange(steps) * num_train / steps).astype(np.int32)
    count = steps + 1 if spare else steps
    if spacing == "linspace":
        timesteps = np.linspace(0, num_train - 1, count)[::-1][:steps]
        return np.round(timesteps).astype(np.int32) if whole else timesteps.astype(np.float32)
    timesteps = np.arange(count)[::-1][:steps] * (num_train // count) + offset
    return np.minimum(timesteps, num_train - 1).astype(np.int32)


def of_distillation(original_steps: int, steps: int, num_train: int) -> np.ndarray:
    """`steps` descending timesteps out of the `original_steps` that a consistency model was distilled for. Raises
    ValueError where there are not as many."""
    if not 1 <= steps <= original_steps <= num_train:
        raise ValueError(f"lcm takes at most original_steps={original_steps} steps, and these at most the schedule's "
                         f"{num_train} timesteps; got {steps} steps.")
    original = np.arange(1, original_steps + 1) * (num_train // original_steps) - 1
    chosen = np.floor(np.linspace(0, original_steps, steps, endpoint=False)).astype(int)
    return original[::-1][chosen].astype(np.int32)


def at_timesteps(timesteps: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α and σ at timesteps that may lie between those of the schedule [T]."""
    if np.issubdtype(timesteps.dtype, np.integer):
        return alpha[timesteps], sigma[timesteps]
    return _unit_variance(np.interp(timesteps, np.arange(len(alpha)), sigma / alpha))


def karras(timesteps: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, *, within: bool):
    """(timesteps, α, σ) of Karras' noise levels, as many as `timesteps`.

    `within`: they lie between the levels of these timesteps, and become the fractional ones of equal noise, as Euler's
    do. Else between the levels of the whole schedule [T], to whose timesteps they are rounded, as those of DPM-Solver.
    """
    ratios, every = sigma / alpha, np.arange(len(alpha))
    highest, lowest = np.interp(timesteps[[0, -1]] if within else every[[-1, 0]], every, ratios)
    ramp = np.linspace(0, 1, len(timesteps))
    levels = (highest ** (1 / _RHO) + ramp * (lowest ** (1 / _RHO) - highest ** (1 / _RHO))) ** _RHO
    equal = np.interp(np.log(levels), np.log(ratios), every)
    return (equal.astype(np.float32) if within else np.round(equal).astype(np.int32)), *_unit_variance(levels)


def _unit_variance(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α and σ, α² + σ² = 1, of their ratio σ / α."""
    alpha = 1 / np.sqrt(ratio**2 + 1)
    return alpha, ratio * alpha
