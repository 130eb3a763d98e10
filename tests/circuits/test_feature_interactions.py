"""Interactions in closed form, and modules that a rotation of each layer hides."""

import itertools

import numpy as np
import pytest
from planted_bases import curved, feature_map, float32, independent, linear, normal, rotation

from vaejax.circuits.feature_interactions import (
    _exchanged,
    feature_interactions,
    network_modularity,
)
from vaejax.circuits.interaction_basis import interaction_basis

WIDTH, SITES = 16, ("h0", "h1", "h2")


def halves(modules, seed):
    """A network whose layers are of so many modules, each layer stored in rotated coordinates."""
    mask = np.kron(np.eye(modules), np.ones((WIDTH // modules, WIDTH // modules)))
    scale = 1.5 / np.sqrt(WIDTH / modules)
    matrices = [scale * mask * normal(seed + i, WIDTH, WIDTH) for i in range(3)]
    turns = [rotation(seed + i, WIDTH) for i in range(3)]
    return float32(*matrices), float32(*turns)


def modularity(variables, x, bases):
    weights = [
        feature_interactions(
            curved, variables, x, *SITES[i : i + 2], sender_basis=a, receiver_basis=b, chunk=512
        )
        for i, (a, b) in enumerate(itertools.pairwise(bases))
    ]
    return network_modularity(weights, draws=20), weights


def interaction_bases(variables, x):
    return [interaction_basis(curved, variables, x, site, chunk=512).basis for site in SITES]


def test_interactions_are_shares_of_variance():
    x = independent(64, 6)
    first, second = np.diag(np.arange(1.0, 7)), np.array(normal(0, 6, 6))
    second[:, 3] = 0  # a receiver that never varies
    variables = float32(first, second), float32(np.eye(6), np.eye(6))
    found = feature_interactions(linear, variables, x, "h0", "h1", chunk=24)
    made = (first @ second) ** 2
    expected = made / np.where(made.sum(0) > 0, made.sum(0), 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(0), [1, 1, 1, 0, 1, 1], atol=1e-5)


def test_interactions_of_feature_maps_go_between_all_positions():
    x, matrix = independent(4096, 12).reshape(-1, 2, 2, 3), normal(0, 12, 8)
    variables = normal(1, 2, 2, 3), matrix
    found = feature_interactions(feature_map, variables, x, "map", "mixed", chunk=1024)
    made = np.sum(np.asarray(matrix).reshape(4, 3, 4, 2) ** 2, axis=(0, 2))
    np.testing.assert_allclose(found, made / made.sum(0), rtol=0.05)


def test_modules_that_a_rotation_hides_show_in_the_interaction_basis():
    variables, x = halves(2, 0), normal(9, 1024, WIDTH)
    bases = interaction_bases(variables, x)
    hidden, _ = modularity(variables, x, [None] * 3)
    shown, weights = modularity(variables, x, bases)
    assert shown.modularity > hidden.modularity + 0.2
    assert shown.z > 2
    assert shown.p < 0.05
    assert hidden.z < 2
    # Each of the features that count writes to one half, and little goes from one to the other.
    sides = []
    for basis, turn in zip(bases, variables[1], strict=True):
        square = np.square(np.asarray(basis.outward @ turn.T))
        share = square[:, : WIDTH // 2].sum(1) / square.sum(1)
        sides.append(share > 0.5)
        assert np.abs(share[:4] - 0.5).min() > 0.45
    for weight, senders, receivers in zip(weights, sides[:-1], sides[1:], strict=True):
        across = np.asarray(weight)[senders[:, None] != receivers]
        assert across.sum() < 0.1 * np.asarray(weight).sum()


def test_one_module_is_as_modular_as_its_null():
    variables, x = halves(1, 0), normal(9, 1024, WIDTH)
    found, _ = modularity(variables, x, interaction_bases(variables, x))
    assert found.z < 2
    assert found.p > 0.05


def test_modularity_of_two_halves_in_closed_form():
    order = np.random.default_rng(0).permutation(8)
    blocks = np.kron(np.eye(2), np.ones((4, 4)))
    found = network_modularity([blocks[:, order], blocks[order]], draws=20)
    assert found.modularity == 0.5
    assert found.p == pytest.approx(1 / 21)
    first, middle, last = found.communities
    np.testing.assert_array_equal(first, last)
    np.testing.assert_array_equal(middle, first[order])
    assert first[0] != first[7]


def test_units_that_act_on_everything_are_no_modules_and_hide_none():
    rng = np.random.default_rng(0)
    even = rng.random((24, 24)) ** 2
    hubs = np.where(np.isin(np.arange(24), [0, 12]), 1e3, 1)[:, None]
    blocks = np.kron(np.eye(2) + 0.01, np.ones((12, 12)))
    assert abs(network_modularity([even * hubs], draws=20).z) < 2
    assert network_modularity([even * hubs * blocks], draws=20).z > 3


def test_the_null_keeps_what_each_unit_sends_and_receives():
    rng = np.random.default_rng(1)
    weights = rng.random((6, 8)) * rng.random((6, 1)) ** 4
    weights[2], weights[:, 5] = 0, 0
    null = _exchanged(weights, rng)
    np.testing.assert_allclose(null.sum(0), weights.sum(0), rtol=1e-6)
    np.testing.assert_allclose(null.sum(1), weights.sum(1), rtol=1e-3)
    assert np.abs(null - weights).max() > 0.1 * weights.max()
    assert not _exchanged(np.zeros((2, 3)), rng).any()


def test_the_null_of_what_all_receive_alike_is_the_same():
    # All units receive alike from one sender alone: so they do in the null, and nothing differs.
    found = network_modularity([np.ones((3, 5))], draws=5)
    np.testing.assert_allclose([found.modularity, *found.null], 0, atol=1e-7)
    assert np.isnan(found.z)
    assert found.p == 1


def test_without_interactions_there_is_no_modularity():
    found = network_modularity([np.zeros((3, 2))], draws=2)
    assert np.isnan(found.modularity)
    assert np.isnan(found.p)


@pytest.mark.parametrize(
    ("interactions", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 3))], "expected interactions"),
        ([], "expected interactions"),
        ([-np.ones((2, 2))], "not negative"),
        ([np.full((2, 2), np.nan)], "finite"),
    ],
)
def test_interactions_that_make_no_network_are_an_error(interactions, message):
    with pytest.raises(ValueError, match=message):
        network_modularity(interactions)
