"""The matrix-product form of the stride-2 convolutions against Flax's.

Inputs are small integers: sums of their products are exact in float32 in whatever order they are
taken, so results are compared bit for bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import convolution

# Both below and above the number of channels where the form changes, on either side.
CASES = [(2, 1, 8), (2, 8, 3), (4, 3, 16), (4, 8, 1), (4, 16, 8), (6, 3, 8), (6, 8, 3)]

OURS = {"conv": convolution.conv, "conv_transpose": convolution.conv_transpose}
FLAX = {"conv": nn.Conv, "conv_transpose": nn.ConvTranspose}
SHAPE = {"conv": (2, 8, 12), "conv_transpose": (2, 4, 6)}


def flax_form(name, kernel_size, features):
    layer = FLAX[name](features, (kernel_size,) * 2, (2, 2), padding="SAME", use_bias=False)
    return lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)


def integers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 5, shape), jnp.float32)


def value_and_gradients(function):
    """The result, and the gradients of a random linear function of it, in x and in the kernel."""

    def evaluate(x, kernel):
        value, pullback = jax.vjp(function, x, kernel)
        return value, *pullback(integers(2, *value.shape))

    return jax.jit(evaluate)


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """The form for this backend, on whatever backend runs the tests."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


@pytest.mark.parametrize("large", [convolution._LARGE, 1])
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("kernel_size", "channels", "features"), CASES)
def test_equals_the_layer_of_flax(name, kernel_size, channels, features, large, monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", large)
    x = integers(0, *SHAPE[name], channels)
    kernel = integers(1, kernel_size, kernel_size, channels, features)
    ours = value_and_gradients(OURS[name])(x, kernel)
    flax = value_and_gradients(flax_form(name, kernel_size, features))(x, kernel)
    for actual, expected in zip(ours, flax, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("channels", [3, 8])
def test_vmap_over_weights_equals_one_after_the_other(name, channels):
    x = integers(0, 3, *SHAPE[name], channels)
    kernels = integers(1, 3, 4, 4, channels, 5)
    together = jax.vmap(value_and_gradients(OURS[name]))(x, kernels)
    alone = value_and_gradients(flax_form(name, 4, 5))
    for i in range(3):
        for actual, expected in zip(together, alone(x[i], kernels[i]), strict=True):
            np.testing.assert_array_equal(actual[i], expected)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("channels", [3, 8])
def test_forward_mode_and_second_derivatives(name, channels):
    """Of a cubic function, whose derivatives are integers too."""
    x, kernel = integers(0, *SHAPE[name], channels) / 4, integers(1, 4, 4, channels, 2)
    tangents = integers(3, *x.shape) / 4, integers(4, *kernel.shape)

    def derivatives(function):
        def cubic(x, kernel):
            return jnp.sum(function(x, kernel) ** 3)

        first = jax.jvp(function, (x, kernel), tangents)
        second = jax.jvp(jax.grad(cubic, argnums=(0, 1)), (x, kernel), tangents)
        third = jax.grad(lambda k: jnp.sum(jax.grad(cubic)(x, k)))(kernel)
        return first, second, third

    ours, flax = derivatives(OURS[name]), derivatives(flax_form(name, 4, 2))
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_a_batch_of_images_or_kernels(name):
    """One side batched, the other shared, in both orders of `vmap` and `grad`."""
    xs, kernels = integers(0, 3, *SHAPE[name], 8), integers(1, 3, 4, 4, 8, 2)
    for axes, x, kernel in ((0, None), xs, kernels[0]), ((None, 0), xs[0], kernels):

        def summed(function, axes, x, kernel):
            return jax.grad(
                lambda x, k: jnp.sum(jax.vmap(function, axes)(x, k) ** 2), argnums=(0, 1)
            )(x, kernel)

        ours = summed(OURS[name], axes, x, kernel)
        flax = summed(flax_form(name, 4, 2), axes, x, kernel)
        for actual, expected in zip(ours, flax, strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", OURS)
def test_the_form_of_each_backend(backend, name):
    x, kernel = integers(0, *SHAPE[name], 3), integers(1, 4, 4, 3, 5)

    def ours(x, kernel):  # a new function, so that no trace for another backend is found
        return OURS[name](x, kernel)

    assert ("conv_general_dilated" in str(jax.make_jaxpr(ours)(x, kernel))) == (backend == "gpu")
    expected = value_and_gradients(flax_form(name, 4, 5))(x, kernel)
    for actual, array in zip(value_and_gradients(ours)(x, kernel), expected, strict=True):
        np.testing.assert_array_equal(actual, array)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("name", "shape", "kernel_size"),
    [
        ("conv", (7, 8), 4),
        ("conv", (8, 7), 4),
        ("conv", (8, 8), 3),
        ("conv_transpose", (8, 8), 3),
    ],
)
def test_odd_sizes_are_refused(name, shape, kernel_size):
    kernel = jnp.zeros((kernel_size, kernel_size, 1, 1))
    with pytest.raises(ValueError, match="even sizes, got"):
        OURS[name](jnp.zeros((1, *shape, 1)), kernel)


def test_a_transposed_convolution_takes_images_of_odd_size():
    result = convolution.conv_transpose(jnp.zeros((1, 3, 5, 1)), jnp.zeros((4, 4, 1, 2)))
    assert result.shape == (1, 6, 10, 2)
