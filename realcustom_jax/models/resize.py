"""The samplings that the original models use, on NHWC arrays: two bilinear ones, the bicubic one, and means over the
places of a coarser grid.

The samplings differ in where the output samples lie on the input axis of n pixels (m output pixels, j = 0 … m − 1):

    half pixel      u_j = (j + ½) · n / m − ½     torch ``interpolate(mode="bilinear", align_corners=False)``
    align corners   u_j = j · (n − 1) / (m − 1)   torch ``interpolate(mode="bilinear", align_corners=True)``

A sample interpolates its two neighbours linearly, positions outside the input are clamped to its edge, and no
low-pass filter is applied when shrinking.
"""

from collections.abc import Sequence

import jax
import numpy as np


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Half-pixel bilinear resize without antialiasing: float [B, H, W, C] -> [B, h, w, C], size = (h, w)."""
    batch, _, _, channels = x.shape
    return jax.image.resize(x, (batch, *size, channels), method="bilinear", antialias=False)


def resize_bilinear_on_host(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`resize_bilinear` of arrays of numpy, which compiles nothing: for pictures that are all of different sizes."""
    for axis, length in zip((1, 2), size, strict=True):
        x = _lerp_along(x, axis, *bilinear_places(x.shape[axis], length))
    return x


def bilinear_places(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, weight of high) [size]: between which of `length` pixels `resize_bilinear` finds each of its own."""
    return _between(np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1), length)


def lerp(low, high, weight):
    """Between two arrays of the same type, of numpy or of JAX."""
    return low * (1 - weight) + high * weight


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize in which corner pixels map onto corner pixels: float [B, H, W, C] -> [B, h, w, C].

    An output axis of one pixel takes the first input pixel, as torch does.
    """
    for axis, length in zip((1, 2), size, strict=True):
        x = _lerp_along(x, axis, *_between(np.linspace(0, x.shape[axis] - 1, length), x.shape[axis]))
    return x


def resize_bicubic_on_host(
    x: np.ndarray, size: tuple[int, int], factors: Sequence[float] | None = None,
) -> np.ndarray:
    """Half-pixel bicubic resize without antialiasing: float numpy [B, H, W, C] -> [B, h, w, C], size = (h, w).

    The kernel is Keys' with a = −¾, as in torch ``interpolate(mode="bicubic", align_corners=False)``. `factors`, for
    each axis, are those that torch is given in place of a size, where m / n is not exactly what the sampling goes by.
    """
    for axis, length in zip((1, 2), size, strict=True):
        factor = factors[axis - 1] if factors else length / x.shape[axis]
        matrix = _cubic_weights(x.shape[axis], length, factor).astype(x.dtype)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def _cubic_weights(length: int, size: int, factor: float) -> np.ndarray:
    """[size, length]: of which pixels each new one is the weighted sum."""
    a = -0.75
    positions = (np.arange(size) + 0.5) / factor - 0.5
    first = np.floor(positions).astype(int) - 1
    matrix = np.zeros((size, length))
    for tap in range(4):
        d = np.abs(positions - (first + tap))
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
        np.add.at(matrix, (np.arange(size), np.clip(first + tap, 0, length - 1)), np.where(d <= 1, near, far))
    return matrix


def average_pixels(x, size: tuple[int, int]):
    """The means of x [..., H, W] over the places of a grid of size (h, w), whose sides divide H and W: [..., h, w].

    x is an array of numpy or of JAX, and so is the result.
    """
    *lead, height, width = x.shape
    h, w = size
    return x.reshape(*lead, h, height // h, w, width // w).mean((-3, -1))


def _between(positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low = np.floor(positions).astype(np.int32)
    return low, np.minimum(low + 1, length - 1), positions - low


def _lerp_along(x, axis: int, low: np.ndarray, high: np.ndarray, weight: np.ndarray):
    """x, an array of numpy or of JAX, between its pixels along an axis."""
    weight_shape = [1] * x.ndim
    weight_shape[axis] = -1
    return lerp(x.take(low, axis), x.take(high, axis), weight.astype(x.dtype).reshape(weight_shape))
