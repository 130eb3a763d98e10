"""Intervals that hold what they should, as often as they should; p-values that count."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import estimates
from vaejax.estimates import bootstrap, bootstrap_mean, central_interval, estimate, p_value


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("interval", [bootstrap, bootstrap_mean])
def test_intervals_cover_the_truth(interval):
    """The mean of 40 draws of an exponential: 95% nominal, about 93% for a skewed distribution."""
    samples = np.random.default_rng(0).exponential(size=(300, 40)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 300)

    def one(sample, key):
        statistic = jnp.mean if interval is bootstrap else lambda mean: mean
        return interval(statistic, sample, key=key)

    low, high = jax.jit(jax.vmap(one))(samples, keys)
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.88 < covered < 0.98  # the standard error is 1.5%
    assert np.mean(high < 1) > np.mean(low > 1)  # skewed: the interval is mostly too low


def test_interval_is_that_of_the_normal_approximation():
    sample = normal(2, 400)
    low, high = bootstrap(jnp.mean, sample)
    error = 1.96 * sample.std() / 20
    np.testing.assert_allclose(
        [low, high], [sample.mean() - error, sample.mean() + error], atol=0.01
    )


def test_bootstrap_of_means_is_the_bootstrap():
    examples = {"a": normal(3, 23, 4), "b": (normal(4, 23, 2, 3),)}

    def statistic(mean):
        return {"ratio": mean["a"].sum() / (3 + jnp.abs(mean["b"][0]).sum()), "b": mean["b"][0]}

    def of_examples(rows):
        return statistic(jax.tree.map(lambda leaf: leaf.mean(axis=0), rows))

    key = jax.random.key(5)
    chex.assert_trees_all_close(
        bootstrap_mean(statistic, examples, key=key),
        bootstrap(of_examples, examples, key=key),
        atol=1e-6,
    )


def test_bootstrap_of_means_in_parts(monkeypatch):
    examples = normal(6, 23, 4)
    whole = bootstrap_mean(jnp.tanh, examples)
    monkeypatch.setattr(estimates, "_AT_ONCE", 23 * 7)  # 7 resamples at a time, 1000 = 142 * 7 + 6
    chex.assert_trees_all_close(bootstrap_mean(jnp.tanh, examples), whole, rtol=1e-6)


def test_resamples_without_a_value_are_left_out():
    sample = jnp.array([0.0, 0.0, 1.0])  # 8 resamples of 27 are all 0
    low, high = bootstrap(lambda x: jnp.where(x.sum() > 0, x.sum(), jnp.nan), sample)
    assert (low, high) == (1.0, 3.0)
    low, high = bootstrap_mean(lambda mean: mean * jnp.nan, sample)
    assert jnp.isnan(low)
    assert jnp.isnan(high)


@pytest.mark.parametrize("draws", [1, 2, 39, 41, 1000])
def test_ends_are_quantiles(draws):
    rows = normal(8, draws, 50)
    rows[np.random.default_rng(9).random(rows.shape) < 0.2] = np.nan
    rows[0] = 0.5  # a number in every column
    rows[:, 0] = np.nan  # but one
    low, high = central_interval(jnp.asarray(rows))
    expected = np.nanquantile(rows[:, 1:], [0.025, 0.975], axis=0)
    np.testing.assert_allclose(jnp.stack([low, high])[:, 1:], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan([low[0], high[0]]).all()


def test_ends_of_infinite_draws():
    low, high = central_interval(jnp.full((40, 1), jnp.inf))
    assert (low[0], high[0]) == (jnp.inf, jnp.inf)


def test_keys():
    sample = normal(7, 50)
    default, again = bootstrap(jnp.mean, sample), bootstrap(jnp.mean, sample)
    chex.assert_trees_all_equal(default, again)
    chex.assert_trees_all_equal(default, bootstrap(jnp.mean, sample, key=jax.random.key(0)))
    other = bootstrap(jnp.mean, sample, key=jax.random.key(1))
    assert other[0] != default[0]
    np.testing.assert_allclose(other[0], default[0], atol=0.05)


def test_estimate():
    sample = normal(8, 60, 2)
    result = estimate(lambda x: x.mean(axis=0), sample)
    np.testing.assert_allclose(result.value, sample.mean(axis=0), rtol=1e-5)
    assert np.all(result.low < result.value)
    assert np.all(result.value < result.high)


def test_central_interval_leaves_a_fortieth_on_either_side():
    draws = {"a": jnp.arange(41.0), "b": jnp.array([jnp.nan, 2.0] * 20 + [2.0])}
    low, high = central_interval(draws)
    assert low == {"a": 1.0, "b": 2.0}
    assert high == {"a": 39.0, "b": 2.0}


def test_p_value_counts_the_null_from_above():
    null = jnp.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    np.testing.assert_allclose(p_value(jnp.array([1.0, 6.0]), null), [3 / 4, 1 / 4])
    assert jnp.isnan(p_value(jnp.array(jnp.nan), jnp.arange(3.0)))


def test_p_values_are_uniform_under_the_null():
    draws = normal(9, 2000, 100)
    p = jax.vmap(p_value)(draws[:, 0], draws[:, 1:])
    np.testing.assert_allclose(np.quantile(p, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
