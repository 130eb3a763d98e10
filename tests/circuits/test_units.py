"""Effects of units for factors, and their labels, where both are known."""

import numpy as np
import pytest
from planted_circuits import CARRIED, CORRELATED, READ, WRITE, Hidden, factor_pairs

from vaejax.circuits import INACTIVE, MONOSEMANTIC, POLYSEMANTIC, factor_units, label_units

PAIRS = factor_pairs()


@pytest.fixture(scope="module")
def found():
    return factor_units(Hidden().apply, {}, *PAIRS, sites=["hidden"])["hidden"]


def closed_form():
    """Effects `[S, K]` of units that act alone: what they read times what they write."""
    written = np.linalg.norm(WRITE, axis=1)
    total = np.linalg.norm(np.maximum(READ, 0) @ WRITE, axis=1)
    return np.maximum(READ, 0).T * written[:, None] / total


def test_effects_are_those_of_the_closed_form_and_within_their_intervals(found):
    np.testing.assert_allclose(found.effect.value, closed_form(), rtol=1e-4, atol=1e-6)
    assert (found.effect.low <= found.effect.value + 1e-6).all()
    assert (found.effect.high >= found.effect.value - 1e-6).all()


def test_mediated_fractions_are_those_of_the_closed_form(found):
    total = np.maximum(READ, 0) @ WRITE
    along = np.einsum("ks,sf,kf->sk", np.maximum(READ, 0), WRITE, total) / (total**2).sum(1)
    np.testing.assert_allclose(found.mediated_fraction.value, along, rtol=1e-4, atol=1e-6)


def test_labels_and_factors_are_the_planted_ones(found):
    expected = [(INACTIVE, MONOSEMANTIC, POLYSEMANTIC)[min(len(carried), 2)] for carried in CARRIED]
    assert found.label.tolist() == expected
    assert [set(np.flatnonzero(row)) for row in found.beyond_null] == CARRIED
    assert found.exact.all()


def test_monosemanticity_is_1_for_one_factor_and_less_for_two_and_undefined_without_effect(found):
    mono = found.monosemanticity
    np.testing.assert_allclose(mono[[0, 1, 2, 7, 8, 9]], 1, atol=1e-6)
    share = closed_form()[3] / closed_form()[3].sum()
    entropy = -np.sum(share[:2] * np.log(share[:2]))
    np.testing.assert_allclose(mono[3], 1 - entropy / np.log(5), rtol=1e-4)
    assert np.isnan(mono[4:7]).all()


def test_a_unit_that_follows_a_factor_without_effect_is_rejected_where_correlation_accepts_it(
    found,
):
    clean, _, _ = PAIRS
    activation = np.maximum(clean @ READ, 0)[:, CORRELATED]
    assert np.corrcoef(activation, clean[:, 0])[0, 1] > 0.999
    assert found.effect.value[CORRELATED].max() == 0
    assert found.label[CORRELATED] == INACTIVE


def test_without_labels_that_mean_anything_nothing_stands_out():
    clean, corrupted, changed = PAIRS
    shuffled = np.random.default_rng(1).permutation(changed)
    found = factor_units(Hidden().apply, {}, clean, corrupted, shuffled, sites=["hidden"])["hidden"]
    assert not found.beyond_null.any()
    assert not (found.label == MONOSEMANTIC).any()
    # What has an effect has it on all factors then.
    assert (found.label[[0, 1, 2, 3, 7, 8, 9]] == POLYSEMANTIC).all()


def test_screening_patches_the_strongest_and_attributes_the_rest():
    network = Hidden().apply, {}, *PAIRS
    found = factor_units(*network, sites=["hidden"], screen=1)["hidden"]
    assert found.exact.tolist() == [unit in (0, 2, 7, 8, 9) for unit in range(10)]
    # Linear in its units, so that the first order is all; along the total effect, so not more.
    everything = factor_units(*network, sites=["hidden"])["hidden"]
    np.testing.assert_allclose(
        found.mediated_fraction.value, everything.mediated_fraction.value, rtol=1e-4, atol=1e-6
    )
    assert (found.effect.value <= everything.effect.value + 1e-5).all()
    assert found.label.tolist() == everything.label.tolist()


def test_false_discoveries_are_as_rare_as_promised():
    # Two hundred units whose effects have nothing to do with the factor, and no one label.
    generator = np.random.default_rng(0)
    effects = generator.gamma(2.0, size=(200, 60))
    found = label_units(
        {"site": effects},
        {"site": effects},
        np.ones(60),
        np.arange(60) % 3,
        num_factors=3,
    )["site"]
    assert found.beyond_null.sum() <= 2
    assert (found.label == MONOSEMANTIC).sum() <= 2


def test_a_unit_of_mixed_effects_is_not_monosemantic_however_significant_its_favourite():
    # One factor has 40% more effect than each of the others, beyond any doubt.
    generator = np.random.default_rng(0)
    changed = np.arange(300) % 3
    effects = (1 + 0.4 * (changed == 0) + 0.01 * generator.normal(size=(4, 300))) / 4
    found = label_units({"site": effects}, {"site": effects}, np.ones(300), changed, num_factors=3)[
        "site"
    ]
    assert found.beyond_null[:, 0].all()
    assert (found.label == POLYSEMANTIC).all()


def test_factors_without_pairs_are_left_out_of_everything():
    clean, corrupted, changed = PAIRS
    found = factor_units(
        Hidden().apply, {}, clean, corrupted, changed, num_factors=6, sites=["hidden"]
    )["hidden"]
    assert np.isnan(found.effect.value[:, 5]).all()
    assert not found.beyond_null[:, 5].any()
    np.testing.assert_allclose(found.monosemanticity[0], 1, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "num_factors", "message"),
    [
        (np.zeros(3, int), None, r"changed \[100\] of integers"),
        (np.zeros(100), None, "float64"),
        (np.arange(100) % 5, 4, "from 0 to 3"),
    ],
)
def test_wrong_labels_of_pairs_are_named(changed, num_factors, message):
    with pytest.raises(ValueError, match=message):
        factor_units(Hidden().apply, {}, *PAIRS[:2], changed, num_factors=num_factors)
