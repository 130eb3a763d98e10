"""Likelihoods against scipy, and at logits where a naive form overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vaejax import Bernoulli, Normal

LOGITS = np.random.default_rng(0).normal(scale=3, size=(3, 4, 2, 1))


def test_bernoulli_is_that_of_scipy():
    x = np.random.default_rng(1).integers(0, 2, LOGITS.shape)
    nll = Bernoulli().negative_log_likelihood(
        jnp.asarray(x, jnp.float32), jnp.asarray(LOGITS, jnp.float32)
    )
    expected = -stats.bernoulli(special.expit(LOGITS)).logpmf(x).sum((1, 2, 3))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_bernoulli_between_0_and_1_is_the_mixture_of_both():
    x = jnp.full((1, 1), 0.25)
    nll = Bernoulli().negative_log_likelihood(x, jnp.full((1, 1), jnp.log(3.0)))
    # The mean is 3/4.
    np.testing.assert_allclose(nll, [-0.25 * np.log(0.75) - 0.75 * np.log(0.25)], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "logit", "value", "gradient"),
    [(0.0, 1e4, 1e4, 1.0), (1.0, 1e4, 0.0, 0.0), (0.0, -1e4, 0.0, 0.0), (1.0, -1e4, 1e4, -1.0)],
)
def test_bernoulli_with_certain_logits(x, logit, value, gradient):
    def nll(logits):
        return Bernoulli().negative_log_likelihood(jnp.full((1, 1), x), logits)[0]

    assert jax.value_and_grad(nll)(jnp.full((1, 1), logit)) == (value, gradient)


@pytest.mark.parametrize("stddev", [1.0, 0.3])
def test_normal_is_that_of_scipy(stddev):
    x = np.random.default_rng(1).normal(size=LOGITS.shape)
    nll = Normal(stddev).negative_log_likelihood(
        jnp.asarray(x, jnp.float32), jnp.asarray(LOGITS, jnp.float32)
    )
    expected = -stats.norm(LOGITS, stddev).logpdf(x).sum((1, 2, 3))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_decoded_means():
    logits = jnp.asarray(LOGITS, jnp.float32)
    np.testing.assert_allclose(Bernoulli().mean(logits), special.expit(LOGITS), rtol=1e-5)
    np.testing.assert_array_equal(Normal(0.3).mean(logits), logits)
