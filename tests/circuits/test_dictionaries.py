"""A sparse autoencoder recovers planted features, more of them than dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_bases import float32, linear, normal, rotation

from vaejax.circuits.bases import in_basis
from vaejax.circuits.dictionaries import SparseDictionary, train_dictionary

CHANNELS, FEATURES = 16, 32


def superposition(seed, n):
    """Samples of sparse features, on with probability 0.06, in random directions; and those."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(FEATURES, CHANNELS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = (rng.random((n, FEATURES)) < 0.06) * rng.uniform(0.5, 1.5, (n, FEATURES))
    return float32(3 + 2 * features @ directions, directions)


@pytest.fixture(scope="module")
def trained():
    samples, directions = superposition(0, 4096)
    return (
        train_dictionary(jax.random.key(0), samples, FEATURES, steps=2000),
        samples,
        directions,
    )


def test_planted_superposition_is_recovered(trained):
    dictionary, samples, directions = trained
    cosines = directions @ dictionary.outward.T
    assert cosines.max(1).mean() > 0.95
    assert np.mean(cosines.max(1) > 0.9) > 0.8
    error = jnp.mean(jnp.square(dictionary.decode(dictionary.encode(samples)) - samples))
    assert error < 0.25 * samples.var(0).mean()


def test_features_are_few_and_directions_of_norm_1(trained):
    dictionary, samples, _ = trained
    features = dictionary.encode(samples)
    assert features.min() == 0
    assert (features > 0).sum(1).mean() < 4  # 1.9 are planted
    np.testing.assert_allclose(jnp.linalg.norm(dictionary.outward, axis=1), 1, rtol=1e-5)


def test_the_shrinking_of_the_penalty_is_undone(trained):
    dictionary, samples, _ = trained
    features = dictionary.encode(samples)
    on = np.asarray(features.max(1) > 0)
    made = np.asarray(dictionary.decode(features) - dictionary.center)[on]
    deviation = np.asarray(samples - dictionary.center)[on]
    shrunk = np.sum(made * deviation) / np.sum(made * made)
    assert abs(shrunk - 1) < 0.02


def test_firing_is_the_share_of_samples_and_0_for_the_dead(trained):
    dictionary, samples, _ = trained
    np.testing.assert_allclose(dictionary.firing, (dictionary.encode(samples) > 0).mean(0))
    assert np.mean(dictionary.firing == 0) < 0.2


def test_equal_keys_train_equal_dictionaries(trained):
    dictionary, samples, _ = trained
    again = train_dictionary(jax.random.key(0), samples, FEATURES, steps=2000)
    jax.tree.map(np.testing.assert_array_equal, dictionary, again)


def test_features_read_and_write_as_they_say():
    turn = rotation(0, 3)
    dictionary = SparseDictionary(*float32([1, 1, 1], turn, [0, 0, 0.5], turn.T, np.ones(3)))
    before = np.array([[[3, 2, 1], [0, -1, 5]], [[2, 1, 0.5], [-1, -1, -1]]])
    activation = jnp.asarray(1 + before @ turn.T, jnp.float32)
    expected = np.maximum(before + np.array([0, 0, 0.5]), 0)
    np.testing.assert_allclose(dictionary.encode(activation), expected, atol=1e-5)
    decoded = dictionary.decode(jnp.asarray(before, jnp.float32))
    np.testing.assert_allclose(decoded, activation, atol=1e-5)


def test_a_dictionary_does_not_depend_on_the_scale_of_activations(trained):
    dictionary, samples, _ = trained
    scaled = train_dictionary(jax.random.key(0), 8 * samples, FEATURES, steps=2000)
    np.testing.assert_allclose(scaled.outward, dictionary.outward, atol=1e-3)
    features = dictionary.encode(samples)
    np.testing.assert_allclose(scaled.encode(8 * samples), 8 * features, atol=0.05)


def test_a_dictionary_is_a_basis_whose_error_is_kept():
    turn = rotation(0, 3)
    dictionary = SparseDictionary(*float32(np.zeros(3), turn, np.zeros(3), turn.T, np.ones(3)))
    variables = float32(np.eye(3), np.eye(3)), float32(np.eye(3), np.eye(3))
    x = normal(0, 5, 3)
    output = in_basis(linear, "h0")((variables, dictionary), x)
    np.testing.assert_allclose(output, linear(variables, x), atol=1e-6)


@pytest.mark.parametrize(
    ("activations", "sparsity", "message"),
    [
        (np.ones((4, 2, 3)), 0.4, r"expected activations \[N, C\], got \[4, 2, 3\]"),
        (np.ones((4, 3)), 0.4, "expected activations that vary"),
        (np.eye(4), -1, "expected sparsity >= 0 and learning_rate > 0, got -1"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error(activations, sparsity, message):
    with pytest.raises(ValueError, match=message):
        train_dictionary(jax.random.key(0), activations, 4, sparsity)
