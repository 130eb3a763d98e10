"""Dependence between latents against disentanglement_lib and closed forms."""

import math

import hypothesis
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st
from worlds import NAMES, REFERENCE, world

from vaejax.metrics.disentanglement.columns import scaled, standardised
from vaejax.metrics.disentanglement.information import mutual_information
from vaejax.metrics.disentanglement.unsupervised import unsupervised_scores

GAUSSIAN = ("total_correlation", "wasserstein", "wasserstein_normalised")
SCORES = (*GAUSSIAN, "mutual_information")


def correlated(correlation, scales=(1.0, 1.0)):
    """Latents `[4, 2]` of exactly this correlation and these standard deviations (ddof 1)."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)
    mixed = correlation * signs[:, 0] + math.sqrt(1 - correlation**2) * signs[:, 1]
    return np.stack([signs[:, 0], mixed], axis=1) * scales


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    latents, expected = world(name)[0], REFERENCE[name]
    result = unsupervised_scores(latents)
    for score in GAUSSIAN:
        assert getattr(result, score) == pytest.approx(expected[f"gaussian_{score}"], rel=1e-9)
    assert result.mutual_information_with_dead == pytest.approx(
        expected["mutual_information_score"], rel=1e-9
    )
    dead = 2 if name == "dead" else 0
    d = latents.shape[1]
    ratio = d * (d - 1) / ((d - dead) * (d - dead - 1))  # dead latents' pairs count as 0
    assert result.mutual_information == pytest.approx(
        ratio * expected["mutual_information_score"], rel=1e-9
    )
    assert result.num_dead_latents == dead


@pytest.mark.parametrize("correlation", [0.0, 0.3, -0.9, 0.9999])
def test_gaussian_closed_forms(correlation):
    result = unsupervised_scores(correlated(correlation))
    assert result.total_correlation == pytest.approx(-0.5 * math.log(1 - correlation**2), rel=1e-9)
    wasserstein = 4 - 2 * (math.sqrt(1 + correlation) + math.sqrt(1 - correlation))
    assert result.wasserstein == pytest.approx(wasserstein, rel=1e-9, abs=1e-15)
    assert result.wasserstein_normalised == pytest.approx(wasserstein / 2, rel=1e-9, abs=1e-15)


def test_wasserstein_by_the_matrix_root():
    latents = world("rotated")[0] * [1.0, 20.0, 0.3, 4.0]
    covariance = np.cov(latents.T)
    root = np.diag(np.sqrt(np.diag(covariance)))
    expected = 2 * np.trace(covariance - scipy.linalg.sqrtm(root @ covariance @ root))
    assert unsupervised_scores(latents).wasserstein == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("discrete", [False, True])
def test_matrix_is_the_information_of_pairs(discrete):
    latents = world("dead")[0]
    codes = np.stack([np.digitize(z, np.histogram(z, 7)[1][:-1]) for z in latents.T], axis=1)
    # Latents as the factors of one another.
    expected = mutual_information(codes, codes, discrete=True).matrix
    result = unsupervised_scores(codes if discrete else latents, bins=7, discrete=discrete)
    live = [0, 2, 4, 5]
    np.testing.assert_allclose(result.matrix[np.ix_(live, live)], expected[np.ix_(live, live)])
    assert np.isnan(result.matrix[[1, 3]]).all()
    assert np.isnan(result.matrix[:, [1, 3]]).all()
    pairs = expected[np.ix_(live, live)][~np.eye(4, dtype=bool)]
    assert result.mutual_information == pytest.approx(pairs.mean(), rel=1e-12)
    assert result.mutual_information_with_dead == pytest.approx(pairs.sum() / 30, rel=1e-12)
    if discrete:
        assert all(math.isnan(getattr(result, score)) for score in GAUSSIAN)
        assert result.reason.startswith("codes have no covariance; dead latents: [1, 3]")


def test_noise_scores_near_zero():
    result = unsupervised_scores(np.random.default_rng(0).uniform(size=(10_000, 4)))
    assert result.total_correlation < 1e-3  # 6 / (2 N) is expected
    assert result.wasserstein_normalised < 1e-3
    assert result.mutual_information == pytest.approx(19**2 / 2 / 10_000, rel=0.1)  # the bias


@pytest.mark.parametrize(
    "latents",
    [
        np.repeat(world("bent")[0], 2, axis=1),
        world("bent")[0] @ np.ones((6, 1)) * [1.0, -2.0, 1e-9],
        world("bent")[0][:6],
        np.column_stack([world("aligned")[0], world("aligned")[0].sum(axis=1)]),
    ],
)
def test_singular_covariance_is_infinite_with_a_reason(latents):
    result = unsupervised_scores(latents)
    assert result.total_correlation == math.inf
    assert result.reason == "the covariance is singular, its total correlation infinite"
    assert np.isfinite([result.wasserstein, result.mutual_information]).all()


def test_covariance_of_different_units_is_not_singular():
    latents = correlated(0.5, scales=(1e-150, 1e150))
    assert unsupervised_scores(latents).total_correlation == pytest.approx(
        -0.5 * math.log(0.75), rel=1e-9
    )


def test_the_widest_range_has_the_same_information():
    latents = world("bent")[0]
    widest = latents / np.abs(latents).max(axis=0) * 1.7e308
    expected = unsupervised_scores(widest / 1e308)
    result = unsupervised_scores(widest)
    np.testing.assert_allclose(result.matrix, expected.matrix, rtol=1e-9)
    assert result.total_correlation == pytest.approx(expected.total_correlation, rel=1e-9)
    assert result.wasserstein == math.inf  # of 1e616
    assert result.wasserstein_normalised == pytest.approx(expected.wasserstein_normalised, rel=1e-9)


def test_one_live_latent_and_none():
    latents = np.column_stack([np.arange(5.0), np.ones(5)])
    one = unsupervised_scores(latents)
    assert [getattr(one, score) for score in GAUSSIAN] == [0.0, 0.0, 0.0]
    assert math.isnan(one.mutual_information)
    assert one.mutual_information_with_dead == 0.0
    assert one.matrix[0, 0] == pytest.approx(math.log(5))
    assert one.reason == "fewer than two live latents; dead latents: [1]"
    none = unsupervised_scores(latents, active=[False, True])
    assert all(math.isnan(getattr(none, score)) for score in SCORES)
    assert math.isnan(none.mutual_information_with_dead)
    assert none.reason == "no live latent; dead latents: [1]; latents left out: [0]"
    assert (none.num_dead_latents, none.num_passive_latents) == (1, 1)


def test_invariances():
    latents = world("rotated")[0]
    expected = unsupervised_scores(latents)
    rows, columns = np.random.default_rng(0).permutation(len(latents)), [2, 0, 3, 1]
    same = {
        "examples": unsupervised_scores(latents[rows]),
        "latents": unsupervised_scores(latents[:, columns]),
        "active": unsupervised_scores(
            np.insert(latents, 1, rows, axis=1), active=[True, False, True, True, True]
        ),
        "shift": unsupervised_scores(latents + np.array([8.0, -4.0, 0.0, 2.0])),
    }
    for name, variant in same.items():
        for score in SCORES:
            value = pytest.approx(getattr(expected, score), rel=1e-9)
            assert getattr(variant, score) == value, (name, score)
    permuted = expected.matrix[np.ix_(columns, columns)]
    np.testing.assert_allclose(same["latents"].matrix, permuted, rtol=1e-12)
    # Bins are closed below, so the sign of a latent can move examples; a unit cannot.
    units = unsupervised_scores(latents * [4.0, 0.5, 2.0, 8.0])
    assert units.total_correlation == pytest.approx(expected.total_correlation, rel=1e-9)
    assert units.mutual_information == expected.mutual_information
    joint = unsupervised_scores(-10 * latents)
    assert joint.wasserstein == pytest.approx(100 * expected.wasserstein, rel=1e-9)
    assert joint.wasserstein_normalised == pytest.approx(expected.wasserstein_normalised, rel=1e-9)


VALUES = [0.0, 1.0, np.nextafter(1.0, 2.0), -2.5, 5e-324, 1e300, -1.7e308, 1.7e308]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_degenerate_inputs_neither_raise_nor_warn(n, d, palette, seed, discrete):
    latents = np.random.default_rng(seed).choice(np.array(palette), size=(n, d))
    if discrete:
        latents = np.searchsorted(np.unique(palette), latents)
    result = unsupervised_scores(latents, discrete=discrete)
    values = np.array([getattr(result, score) for score in SCORES])
    assert (values[~np.isnan(values)] >= 0).all()
    if np.isnan(values).any() or math.isinf(result.total_correlation):
        assert result.reason is not None
    if (latents != latents[0]).any(axis=0).sum() > 1 and not discrete:
        assert not np.isnan(values).any()
    dead = unsupervised_scores(np.insert(latents, 0, 3, axis=1), discrete=discrete)
    np.testing.assert_array_equal([getattr(dead, score) for score in SCORES], values)
    np.testing.assert_array_equal(dead.matrix[1:, 1:], result.matrix)
    assert dead.num_dead_latents == result.num_dead_latents + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": np.zeros(4)}, r"latents \[N, D\].*\(4,\)"),
        ({"latents": 3.0}, r"latents \[N, D\].*\(\)"),
        ({"latents": np.array([[np.inf, 0.0]])}, "finite latents, got 1"),
        ({"bins": 0}, "bins >= 1, got 0"),
        ({"active": [True]}, "active .*D = 2"),
        ({"discrete": True}, "integer latents"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        unsupervised_scores(**({"latents": np.zeros((4, 2))} | arguments))


def test_scaling_is_exact_and_standardising_survives_all_ranges():
    columns = np.array([[3.0, 1.7e308, 5e-324, 1.0], [-5.0, -1.7e308, 0.0, 1.0 + 2.0**-52]])
    halves, exponents = scaled(columns)
    np.testing.assert_array_equal(np.ldexp(halves, exponents), columns)
    assert (np.abs(halves).max(axis=0) < 1).all()
    np.testing.assert_allclose(standardised(columns), [[1, 1, 1, -1], [-1, -1, -1, 1]])
