"""The golden arrays of the original torch implementations (``tests/fixtures/NAME.npz``)."""

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of ``tests/fixtures/NAME.npz``, in torch's layouts."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_close(ours, golden, tol: float = 2e-4) -> None:
    """max |ours − golden| ≤ tol · max |golden|, with equal shapes; NaN fails."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    assert ours.shape == golden.shape, f"shape {ours.shape}, golden {golden.shape}"
    error, scale = np.abs(ours - golden).max(), np.abs(golden).max()
    assert error <= tol * scale, f"max |ours - golden| = {error:.3e}, allowed {tol:g} x {scale:.3e}"


def nhwc(x: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC."""
    return np.moveaxis(np.asarray(x), 1, -1)


def nchw(x: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW."""
    return np.moveaxis(np.asarray(x), -1, 1)
