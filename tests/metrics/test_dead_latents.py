"""A latent that the decoder ignores changes exactly nothing, however XLA fuses the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import mlp_activations, mlp_params, normal

from vaejax.changes import exact_change
from vaejax.metrics import (
    ces_fixed,
    ces_infinitesimal,
    circuit_modularity,
    specificity_factor,
    specificity_pixel,
)

NUM_LATENTS, DEAD, SIZE = 5, 2, 126
VALUES = np.array([-2.0, 0.5, 1.0], np.float32)
LATENTS = normal(0, 37, NUM_LATENTS)


@pytest.fixture
def params():
    return mlp_params(NUM_LATENTS, (SIZE,), DEAD)


def decode(params, z, dtype=jnp.float32):
    return mlp_activations(params, z)["output"].astype(dtype)


@pytest.mark.parametrize(
    ("chunk", "jit"), [(1, True), (2, True), (5, True), (16, True), (16, False), (128, True)]
)
def test_no_effect_at_all(params, chunk, jit):
    def score(params, latents):
        return ces_fixed(lambda z: decode(params, z), latents, chunk=chunk).per_latent

    per_latent = (jax.jit(score) if jit else score)(params, LATENTS)
    assert per_latent[DEAD] == 0.0
    assert jnp.all(jnp.delete(per_latent, DEAD) > 0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_accumulated_in_float32(params, dtype):
    full, low = (
        jax.jit(lambda p, d=d: ces_fixed(lambda z: decode(p, z, d), LATENTS))(params)
        for d in (jnp.float32, dtype)
    )
    assert low.per_latent.dtype == jnp.float32
    np.testing.assert_allclose(low.per_latent, full.per_latent, rtol=0.02)
    assert low.per_latent[DEAD] == 0.0
    assert low.num_dead == 1


def test_slope_is_zero(params):
    result = jax.jit(
        lambda p: ces_infinitesimal(lambda z: decode(p, z), LATENTS, jnp.ones(NUM_LATENTS))
    )(params)
    np.testing.assert_array_equal(result.per_latent == 0, np.arange(NUM_LATENTS) == DEAD)


@pytest.mark.parametrize("specificity", [specificity_pixel, specificity_factor])
def test_specificity_is_undefined(params, specificity):
    active = jnp.array([True, False, True, False, True])
    result = jax.jit(lambda p: specificity(lambda z: decode(p, z), LATENTS, VALUES, active=active))(
        params
    )
    np.testing.assert_array_equal(jnp.isnan(result.per_latent), np.arange(NUM_LATENTS) == DEAD)
    np.testing.assert_array_equal(jnp.isnan(result.low.per_latent), jnp.isnan(result.per_latent))
    assert result.num_dead == 1
    live = np.delete(np.asarray(result.per_latent), DEAD)
    np.testing.assert_allclose(result.mean, live.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        result.active, result.per_latent[jnp.array([0, 4])].mean(), rtol=1e-6
    )


def test_circuits_leave_it_out(params):
    @jax.jit
    def score(params, active):
        def activations(z):
            found = mlp_activations(params, z)
            return {"hidden": found["hidden"], "output": found["output"]}

        return circuit_modularity(activations, LATENTS, VALUES, active=active)

    result = score(params, jnp.ones(NUM_LATENTS, bool))
    assert (result.num_dead, result.num_latents, result.num_sites) == (1, NUM_LATENTS - 1, 2)
    without = score(params, jnp.arange(NUM_LATENTS) != DEAD)
    np.testing.assert_array_equal(result.score.value, without.score.value)
    np.testing.assert_array_equal(result.signed.low, without.signed.low)
    fewer = score(params, jnp.arange(NUM_LATENTS) > DEAD)
    assert fewer.score.value != result.score.value


def test_exact_change():
    before = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array([3.0], jnp.bfloat16),)}
    after = {"a": jnp.array([1.0, 5.0]), "b": (jnp.array([1.0], jnp.bfloat16),)}
    change = exact_change(before, after)
    np.testing.assert_array_equal(change["a"], [0.0, 3.0])
    np.testing.assert_array_equal(change["b"][0], [-2.0])
    assert change["b"][0].dtype == jnp.float32

    # Rounded before the subtraction or not, x * y - x * y is 0.
    x, y = normal(1, 1000), normal(2, 1000)
    np.testing.assert_array_equal(jax.jit(lambda x, y: exact_change(x * y, x * y))(x, y), 0.0)
    product = jnp.asarray(x * y)
    np.testing.assert_array_equal(jax.jit(lambda p, x, y: exact_change(p, x * y))(product, x, y), 0)
