"""The one-pass methods against a float64 reference, and their invariants."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradcam_server.domain.registry import REGISTRY
from gradcam_server.domain.requests import Method
from gradcam_server.methods.one_pass import METHODS
from oracles.reference import reference

Array = NDArray[Any]

# One method for each function; a method whose score alone is its own has another's.
ALL = tuple({REGISTRY[method].function: method for method in reversed(METHODS)}.values())[::-1]
EVERY_METHOD = pytest.mark.parametrize("method", ALL)
OF_GRADIENT = tuple(method for method in ALL if REGISTRY[method].needs_gradient)
EVERY_METHOD_OF_THE_GRADIENT = pytest.mark.parametrize("method", OF_GRADIENT)
# H = W, H != W, N < K, N > K, K = 1, N = 1.
SHAPES = ((2, 4, 4, 16), (3, 3, 5, 40), (2, 7, 2, 6), (1, 9, 8, 5), (2, 6, 5, 1), (2, 1, 1, 7))
RTOL = 1e-5


def eager(method: Method) -> Callable[[Array, Array], Array]:
    return lambda activation, gradient: np.asarray(
        METHODS[method](tf.constant(activation), tf.constant(gradient))
    )


@cache
def compiled(method: Method) -> Callable[[Array, Array], Array]:
    function = tf.function(METHODS[method], jit_compile=True, autograph=False)
    return lambda activation, gradient: np.asarray(
        function(tf.constant(activation), tf.constant(gradient))
    )


WAYS = pytest.mark.parametrize("way", [eager, compiled])


def draw(
    seed: int, shape: tuple[int, ...], *, negative: bool = False, gap: bool = False
) -> tuple[Array, Array]:
    """A and g, float32, a fifth of each zeros.

    A negative A is shifted, so that the poles at sum A = 0 and g sum A = -2 are not met by
    chance. With a gap, the first singular value of g A stands apart.
    """
    generator = np.random.default_rng(seed)
    activation, gradient = generator.normal(size=(2, *shape))
    activation = activation + 0.8 if negative else np.maximum(activation, 0)
    activation *= generator.random(shape) > 0.2
    gradient *= generator.random(shape) > 0.2
    if gap:
        # One pattern over space, strong in every channel: g A is nearly of rank one.
        pattern = generator.uniform(1, 3, (shape[0], *shape[1:3], 1))
        activation = pattern * np.exp(0.02 * activation)
        gradient = pattern * (1 + 0.02 * gradient)
    return activation.astype(np.float32), gradient.astype(np.float32)


def assert_same(ours: Array, expected: Array) -> None:
    """Within rtol 1e-5; where terms cancel, within 1e-5 of the largest value."""
    assert ours.dtype == np.float32
    largest = np.abs(expected).max(axis=(-2, -1), keepdims=True)
    assert ours.shape == expected.shape
    error = np.abs(ours - expected) - RTOL * (np.abs(expected) + largest)
    assert error.max() <= 0, f"{error.max()} over; largest {largest.ravel()}"


@pytest.mark.parametrize("scale", [1.0, 1e-7])
@pytest.mark.parametrize("negative", [False, True], ids=["relu", "signed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY_METHOD
@WAYS
def test_agrees_with_the_definition(
    way: Any, method: Method, shape: tuple[int, ...], negative: bool, scale: float
) -> None:
    """Each method is its paper's formula, eagerly and under XLA, also for tiny gradients."""
    gap = REGISTRY[method].decomposes
    activation, gradient = draw(5, shape, negative=negative, gap=gap)
    gradient *= np.float32(scale)
    assert_same(way(method)(activation, gradient), reference(method, activation, gradient))


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


def shapes(*, one_channel: bool = True) -> st.SearchStrategy[tuple[int, ...]]:
    """A few small shapes, each compiled once."""
    return st.sampled_from([shape for shape in SHAPES if one_channel or shape[-1] > 1])


LAW = settings(deadline=None, max_examples=15)


def inputs(method: Method, seed: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    return draw(seed, shape, gap=REGISTRY[method].decomposes)


def assert_equal_maps(ours: Array, expected: Array) -> None:
    """Two float32 computations of the same map, 1e-5 apart at most."""
    largest = max(float(np.abs(expected).max()), 1e-30)
    np.testing.assert_allclose(ours, expected, rtol=RTOL, atol=RTOL * largest)


@LAW
@given(seed=seeds(), shape=shapes())
def test_coincide_after_global_average_pooling(seed: int, shape: tuple[int, ...]) -> None:
    """With g constant over space, three methods are one, and so are two more if A >= 0."""
    activation, gradient = draw(seed, shape)
    gradient[:] = gradient[:, :1, :1]
    maps = {method: eager(method)(activation, gradient) for method in ALL}
    assert_equal_maps(maps[Method.HIRES_CAM], maps[Method.GRAD_CAM])
    assert_equal_maps(maps[Method.X_GRAD_CAM], maps[Method.GRAD_CAM])
    assert_equal_maps(maps[Method.ELEMENTWISE_GRAD_CAM], maps[Method.LAYER_CAM])


def test_differ_elsewhere() -> None:
    """With g that varies over space and A of both signs no two methods give the same map."""
    activation, gradient = draw(2, (1, 5, 6, 9), negative=True)
    maps = [eager(method)(activation, gradient).ravel() for method in ALL]
    units = np.stack([values / np.linalg.norm(values) for values in maps])
    assert (np.abs(units @ units.T) - np.eye(len(ALL))).max() < 0.99


@EVERY_METHOD_OF_THE_GRADIENT
@LAW
@given(seed=seeds(), shape=shapes(), exponent=st.integers(-6, 6))
def test_scales_with_the_gradient(
    method: Method, seed: int, shape: tuple[int, ...], exponent: int
) -> None:
    """C times the score gives c times the map, except for Grad-CAM++, which has exp(S)."""
    activation, gradient = inputs(method, seed, shape)
    factor = np.float32(10.0**exponent)
    scaled = eager(method)(activation, gradient * factor)
    if method is Method.GRAD_CAM_PLUS_PLUS:
        assert_same(scaled, reference(method, activation, gradient * factor))
    else:
        assert_equal_maps(scaled / factor, eager(method)(activation, gradient))


@EVERY_METHOD
@LAW
@given(seed=seeds(), shape=shapes())
def test_channels_have_no_order(method: Method, seed: int, shape: tuple[int, ...]) -> None:
    """Permuting the channels changes nothing."""
    activation, gradient = inputs(method, seed, shape)
    order = np.random.default_rng(seed).permutation(shape[-1])
    permuted = eager(method)(activation[..., order], gradient[..., order])
    assert_equal_maps(permuted, eager(method)(activation, gradient))


@EVERY_METHOD
@LAW
@given(seed=seeds(), shape=shapes())
def test_positions_move_with_their_values(
    method: Method, seed: int, shape: tuple[int, ...]
) -> None:
    """Permuting positions permutes the map: nothing is transposed, flipped or blurred."""
    activation, gradient = inputs(method, seed, shape)
    batch, height, width, channels = shape
    order = np.random.default_rng(seed).permutation(height * width)

    def permute(values: Array, *tail: int) -> Array:
        return values.reshape(batch, height * width, *tail)[:, order].reshape(values.shape)

    moved = eager(method)(permute(activation, channels), permute(gradient, channels))
    assert_equal_maps(moved, permute(eager(method)(activation, gradient)))


@EVERY_METHOD
@LAW
@given(seed=seeds(), shape=shapes())
def test_a_batch_equals_its_singles(method: Method, seed: int, shape: tuple[int, ...]) -> None:
    """An image's map does not depend on the rest of the batch."""
    activation, gradient = inputs(method, seed, shape)
    batch = eager(method)(activation, gradient)
    for row in range(shape[0]):
        alone = eager(method)(activation[row : row + 1], gradient[row : row + 1])
        assert_equal_maps(alone, batch[row : row + 1])


@LAW
@given(seed=seeds(), shape=shapes())
def test_hires_cam_shares_out_gradient_times_activation(seed: int, shape: tuple[int, ...]) -> None:
    """HiResCAM's map sums to sum g A: after a linear head, to the logit less its bias."""
    activation, gradient = draw(seed, shape, negative=True)
    terms = gradient.astype(float) * activation
    np.testing.assert_allclose(
        eager(Method.HIRES_CAM)(activation, gradient).sum(axis=(1, 2), dtype=float),
        terms.sum(axis=(1, 2, 3)),
        atol=RTOL * np.abs(terms).sum(axis=(1, 2, 3)).max(),
    )


@LAW
@given(seed=seeds(), shape=shapes())
def test_inner_relus_leave_nothing_negative(seed: int, shape: tuple[int, ...]) -> None:
    """The element-wise map has no negative values; LayerCAM's and Grad-CAM++'s none if A >= 0."""
    for negative in (False, True):
        activation, gradient = draw(seed, shape, negative=negative)
        assert eager(Method.ELEMENTWISE_GRAD_CAM)(activation, gradient).min() >= 0
    activation, gradient = draw(seed, shape)
    assert eager(Method.LAYER_CAM)(activation, gradient).min() >= 0
    assert eager(Method.GRAD_CAM_PLUS_PLUS)(activation, gradient).min() >= 0


@LAW
@given(seed=seeds(), shape=shapes())
def test_eigen_grad_cam_points_towards_the_evidence(seed: int, shape: tuple[int, ...]) -> None:
    """The inner product with HiResCAM's map is positive; the opposite score's map is opposite."""
    activation, gradient = inputs(Method.EIGEN_GRAD_CAM, seed, shape)
    ours = eager(Method.EIGEN_GRAD_CAM)(activation, gradient)
    hires = eager(Method.HIRES_CAM)(activation, gradient)
    size = (np.abs(ours) * np.abs(hires)).sum(axis=(1, 2))
    assert ((ours * hires).sum(axis=(1, 2)) >= -RTOL * size).all()
    assert_equal_maps(eager(Method.EIGEN_GRAD_CAM)(activation, -gradient), -ours)


@pytest.mark.parametrize("zero", ["activation", "gradient", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY_METHOD_OF_THE_GRADIENT
@WAYS
def test_nothing_gives_zeros(way: Any, method: Method, shape: tuple[int, ...], zero: str) -> None:
    """A dead layer or a saturated score gives a map of zeros, never NaN."""
    activation, gradient = draw(1, shape, negative=True)
    activation *= zero == "gradient"
    gradient *= zero == "activation"
    ours = way(method)(activation, gradient)
    np.testing.assert_array_equal(ours, np.zeros(shape[:3]))


@pytest.mark.parametrize(
    ("of_activation", "of_gradient"),
    [(1e20, 1e-20), (1e-20, 1e20), (1e20, 1), (1, 1e20), (1e-20, 1), (1, 1e-20), (1e19, 1e17)],
)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2]], ids=str)
@EVERY_METHOD
@WAYS
def test_magnitude_does_not_matter(
    way: Any, method: Method, shape: tuple[int, ...], of_activation: float, of_gradient: float
) -> None:
    """The map is right wherever float32 can hold it: no step over- or underflows before it."""
    activation, gradient = inputs(method, 3, shape)
    activation *= np.float32(of_activation)
    gradient *= np.float32(of_gradient)
    assert_same(way(method)(activation, gradient), reference(method, activation, gradient))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY_METHOD_OF_THE_GRADIENT
@WAYS
def test_the_smallest_numbers_give_no_nan(way: Any, method: Method, shape: tuple[int, ...]) -> None:
    """Products below float32's range give a map that is zero or nearly so."""
    activation, gradient = draw(4, shape, negative=True)
    ours = way(method)(activation * np.float32(1e-20), gradient * np.float32(1e-20))
    assert np.isfinite(ours).all()
    assert np.abs(ours).max() < 1e-36


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
@EVERY_METHOD
@WAYS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_spares_the_others(
    value: float, way: Any, method: Method, shape: tuple[int, ...]
) -> None:
    """An activation that overflowed affects its own map only, and raises nothing."""
    activation, gradient = inputs(method, 6, shape)
    expected = way(method)(activation, gradient)
    activation[0, 0, 0, 0], gradient[0, 0, 0, 0] = value, 1
    ours = way(method)(activation, gradient)
    assert not np.isfinite(ours[0]).all()
    assert_equal_maps(ours[1:], expected[1:])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@WAYS
def test_x_grad_cam_ignores_channels_that_sum_to_rounding_error(way: Any, size: float) -> None:
    """After a normalisation over space every channel sums to 0: no weight, instead of 1e8."""
    activation, gradient = draw(8, (2, 7, 7, 12), negative=True)
    activation -= activation.mean(axis=(1, 2), keepdims=True)
    activation *= np.float32(size)
    ours = way(Method.X_GRAD_CAM)(activation, gradient)
    np.testing.assert_array_equal(ours, np.zeros((2, 7, 7)))


@WAYS
def test_grad_cam_plus_plus_near_its_pole(way: Any) -> None:
    """Where g sum A falls below -2, alpha is negative as defined; at -2 the channel is left out."""
    activation = np.zeros((1, 2, 2, 1), np.float32)
    activation[0, :, :, 0] = [[-1, -3], [1, 2]]  # sum -1
    for at, expected in (
        (1.0, 4.0),
        (1.9, 4 * 19.0),
        (2.1, 4 * -21.0),
        (4.0, 4 * -2.0),
        (2.0, 0.0),
    ):
        gradient = np.full_like(activation, at)
        ours = way(Method.GRAD_CAM_PLUS_PLUS)(activation, gradient)
        np.testing.assert_allclose(ours[0], expected * activation[0, :, :, 0], rtol=1e-5)


def test_grad_cam_plus_plus_has_no_epsilon() -> None:
    """At g = 1e-4 alpha is 1/2; an epsilon of 1e-6 would make it 1/100."""
    activation = np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]], np.float32)
    gradient = np.broadcast_to(np.array([1e-4, 1e-2], np.float32), activation.shape)
    ours = eager(Method.GRAD_CAM_PLUS_PLUS)(activation, gradient)
    np.testing.assert_allclose(ours[0, :, 0], [1e-4, 1e-2], rtol=1e-2)


@WAYS
@pytest.mark.parametrize("channels", [5, 300])
@pytest.mark.parametrize("method", [one for one in ALL if REGISTRY[one].decomposes])
def test_a_constant_has_no_principal_component(way: Any, method: Method, channels: int) -> None:
    """If only rounding error varies over space the map is zero."""
    activation = np.broadcast_to(np.linspace(0.1, 0.7, channels), (1, 7, 7, channels))
    ours = way(method)(np.float32(activation), np.float32(0.3 * activation))
    np.testing.assert_array_equal(ours, np.zeros((1, 7, 7)))
