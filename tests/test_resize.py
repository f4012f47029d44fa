import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.resize import resize_align_corners, resize_bilinear, resize_bilinear_on_host

ROW = jnp.array([0.0, 4.0, 8.0, 12.0]).reshape(1, 1, 4, 1)


@pytest.mark.parametrize(
    ("resize", "width", "expected"),
    [
        (resize_bilinear, 2, [2, 10]),  # shrinking without antialias: the mean of the two middle neighbours
        (resize_bilinear, 8, [0, 1, 3, 5, 7, 9, 11, 12]),  # the edges are clamped
        (resize_bilinear, 1, [6]),
        (resize_align_corners, 2, [0, 12]),
        (resize_align_corners, 7, [0, 2, 4, 6, 8, 10, 12]),
        (resize_align_corners, 3, [0, 6, 12]),
        (resize_align_corners, 1, [0]),
    ],
)
def test_by_hand(resize, width, expected):
    np.testing.assert_allclose(resize(ROW, (1, width)).ravel(), expected, atol=1e-5)


def test_shrinking_by_four_ignores_what_lies_between():
    row = jnp.array([9.0, 1.0, 3.0, 9.0, 9.0, 5.0, 7.0, 9.0]).reshape(1, 1, 8, 1)
    np.testing.assert_allclose(resize_bilinear(row, (1, 2)).ravel(), [2, 6], atol=1e-5)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_align_corners])
def test_keeps_dtype_and_identity(resize):
    x = jnp.arange(2 * 3 * 5 * 2, dtype=jnp.bfloat16).reshape(2, 3, 5, 2)
    same = resize(x, (3, 5))
    assert same.dtype == jnp.bfloat16
    np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize("source", [(8, 8), (5, 12), (1, 7), (300, 200)])
@pytest.mark.parametrize("target", [(8, 8), (16, 16), (3, 20), (7, 1)])
def test_the_host_resizes_as_devices_do(source, target):
    x = np.random.default_rng(0).random((2, *source, 3), np.float32)
    on_host = resize_bilinear_on_host(x, target)
    assert type(on_host) is np.ndarray and on_host.dtype == np.float32
    # XLA computes the places in float32.
    np.testing.assert_allclose(on_host, resize_bilinear(jnp.asarray(x), target), atol=2e-5)


@pytest.mark.parametrize(("resize", "corners"), [(resize_bilinear, False), (resize_align_corners, True)])
@pytest.mark.parametrize("source", [(8, 8), (5, 12), (1, 7)])
@pytest.mark.parametrize("target", [(8, 8), (16, 16), (4, 4), (3, 20), (13, 2), (7, 1)])
def test_equals_torch(resize, corners, source, target):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, *source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x), target, mode="bilinear", align_corners=corners
    ).numpy()
    ours = resize(jnp.moveaxis(x, 1, -1), target)
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), expected, atol=2e-6)
