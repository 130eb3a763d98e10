"""The networks against the published architecture, and the names of their sites."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax import Gaussian
from vaejax.models import ConvDecoder, ConvEncoder, Discriminator
from vaejax.models.layers import Conv, Dense, leaky_relu, relu
from vaejax.zoo import Network, recipe

# Locatello et al. (2019), table 1, at 64x64x1 with 10 latents.
ENCODER = {
    "conv_1": (4, 4, 1, 32),
    "conv_2": (4, 4, 32, 32),
    "conv_3": (2, 2, 32, 64),
    "conv_4": (2, 2, 64, 64),
    "dense": (1024, 256),
    "mean": (256, 10),
    "logvar": (256, 10),
}
DECODER = {
    "dense_1": (10, 256),
    "dense_2": (256, 1024),
    "up_1": (4, 4, 64, 64),
    "up_2": (4, 4, 64, 32),
    "up_3": (4, 4, 32, 32),
    "up_4": (4, 4, 32, 1),
}


def abstract_variables(name, network):
    """Shapes of the variables, without computing them."""
    model, images = recipe(name, network).model, jnp.zeros((1, *network.image_shape))
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def kernels(params):
    return {name: layer["kernel"].shape for name, layer in params.items()}


def test_parameters_of_the_reference_network():
    params = abstract_variables("vae", Network())["params"]
    assert kernels(params["encoder"]) == ENCODER
    assert kernels(params["decoder"]) == DECODER
    assert count(params["encoder"]) == 309_204
    assert count(params["decoder"]) == 381_313
    assert set(params) == {"encoder", "decoder"}


def test_parameters_of_the_reference_discriminator():
    # 10 * 1000 + 1000, five times 1000 * 1000 + 1000, and 1000 * 2 + 2.
    params = abstract_variables("factor_vae", Network())["params"]
    assert count(params["discriminator"]) == 5_018_002


def test_colour_adds_to_the_first_and_last_layer_only():
    params = abstract_variables("vae", Network((64, 64, 3)))["params"]
    assert kernels(params["encoder"]) == ENCODER | {"conv_1": (4, 4, 3, 32)}
    assert kernels(params["decoder"]) == DECODER | {"up_4": (4, 4, 32, 3)}


def test_at_32x32_one_convolution_less_leads_to_the_same_grid():
    params = abstract_variables("vae", Network((32, 32, 1)))["params"]
    assert kernels(params["encoder"]) == {
        "conv_1": (4, 4, 1, 32),
        "conv_2": (2, 2, 32, 64),
        "conv_3": (2, 2, 64, 64),
        "dense": (1024, 256),
        "mean": (256, 10),
        "logvar": (256, 10),
    }
    assert kernels(params["decoder"]) == {
        "dense_1": (10, 256),
        "dense_2": (256, 1024),
        "up_1": (4, 4, 64, 64),
        "up_2": (4, 4, 64, 32),
        "up_3": (4, 4, 32, 1),
    }


def test_width_multiplies_channels_and_units_but_not_latents():
    params = abstract_variables("factor_vae", Network(width=0.25, discriminator_width=50))["params"]
    assert kernels(params["encoder"]) == {
        "conv_1": (4, 4, 1, 8),
        "conv_2": (4, 4, 8, 8),
        "conv_3": (2, 2, 8, 16),
        "conv_4": (2, 2, 16, 16),
        "dense": (256, 64),
        "mean": (64, 10),
        "logvar": (64, 10),
    }
    assert params["decoder"]["dense_2"]["kernel"].shape == (64, 256)
    assert params["discriminator"]["dense_2"]["kernel"].shape == (50, 50)


def test_parameters_of_the_vq_network():
    variables = abstract_variables("vq_vae", Network())
    assert kernels(variables["params"]["encoder"]) == {
        name: ENCODER[name] for name in ("conv_1", "conv_2", "conv_3", "conv_4")
    } | {"project": (64, 64)}
    assert kernels(variables["params"]["decoder"]) == {
        name: DECODER[name] for name in ("up_1", "up_2", "up_3", "up_4")
    } | {"expand": (64, 64)}
    codebook = variables["codebook"]["codes"]
    assert codebook.embedding.shape == (512, 64)


@jax.jit
def flax_encoder(params, x):
    h = x
    for name in ("conv_1", "conv_2", "conv_3"):
        h = nn.relu(convolve(nn.Conv, params[name], h))
    h = nn.relu(dense(params["dense"], h.reshape(len(x), -1)))
    return Gaussian(dense(params["mean"], h), dense(params["logvar"], h))


@jax.jit
def flax_decoder(params, z):
    h = nn.relu(dense(params["dense_1"], z))
    h = nn.relu(dense(params["dense_2"], h)).reshape(len(z), 2, 3, 3)
    for name in ("up_1", "up_2"):
        h = nn.relu(convolve(nn.ConvTranspose, params[name], h))
    return convolve(nn.ConvTranspose, params["up_3"], h)


def dense(params, h):
    return nn.Dense(params["bias"].size).apply({"params": params}, h)


def convolve(layer, params, h):
    *size, _, features = params["kernel"].shape
    return layer(features, size, (2, 2), padding="SAME").apply({"params": params}, h)


@pytest.mark.parametrize(
    ("network", "same", "shape"),
    [
        (ConvEncoder(2, (3, 8, 9), (4, 2, 2), hidden=7), flax_encoder, (2, 16, 24, 2)),
        (ConvDecoder((16, 24, 2), (8, 5), base_width=3, hidden=7), flax_decoder, (2, 4)),
    ],
)
def test_the_networks_compute_what_flax_computes_with_the_same_parameters(network, same, shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: np.float32(rng.normal(scale=0.3, size=p.shape)), params)
    ours, flax = jax.jit(network.apply)({"params": params}, x), same(params, x)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def sites_of(name, network):
    """Paths of the modules whose call ran in a forward pass."""
    called = set()

    def record(next_function, args, kwargs, context):
        if context.method_name == "__call__":
            called.add("/".join(context.module.path))
        return next_function(*args, **kwargs)

    model = recipe(name, network).model
    variables = abstract_variables(name, network)
    images = jnp.zeros((1, *network.image_shape))
    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, images, jax.random.key(0))
    return called - {"", "encoder", "decoder"}


CONVOLUTIONS = {f"encoder/conv_{i}{pre}" for i in (1, 2, 3, 4) for pre in ("", "/pre")}
DECONVOLUTIONS = {f"decoder/up_{i}{pre}" for i in (1, 2, 3) for pre in ("", "/pre")}


@pytest.mark.parametrize("name", ["vae", "factor_vae"])
def test_sites_of_the_gaussian_family(name):
    dense = {"encoder/dense", "decoder/dense_1", "decoder/dense_2"}
    assert sites_of(name, Network()) == {
        *CONVOLUTIONS,
        *DECONVOLUTIONS,
        *dense,
        *(f"{site}/pre" for site in dense),
        "encoder/mean",
        "encoder/logvar",
        "z",
        "decoder/up_4",
        "reconstruction",
    }


def test_sites_of_the_vq_vae():
    assert sites_of("vq_vae", Network()) == {
        *CONVOLUTIONS,
        *DECONVOLUTIONS,
        "encoder/project",
        "encoded",
        "quantized",
        "decoder/expand",
        "decoder/expand/pre",
        "decoder/up_4",
        "reconstruction",
    }


def test_relu_has_no_slope_at_zero_and_lets_nan_through():
    x = jnp.array([-2.0, 0.0, 3.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(relu(x), [0.0, 0.0, 3.0, np.nan, np.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x[:3]), [0.0, 0.0, 1.0])
    assert relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [Dense(4, relu), Conv(4, 2, relu), Dense(4, leaky_relu)])
def test_pre_is_the_value_before_the_nonlinearity(layer):
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    variables = layer.init(jax.random.key(1), x)
    _, captured = layer.apply(variables, x, capture_intermediates=True)
    (out,) = captured["intermediates"]["__call__"]
    (pre,) = captured["intermediates"]["pre"]["__call__"]
    linear = layer.copy(activation=None).apply(variables, x)
    slope = 0.2 if layer.activation is leaky_relu else 0.0
    np.testing.assert_array_equal(pre, linear)
    np.testing.assert_allclose(out, np.where(pre > 0, pre, slope * np.asarray(pre)), rtol=1e-6)
    assert (pre < 0).any()
    assert (pre > 0).any()


def test_the_discriminator_is_leaky_between_its_layers_and_linear_at_its_end():
    params = {
        "dense_1": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
        "logits": {"kernel": jnp.array([[1.0, 0.0], [0.0, -1.0]]), "bias": jnp.zeros(2)},
    }
    logits = Discriminator((2,)).apply({"params": params}, jnp.array([[5.0], [-10.0]]))
    np.testing.assert_allclose(logits, [[5.0, 1.0], [-2.0, -10.0]], rtol=1e-6)


@pytest.mark.parametrize("name", ["vae", "factor_vae", "vq_vae"])
def test_models_of_equal_sizes_are_equal_and_hash_alike(name):
    model, same = (recipe(name, Network()).model for _ in range(2))
    assert model is not same
    assert model == same
    assert hash(model) == hash(same)
    assert model != recipe(name, Network(width=0.5)).model
