"""Scores of dictionaries of which it is known what they carry: all, nothing, one factor each."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from planted_bases import float32, normal, rotation

from vaejax.circuits.bases import LinearBasis, unit_basis
from vaejax.circuits.dictionaries import SparseDictionary
from vaejax.circuits.dictionary_control import control
from vaejax.circuits.dictionary_labels import _thresholded, interpretability
from vaejax.circuits.dictionary_scores import approximation
from vaejax.models.layers import Site

WEIGHT = np.array([1.0, 2, 3])
"""What the output makes of each factor."""


class Hidden(nn.Module):
    """Inputs `[B, F]` written in F of C directions of `h [B, C]`, or of a map `[B, 2, 2, C]`."""

    positions: bool

    @nn.compact
    def __call__(self, x, directions, weight):
        h = x @ directions
        if self.positions:
            h = jnp.broadcast_to(h[:, None, None], (len(h), 2, 2, h.shape[1]))
        h = Site(name="h")(h)
        if self.positions:
            h = h.mean((1, 2))
        return (h @ directions.T) * weight


def flat(variables, x):
    return Hidden(positions=False).apply({}, x, *variables)


def mapped(variables, x):
    return Hidden(positions=True).apply({}, x, *variables)


def dictionary(directions):
    """A dictionary of orthonormal directions, `[F, C]`."""
    size, width = directions.shape
    bias = np.full(size, -1e-5)  # a feature that only rounding makes is not active
    return SparseDictionary(
        *float32(np.zeros(width), directions.T, bias, directions, np.ones(size))
    )


DIRECTIONS = rotation(0, 6)[:3]
VARIABLES = float32(DIRECTIONS, WEIGHT)
STATES = np.array(list(itertools.product((0, 1), repeat=3)))


def pairs():
    """Each of the 8 states of 3 binary factors twice, with each of the factors changed."""
    before = np.tile(np.repeat(STATES, 2, axis=0), (3, 1))
    changed = np.repeat(np.arange(3), 16)
    after = before.copy()
    after[np.arange(48), changed] = 1 - after[np.arange(48), changed]
    clean, corrupted = float32(before, after)
    return clean, corrupted, changed, before, after


@pytest.mark.parametrize("network", [flat, mapped])
def test_one_feature_controls_the_factor_that_it_carries_and_no_unit_does(network):
    basis = dictionary(DIRECTIONS)
    found = control(network, VARIABLES, *pairs(), "h", basis, sizes=(1, 2, 6))
    np.testing.assert_allclose(found.features.value, 1, atol=1e-4)
    np.testing.assert_array_equal(found.chosen[:, 0], [0, 1, 2])
    np.testing.assert_allclose(found.supervised.value, 1, atol=1e-4)
    np.testing.assert_allclose(found.site.value, 1, atol=1e-4)
    np.testing.assert_array_equal(found.pairs, [8, 8, 8])
    # A unit n carries its square in the direction, for these orthonormal ones.
    square = np.square(DIRECTIONS)
    best = -np.sort(-square, axis=1)
    expected = np.stack([best[:, 0], best[:, :2].sum(1), np.ones(3)], 1)
    np.testing.assert_allclose(found.units.value, expected, atol=0.2)
    assert np.all(found.units.value[:, 0] < 0.8)
    np.testing.assert_allclose(found.units.value[:, 2], 1, atol=1e-4)
    assert found.random.value[:, 0].mean() < 0.7
    np.testing.assert_allclose(found.random.value[:, 2], 1, atol=1e-4)


def test_factors_without_pairs_are_not_judged():
    clean, corrupted, changed, before, after = pairs()
    rows = np.r_[0:16, 32:33]  # all of factor 0, none of 1, one pair of 2
    given = (array[rows] for array in (clean, corrupted, changed, before, after))
    found = control(flat, VARIABLES, *given, "h", dictionary(DIRECTIONS), sizes=(1,), draws=1)
    np.testing.assert_array_equal(np.isnan(found.features.value[:, 0]), [False, True, True])
    np.testing.assert_array_equal(found.pairs, [8, 0, 0])
    np.testing.assert_array_equal(found.chosen[:, 0], [0, -1, 2])


@pytest.mark.parametrize("network", [flat, mapped])
def test_approximation_is_1_for_all_0_for_the_mean_and_the_share_of_what_is_kept(network):
    x = jnp.asarray(STATES, jnp.float32)
    mean = x.mean(0) @ VARIABLES[0]

    def judge(basis):
        found = approximation(network, VARIABLES, x, "h", basis)
        values = (found.approximation, found.explained_variance, found.active)
        return [float(estimate.value) for estimate in values]

    np.testing.assert_allclose(judge(dictionary(DIRECTIONS)), [1, 1, 1.5], atol=1e-4)
    nothing = LinearBasis(mean, jnp.zeros((6, 1)), jnp.zeros((1, 6)))
    np.testing.assert_allclose(judge(nothing), [0, 0, 0], atol=1e-4)
    kept = LinearBasis(mean, *float32(DIRECTIONS[1:].T, DIRECTIONS[1:]))
    np.testing.assert_allclose(judge(kept), [13 / 14, 2 / 3, 2], atol=1e-4)


def test_intervals_of_approximation_are_of_examples():
    x = normal(0, 64, 3)
    kept = LinearBasis(jnp.zeros(6), *float32(DIRECTIONS[1:].T, DIRECTIONS[1:]))
    found = approximation(flat, VARIABLES, x, "h", kept).approximation
    assert 0.7 < found.low < found.value < found.high < 1


def classes_and_inputs(repeats):
    """Three factors of 3 classes, each class a feature of its own."""
    classes = np.tile(list(itertools.product(range(3), repeat=3)), (repeats, 1))
    one_hot = (classes[:, :, None] == np.arange(3)).reshape(len(classes), 9)
    return classes, jnp.asarray(one_hot, jnp.float32)


@pytest.mark.parametrize("network", [flat, mapped])
def test_features_of_one_class_each_say_which_it_is(network):
    classes, x = classes_and_inputs(2)
    directions = rotation(1, 10)[:9]
    variables = float32(directions, np.ones(9))
    found = interpretability(network, variables, x, classes, "h", dictionary(directions))
    np.testing.assert_allclose(found.features.value, 1)
    np.testing.assert_allclose(found.supervised.value, 1)
    np.testing.assert_allclose(found.always.value, 0.5, atol=1e-6)  # 2 p / (1 + p), p = 1 / 3
    np.testing.assert_array_equal(found.chosen, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert np.all(found.units.value < 0.99)
    assert found.units.value.mean() < 0.95


def test_features_that_say_nothing_are_no_better_than_a_constant():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, (400, 1))
    directions = rotation(1, 4)[:2]
    noise = normal(2, 400, 2)
    variables = float32(directions, np.ones(2))
    found = interpretability(flat, variables, noise, classes, "h", dictionary(directions))
    assert found.features.value[0] < 0.6
    assert found.units.value[0] < found.always.value[0] + 0.05
    assert found.supervised.low[0] < found.supervised.value[0] < found.supervised.high[0]


def test_classes_that_are_not_in_both_halves_are_left_out():
    classes, x = classes_and_inputs(2)
    classes = np.concatenate([classes, np.zeros((54, 1), int)], 1)
    classes[0, 3] = 5  # in the half that fits only
    directions = rotation(1, 10)[:9]
    variables = float32(directions, np.ones(9))
    found = interpretability(flat, variables, x, classes, "h", unit_basis(jnp.zeros(10)))
    np.testing.assert_array_equal(found.chosen[3, 1:], -1)
    np.testing.assert_allclose(found.always.value[3], 1)  # of class 0, which all others are


def test_thresholds_are_the_best_that_there_are():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 5, (30, 3)).astype(np.float32)
        truth, fit = rng.random(30) < 0.4, np.arange(30) < 20
        said = _thresholded(scores, truth, fit)[fit]
        best = max(
            2 * (truth[fit] & (scores[fit, i] >= t)).sum()
            / ((scores[fit, i] >= t).sum() + truth[fit].sum())
            for i in range(3)
            for t in range(5)
        )  # fmt: skip
        assert 2 * (truth[fit] & said).sum() / (said.sum() + truth[fit].sum()) == best


def test_pairs_that_do_not_fit_are_an_error():
    clean, corrupted, changed, before, after = pairs()
    basis = dictionary(DIRECTIONS)
    with pytest.raises(ValueError, match=r"expected changed \[48\] of factors below 3"):
        control(flat, VARIABLES, clean, corrupted, changed + 1, before, after, "h", basis)
    with pytest.raises(ValueError, match=r"expected integer factors \[48, K\] twice"):
        control(flat, VARIABLES, clean, corrupted, changed, before / 2, after, "h", basis)
    with pytest.raises(ValueError, match="unknown site 'g'"):
        approximation(flat, VARIABLES, clean, "g", basis)
    with pytest.raises(ValueError, match=r"expected factors \[48, K\] of integers from 0"):
        interpretability(flat, VARIABLES, clean, before - 1, "h", basis)
