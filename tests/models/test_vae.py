"""The Gaussian VAE: its methods agree, and its samples have the distribution they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vaejax import Gaussian, Normal
from vaejax.models import VAE, Discriminator, FactorVAE, MLPDecoder, MLPEncoder, reparameterize

ENCODER = MLPEncoder(latent_dim=3, hidden=(8,))
DECODER = MLPDecoder(output_shape=(2, 3), hidden=(8, 4))
MODEL = VAE(ENCODER, DECODER)
X = jax.random.normal(jax.random.key(1), (5, 2, 3))

init = jax.jit(MODEL.init)
apply = jax.jit(MODEL.apply, static_argnames="method")


@pytest.fixture
def variables():
    return init(jax.random.key(0), X)


def kernels(params):
    return {name: layer["kernel"].shape for name, layer in params.items()}


def test_a_mlp_pair_maps_vectors_of_any_shape(variables):
    out = apply(variables, X, jax.random.key(2))
    assert out.posterior.mean.shape == out.posterior.logvar.shape == out.z.shape == (5, 3)
    assert out.logits.shape == out.reconstruction.shape == X.shape
    layers = {
        name: params["kernel"].shape for name, params in variables["params"]["encoder"].items()
    }
    assert layers == {"dense_1": (6, 8), "mean": (8, 3), "logvar": (8, 3)}
    layers = {
        name: params["kernel"].shape for name, params in variables["params"]["decoder"].items()
    }
    assert layers == {"dense_1": (3, 8), "dense_2": (8, 4), "logits": (4, 6)}


def test_the_methods_are_the_parts_of_a_call(variables):
    out = apply(variables, X, jax.random.key(2))

    def method(name, argument):
        return apply(variables, argument, method=name)

    np.testing.assert_array_equal(method("encode", X).mean, out.posterior.mean)
    np.testing.assert_array_equal(method("encode", X).logvar, out.posterior.logvar)
    np.testing.assert_array_equal(method("latents", X), out.posterior.mean)
    np.testing.assert_array_equal(method("logits", out.z), out.logits)
    np.testing.assert_array_equal(method("decode", out.z), out.reconstruction)
    np.testing.assert_allclose(out.reconstruction, special.expit(out.logits), rtol=1e-6)


def test_without_a_key_z_is_the_mean_and_with_one_it_is_not(variables):
    out = apply(variables, X)
    np.testing.assert_array_equal(out.z, out.posterior.mean)
    keys = [jax.random.key(2), jax.random.key(3)]
    first, second = (apply(variables, X, key).z for key in keys)
    assert (first != out.z).all()
    assert (first != second).all()


def test_the_likelihood_makes_the_decoded_means(variables):
    out = VAE(ENCODER, DECODER, Normal()).apply(variables, X)
    np.testing.assert_array_equal(out.reconstruction, out.logits)


def test_samples_have_the_mean_and_variance_of_the_posterior():
    n, mean, std = 20_000, np.array([2.0, -1.0]), np.array([0.5, 3.0])
    posterior = Gaussian(
        jnp.broadcast_to(jnp.float32(mean), (n, 2)),
        jnp.broadcast_to(jnp.float32(2 * np.log(std)), (n, 2)),
    )
    noise = (np.asarray(reparameterize(jax.random.key(0), posterior)) - mean) / std
    for i in range(2):
        assert stats.kstest(noise[:, i], "norm").pvalue > 1e-3
    assert abs(noise.mean(0)).max() < 4 / np.sqrt(n)
    assert abs(noise.var(0) - 1).max() < 4 * np.sqrt(2 / n)
    # Each latent and each example has noise of its own.
    assert abs(stats.pearsonr(*noise.T).statistic) < 4 / np.sqrt(n)
    assert abs(stats.pearsonr(noise[1:, 0], noise[:-1, 0]).statistic) < 4 / np.sqrt(n)


def test_the_gradient_of_a_sample():
    # dz/dmean = 1 and dz/dlogvar = (z - mean) / 2.
    key, mean, logvar = jax.random.key(0), jnp.array([[1.0, -2.0]]), jnp.array([[0.3, -1.0]])
    z, pullback = jax.vjp(lambda *p: reparameterize(key, Gaussian(*p)), mean, logvar)
    weight = jnp.array([[2.0, -3.0]])
    gradient = pullback(weight)
    np.testing.assert_array_equal(gradient[0], weight)
    np.testing.assert_allclose(gradient[1], weight * (z - mean) / 2, rtol=1e-5)


def test_factor_vae_is_the_vae_with_a_discriminator_beside_it(variables):
    model = FactorVAE(ENCODER, DECODER, discriminator=Discriminator((4,)))
    with_discriminator = jax.jit(model.init)(jax.random.key(0), X)
    params = dict(with_discriminator["params"])
    discriminator = params.pop("discriminator")
    assert jax.tree.structure(params) == jax.tree.structure(variables["params"])
    assert kernels(discriminator) == {"dense_1": (3, 4), "logits": (4, 2)}

    key = jax.random.key(2)
    ours, plain = (jax.jit(m.apply)({"params": params}, X, key) for m in (model, MODEL))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.apply(with_discriminator, ours.z, method="discriminate").shape == (5, 2)
