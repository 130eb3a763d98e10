"""SAP and explicitness against the references, closed forms, and everything degenerate."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from worlds import NAMES, REFERENCE, world

from vaejax.metrics.disentanglement.linear import constant_accuracy, explicitness, sap, unit_range


def continuous_sap(latents, factors, *, test, **settings):
    return sap(latents, factors, continuous=True, **settings)


def grid(*sizes, repeats=1):
    """Every combination of the classes, equally often: `[N, K]`."""
    return np.tile(np.indices(sizes).reshape(len(sizes), -1).T, (repeats, 1))


def noise(n, d, k):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.integers(0, 4, (n, k))


@pytest.mark.parametrize("name", NAMES)
def test_reference(name):
    latents, factors, test = world(name)
    reference = REFERENCE[name]
    live = (latents != latents[0]).any(axis=0)

    result = sap(latents, factors, test=test)
    expected = np.array(reference["sap_discrete"]["matrix"])
    np.testing.assert_allclose(result.matrix[live], expected[live], atol=1e-3)
    assert result.with_dead == pytest.approx(reference["sap_discrete"]["score"], abs=1e-3)

    result = sap(latents, factors, continuous=True)
    expected = np.array(reference["sap_continuous"]["matrix"])
    np.testing.assert_allclose(result.matrix[live], expected[live], atol=1e-9)
    assert result.with_dead == pytest.approx(reference["sap_continuous"]["score"], abs=1e-9)

    result = explicitness(latents, factors, test=test)
    expected = reference["explicitness"]["test"]
    np.testing.assert_allclose(result.per_factor, expected, atol=1e-3)
    assert result.score == pytest.approx(np.mean(expected), abs=1e-3)
    assert math.isnan(result.with_dead) if not live.all() else result.with_dead == result.score


def test_dead_latents_count_as_constant_codes_in_with_dead():
    factors = grid(2, repeats=10)
    latents = np.column_stack([factors * 100.0, np.full(20, 3.0)])
    result = sap(latents, factors, test=(latents, factors))
    assert (result.score, result.with_dead) == (0.5, 0.5)
    # Two latents that know the same leave no gap, whatever is dead.
    twice = np.column_stack([latents, latents[:, 0]])
    assert sap(twice, factors, test=(twice, factors)).with_dead == 0.0
    # Their answers are wrong throughout on this test set, and a dead latent's half the time.
    worse = sap(twice, factors, test=(twice, 1 - factors))
    assert (worse.score, worse.with_dead) == (0.0, 0.5)


def test_correlations_by_hand():
    # Factor 0, 1, 2, 3; the latents are itself, and halves of it: covariance 1 of variances
    # 5/4 and 1/4 over four examples: (1/2)^2 / (5/4 * 1/4) = 4/5.
    factors = np.arange(4)[:, None]
    latents = np.column_stack([-3.0 * factors + 1, factors // 2])
    result = sap(latents, factors, continuous=True)
    np.testing.assert_allclose(result.matrix, [[1.0], [0.8]], rtol=1e-12)
    assert result.score == pytest.approx(0.2, rel=1e-12)
    # Labels are numbers: 0, 1, 5 against a latent 0, 1, 2 is (5/3)^2 / (14/3 * 2/3) = 25/28.
    result = sap(np.arange(3.0)[:, None], np.array([[0], [1], [5]]), continuous=True)
    assert result.score == pytest.approx(25 / 28, rel=1e-12)
    # As in the reference, a variance of 1e-12 or less is none.
    latents = np.arange(4.0)[:, None] * [1e-6, 5e-7]
    np.testing.assert_allclose(
        sap(latents, factors, continuous=True).matrix, [[1.0], [0.0]], rtol=1e-12
    )


def test_area_by_hand():
    # Probabilities rise with the code. Of six pairs of positives 1, 3 and negatives 0, 2, 2 four
    # are in order.
    train = np.array([[0.0], [0.1], [3.0], [3.1]]), np.array([[5], [5], [9], [9]])
    test = np.array([[1.0], [3.0], [0.0], [2.0], [2.0]]), np.array([[9], [9], [5], [5], [5]])
    assert explicitness(*train, test=test).score == pytest.approx(4 / 6, rel=1e-12)
    # One positive tied with one of two negatives: (1/2 + 1) / 2.
    test = np.array([[1.0], [1.0], [0.0]]), np.array([[9], [5], [5]])
    assert explicitness(*train, test=test).score == pytest.approx(3 / 4, rel=1e-12)


def test_explicitness_leaves_out_classes():
    latents, factors = grid(3, repeats=5) * 1.0, grid(3, repeats=5)
    # Class 2 never comes, 7 is unknown: an example of neither that is told from 0 and 1 by chance.
    test = np.array([[0.0], [1.0], [1.0]]), np.array([[0], [1], [7]])
    found = explicitness(latents, factors, test=test)
    assert found.score == pytest.approx((1 + 0.75) / 2)  # 1 is tied with 7, and above 0
    test = np.array([[0.0], [1.0]]), np.array([[0, 2], [1, 2]])
    found = explicitness(latents, np.tile(factors, 2), test=test)
    np.testing.assert_array_equal(np.isnan(found.per_factor), [False, True])
    assert found.score == found.per_factor[0] == pytest.approx(1.0)
    assert found.reason == "the test set has one class only of some factor"


@pytest.mark.parametrize(
    ("factors", "codes", "discrete"),
    [
        (grid(2, 2), 100.0 * (0.4 - grid(2, 2)), False),
        (grid(2, 4, repeats=5), np.array([7, -2, 30, 4])[grid(2, 4, repeats=5)], True),
    ],
)
def test_perfect_codes(factors, codes, discrete):
    # The runner-up of SAP is at chance; codes have no order, so one of four classes is no harder.
    chance = 1 / (factors.max(axis=0) + 1)
    test = (codes, factors)
    np.testing.assert_allclose(
        sap(codes, factors, test=test, discrete=discrete).per_factor, 1 - chance
    )
    assert explicitness(codes, factors, test=test, discrete=discrete).score == pytest.approx(1.0)
    assert sap(factors, factors, continuous=True).score == pytest.approx(1.0)


def test_noise():
    # The floors of 2,000 examples with 1,000 to test on: 0.012, 2.2e-4 and 0.4998 were measured.
    latents, factors = noise(3000, 3, 3)
    train, test = (latents[:2000], factors[:2000]), (latents[2000:], factors[2000:])
    assert 0.0 <= sap(*train, test=test).score < 0.03
    assert 0.0 <= sap(*train, continuous=True).score < 2e-3
    assert explicitness(*train, test=test).score == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["dead", "bent"])
@pytest.mark.parametrize("metric", [sap, continuous_sap, explicitness])
def test_invariances(metric, name):
    """To 1e-6: solvers stop near the optimum; all measured differences were below 1e-13."""
    latents, factors, (held, answers) = world(name)
    result = metric(latents, factors, test=(held, answers))
    rows = np.random.default_rng(1).permutation(len(latents))
    columns = np.roll(np.arange(latents.shape[1]), 2)
    variants = [
        (latents[rows], factors[rows], held, answers),
        (latents, 7 - 3 * factors, held, 7 - 3 * answers),
    ]
    if metric is not sap:
        variants += [(a * latents + 1, factors, a * held + 1, answers) for a in (3.0, -0.2)]
    for x, g, *test in variants:
        again = metric(x, g, test=tuple(test))
        np.testing.assert_allclose(again.per_factor, result.per_factor, atol=1e-6)
    again = metric(latents[:, columns], factors, test=(held[:, columns], answers))
    assert again.score == pytest.approx(result.score, abs=1e-6)
    if result.matrix is not None:
        np.testing.assert_allclose(again.matrix, result.matrix[columns], atol=1e-6)


CODES = [0.0, 1.0, 1.0 + 2**-52, -2.5, 5e-324, 1e60, -1e308, 1.7e308]


@st.composite
def problems(draw):
    """Latents and factors to train and test on, codes if discrete; few values, so much is alike."""
    n, m = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    d, k = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    discrete = draw(st.booleans())
    values = st.sampled_from(CODES) if not discrete else st.integers(0, 2)

    def table(rows, columns, element):
        listed = st.lists(element, min_size=rows * columns, max_size=rows * columns)
        return np.array(draw(listed)).reshape(rows, columns)

    train = table(n, d, values), table(n, k, st.integers(0, 2))
    return *train, (table(m, d, values), table(m, k, st.integers(0, 3))), discrete


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(problems(), st.sampled_from([sap, continuous_sap, explicitness]))
def test_degenerate_inputs(problem, metric):
    latents, factors, (held, answers), discrete = problem
    discrete = discrete and metric is not continuous_sap
    result = metric(latents, factors, test=(held, answers), discrete=discrete)
    parts = [part for part in (result.per_factor, result.matrix) if part is not None]
    undefined = math.isnan(result.score) or any(np.isnan(part).any() for part in parts)
    assert undefined == (result.reason is not None)
    assert math.isnan(result.score) or 0.0 <= result.score <= 1.0
    if metric is not explicitness:
        assert math.isnan(result.score) == (result.num_skipped_factors == factors.shape[1])

    more = metric(
        np.column_stack([latents, np.full(len(latents), 3)]),
        np.column_stack([factors, np.full(len(factors), 2)]),
        test=(np.column_stack([held, held[:, 0]]), np.column_stack([answers, answers[:, 0]])),
        discrete=discrete,
    )
    np.testing.assert_array_equal(more.score, result.score)
    np.testing.assert_array_equal(more.per_factor[:-1], result.per_factor)
    assert more.num_dead_latents == result.num_dead_latents + 1
    assert more.num_skipped_factors == result.num_skipped_factors + 1


def test_without_live_latents():
    latents, factors = np.ones((6, 3)), grid(2, 3)
    test = (latents, factors)
    assert sap(latents, factors, test=test).score == 0.0
    assert sap(latents, factors, continuous=True).score == 0.0
    result = explicitness(latents, factors, test=test)
    assert (result.score, result.reason) == (0.5, None)
    nothing = sap(factors * 1.0, factors, test=(factors * 1.0, factors), active=np.zeros(2, bool))
    assert (nothing.score, nothing.num_passive_latents) == (0.0, 2)
    assert math.isnan(nothing.with_dead)


@pytest.mark.parametrize(
    "codes", [[-1.0, 1e-293, -1.0, 1e-287], [1e100, -1e100, 2e100, 0.0], [-1e308, 1e60, 0.0, 1.0]]
)
def test_numbers_that_the_solver_never_ends_on(codes):
    latents, factors = np.array(codes)[:, None], np.array([[1], [0], [0], [1]])
    assert 0.0 <= sap(latents, factors, test=(latents, factors)).score <= 0.5


def test_constant_accuracy():
    assert constant_accuracy(np.array([0, 1, 1]), np.array([1, 0, 1, -1])) == 0.5
    # Classes 0 and 2 are equally common: the mean of 1/4 and 1/2.
    assert constant_accuracy(np.array([0, 2, 2, 0, 1]), np.array([2, 0, 2, 1])) == 0.375


def test_unit_range():
    columns, held = unit_range(np.array([[1.0, -1e308], [3.0, 1e308]]), np.array([[5.0, 0.0]]))
    np.testing.assert_array_equal(columns, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(held, [[2, 0.5]])
    _, held = unit_range(np.array([[0.0], [5e-324]]), np.array([[1e308], [-1e308]]))
    np.testing.assert_array_equal(held, [[1e6], [-1e6]])


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        (sap, {}, r"test = \(latents, factors\), as SAP is not continuous"),
        (sap, {"continuous": True, "test": grid(2, 2)}, "no test set, as continuous"),
        (sap, {"continuous": True, "discrete": True}, "numbers, as SAP is continuous, got codes"),
        (sap, {"test": grid(2, 2)}, r"test = \(latents, factors\)"),
        (explicitness, {"test": (grid(2), grid(2))}, r"test latents \[M, 2\]"),
    ],
)
def test_wrong_arguments_are_named(metric, settings, message):
    with pytest.raises(ValueError, match=message):
        metric(grid(2, 2), grid(2, 2), **settings)
