"""Circuits that are known, found among units that are none."""

import itertools

import chex
import numpy as np
import pytest
from planted_circuits import (
    READ,
    WRITE,
    Both,
    Hidden,
    Redundant,
    Saturating,
    TwoLayers,
    factor_pairs,
)

from vaejax.circuits import find_circuit, find_circuits, match_units, overlap
from vaejax.interventions import mediate

CLEAN, CORRUPTED, changed = factor_pairs()


def of_factor(k):
    rows = np.flatnonzero(changed == k)
    return CLEAN[rows], CORRUPTED[rows]


def smallest(k, threshold=0.8):
    """The smallest sets of units that mediate enough of a factor, by trying all."""
    read = np.maximum(READ, 0)[k]
    total = read @ WRITE
    along = read * (WRITE @ total) / (total @ total)
    for size in range(11):
        sets = [set(s) for s in itertools.combinations(range(10), size)]
        enough = [s for s in sets if along[list(s)].sum() >= threshold]
        if enough:
            return enough, along
    raise AssertionError


@pytest.mark.parametrize("k", range(5))
def test_the_planted_circuit_is_found_and_is_the_smallest(k):
    found = find_circuit(Hidden().apply, {}, *of_factor(k), ["hidden"])
    sets, along = smallest(k)
    circuit = found.units["hidden"].tolist()
    assert set(circuit) in sets
    assert found.reached
    assert found.size == len(circuit)
    whole = along[circuit].sum()
    np.testing.assert_allclose(found.found, whole, rtol=1e-4)
    np.testing.assert_allclose(found.faithfulness.value, whole, rtol=1e-4)
    np.testing.assert_allclose(found.completeness.value, 1 - whole, atol=1e-4)
    np.testing.assert_allclose(found.lost, along[circuit], rtol=1e-3)
    np.testing.assert_allclose(found.minimality, along[circuit].max(), rtol=1e-3)


def test_faithfulness_is_the_mediated_fraction_of_held_out_pairs():
    clean, corrupted = of_factor(0)
    found = find_circuit(Hidden().apply, {}, clean, corrupted, ["hidden"], threshold=0.5)
    mask = np.isin(np.arange(10), found.units["hidden"])
    held_out = mediate(Hidden().apply, {}, clean[1::2], corrupted[1::2], {"hidden": mask})
    np.testing.assert_allclose(
        found.faithfulness.value, held_out.mediated_fraction.value, rtol=1e-4
    )


def test_the_curve_starts_at_nothing_grows_with_the_best_units_and_ends_at_everything():
    found = find_circuit(Hidden().apply, {}, *of_factor(0), ["hidden"])
    _, along = smallest(0)
    assert found.sizes[0] == 0
    assert found.sizes[-1] == 4  # the unit that nothing reads changes as well
    np.testing.assert_allclose(found.curve.value[0], 0, atol=1e-6)
    np.testing.assert_allclose(found.curve.value[1], along.max(), rtol=1e-4)
    np.testing.assert_allclose(found.curve.value[-1], 1, rtol=1e-4)


def test_random_sets_are_drawn_from_units_that_change():
    found = find_circuit(Hidden().apply, {}, *of_factor(0), ["hidden"], threshold=0.3)
    _, along = smallest(0)
    assert found.size == 1
    assert abs(found.random.value - along[[0, 1, 3, 4]].mean()) < 0.08  # of 99 draws from four
    assert found.random.low == pytest.approx(0, abs=1e-6)  # the one that nothing reads
    # One draw in four is the circuit itself.
    assert 0.1 < found.p_value < 0.45


def test_one_of_two_copies_is_enough_and_leaves_the_other_in_place():
    x = np.linspace(1, 2, 10, dtype=np.float32)[:, None]
    found = find_circuit(Redundant().apply, {}, x, x + 1, ["copies"])
    assert found.size == 1
    np.testing.assert_allclose(found.faithfulness.value, 1, rtol=1e-5)
    np.testing.assert_allclose(found.completeness.value, 1, rtol=1e-5)


def test_two_units_that_only_act_together_are_found_among_those_that_do_nothing():
    x = np.zeros((10, 1), np.float32)
    found = find_circuit(Both().apply, {}, x, x + 1, ["copies"])
    assert found.units["copies"].tolist() == [10, 11]
    np.testing.assert_allclose(found.faithfulness.value, 1, rtol=1e-5)
    np.testing.assert_allclose(found.lost, [1, 1], rtol=1e-5)


def test_exact_patches_overrule_the_gradient():
    x = np.zeros((10, 1), np.float32)
    found = find_circuit(Saturating().apply, {}, x, x + 1, ["copies"])
    assert found.units["copies"].tolist() == [1]
    np.testing.assert_allclose(found.faithfulness.value, 1 / 1.1, rtol=1e-5)


def test_units_of_several_sites_are_found_together_in_the_order_of_the_network():
    x = np.linspace(1, 2, 10, dtype=np.float32)[:, None]
    sites = ["a_second", "b_first"]  # the network has them the other way round
    found = find_circuit(TwoLayers().apply, {}, x, x + 1, sites, threshold=0.9)
    # One of each pair is enough: what is patched later replaces what was patched before it.
    assert found.size == 2
    assert list(found.units) == ["b_first", "a_second"]
    first, second = found.units["b_first"].tolist(), found.units["a_second"].tolist()
    assert sorted(first + second) == [0, 1]
    np.testing.assert_allclose(found.faithfulness.value, 1, rtol=1e-5)


def test_a_circuit_that_nothing_reaches_says_so():
    clean, corrupted = of_factor(0)
    found = find_circuit(Hidden().apply, {}, clean, corrupted, ["hidden"], threshold=1.5)
    assert not found.reached
    assert found.size == 4
    np.testing.assert_allclose(found.found, 1, rtol=1e-5)


def test_pairs_without_an_effect_do_not_count_and_without_any_there_is_no_circuit():
    clean, corrupted = of_factor(0)
    same = corrupted.copy()
    same[:6] = clean[:6]
    found = find_circuit(Hidden().apply, {}, clean, same, ["hidden"])
    np.testing.assert_allclose(found.faithfulness.value, found.found, rtol=1e-4)
    nothing = find_circuit(Hidden().apply, {}, clean, clean, ["hidden"])
    assert (nothing.size, nothing.reached) == (0, False)
    assert np.isnan([nothing.found, nothing.faithfulness.value, nothing.minimality]).all()


def test_wrong_arguments_are_named():
    clean, corrupted = of_factor(0)
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        find_circuit(Hidden().apply, {}, clean, corrupted, ["hiden"])
    with pytest.raises(ValueError, match="at least 4 pairs"):
        find_circuit(Hidden().apply, {}, clean[:3], corrupted[:3], ["hidden"])


def test_circuits_of_all_sites_and_factors_are_those_found_one_by_one():
    seen = []
    found = find_circuits(
        Hidden().apply,
        {},
        CLEAN,
        CORRUPTED,
        changed,
        factors=[2, 0],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    for k, circuit in zip([2, 0], found["hidden"], strict=True):
        alone = find_circuit(Hidden().apply, {}, *of_factor(k), ["hidden"])
        chex.assert_trees_all_close(circuit, alone, rtol=1e-5, atol=1e-6)


def test_overlap_of_sets_and_what_chance_would_give():
    found = overlap([0, 1], [1, 2], 4)
    assert found.jaccard == pytest.approx(1 / 3)
    # Of six sets of two: one shares both (1), four one (1/3), one none.
    assert found.expected == pytest.approx((1 + 4 / 3) / 6)
    assert found.p_value == pytest.approx(5 / 6)
    assert overlap([], [1], 4).jaccard == 0
    assert np.isnan(overlap([], [], 4).jaccard)
    with pytest.raises(ValueError, match=r"0 to 3, got \[4\]"):
        overlap([4], [1], 4)


def test_units_in_another_order_are_matched_back():
    generator = np.random.default_rng(0)
    effects = generator.uniform(size=(30, 5)) ** 4
    effects[3] = 0
    order = generator.permutation(30)
    matching = match_units(effects, effects[order] * generator.uniform(1, 2, (30, 1)))
    alive = np.flatnonzero(effects.any(1))
    np.testing.assert_array_equal(order[matching.partner[alive]], alive)
    np.testing.assert_allclose(matching.similarity[alive], 1)
    assert matching.partner[3] == -1
    assert matching.null < 0.95
    assert matching.p_value == pytest.approx(0.01)
    assert matching.mapped([3, alive[0]]).tolist() == [matching.partner[alive[0]]]


def test_units_that_are_alike_for_every_factor_match_under_any_order_of_them():
    matching = match_units(np.ones((4, 3)), np.ones((6, 3)))
    assert matching.p_value == 1
    with pytest.raises(ValueError, match=r"\[S, K\] and \[T, K\]"):
        match_units(np.ones((4, 3)), np.ones((4, 2)))
