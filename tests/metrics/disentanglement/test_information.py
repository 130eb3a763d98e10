"""Mutual information, its gap and modularity: hand-computed tables, the reference, invariances."""

import collections
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import NAMES, REFERENCE, world

from vaejax.metrics import mig, modularity, mutual_information

FIELDS = ("score", "per_factor", "matrix")


def grid_factors(*sizes, repeats=1):
    """Every combination of the classes, equally often: `[N, K]`."""
    return np.tile(np.indices(sizes).reshape(len(sizes), -1).T, (repeats, 1))


def naive_mutual_information(code, factor, bins):
    """Counts pair by pair; bins as the reference writes them. In nats."""
    binned = np.digitize(code, np.histogram(code, bins)[1][:-1])
    pairs = collections.Counter(zip(binned.tolist(), factor.tolist(), strict=True))
    left, right = collections.Counter(binned.tolist()), collections.Counter(factor.tolist())
    n = len(code)
    return sum(c / n * math.log(c * n / (left[a] * right[b])) for (a, b), c in pairs.items())


def smooth_codes():
    """Factors `[720, 3]` and codes `[720, 4]`: clean, bent, mixed and unrelated. No random bits."""
    factors = grid_factors(3, 4, 5, repeats=12)
    t = np.arange(len(factors))
    a, b, c = factors.T
    return factors, np.stack(
        [
            a + 0.3 * np.sin(0.7 * t),
            (b - 1.2) ** 2 + 0.4 * np.cos(1.3 * t),
            b + 0.5 * c + 0.9 * np.sin(2.1 * t),
            np.sin(0.37 * t**1.1),
        ],
        axis=1,
    )


def test_perfect_code_scores_one():
    factors = grid_factors(2, 3, 4)
    result = mig(factors[:, [2, 0, 1]] * [-1.0, 5.0, 0.1] + 3.0, factors)
    assert result.score == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(result.per_factor, 1.0)
    np.testing.assert_allclose(
        result.matrix,
        [[0, 0, np.log(4)], [np.log(2), 0, 0], [0, np.log(3), 0]],
        atol=1e-12,
    )
    assert (result.num_skipped_factors, result.num_dead_latents, result.reason) == (0, 0, None)


def test_two_by_two_table_by_hand():
    # Counts: latent 0 / 1 down, factor 0 / 1 across: [[3, 1], [1, 3]].
    factors = np.array([0, 0, 0, 1, 0, 1, 1, 1])[:, None]
    latents = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])[:, None]
    information = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = mutual_information(latents, factors)
    assert found.matrix[0, 0] == pytest.approx(information, rel=1e-12)
    assert found.entropies[0] == pytest.approx(math.log(2), rel=1e-12)
    # A single latent: the runner-up has no information.
    assert mig(latents, factors).score == pytest.approx(information / math.log(2), rel=1e-12)


def test_gap_is_between_the_two_best():
    # By hand: latent 0 tells all four classes apart (ln 4), latent 1 the halves (ln 2), latent 2
    # nothing. Gap (ln 4 - ln 2) / ln 4 = 1/2.
    factors = np.tile(np.arange(4), 6)[:, None]
    latents = np.stack([factors[:, 0], factors[:, 0] // 2, np.arange(24) // 12], axis=1)
    assert mig(latents, factors).score == pytest.approx(0.5, rel=1e-12)


def test_equal_width_bins_by_hand():
    # Range [0, 4] in two bins, cut at 2, the cut itself above: classes {0, 1.9} and {2, 4}.
    latents = np.array([0.0, 1.9, 2.0, 4.0])[:, None]
    assert mig(latents, np.array([[0], [0], [1], [1]]), bins=2).score == pytest.approx(1.0)
    # The maximum joins the last bin; with equally filled bins 1.9 and 2.0 would be told apart too.
    assert mig(latents, np.array([[0], [1], [1], [0]]), bins=2).score == pytest.approx(0.0)


def test_independent_noise_scores_near_zero():
    rng = np.random.default_rng(0)
    result = mig(rng.normal(size=(20_000, 6)), rng.integers(0, 5, size=(20_000, 3)))
    assert 0.0 <= result.score < 1e-3


def test_duplicated_latents_score_zero():
    factors = grid_factors(3, 4)
    np.testing.assert_array_equal(mig(np.repeat(factors, 2, axis=1), factors).per_factor, 0.0)


def test_literals():
    """Made with `naive_mutual_information`, which agrees with disentanglement_lib to 1e-12."""
    result = mig(*reversed(smooth_codes()))
    np.testing.assert_allclose(result.score, 0.5536294170496411, rtol=1e-9)
    np.testing.assert_allclose(
        result.per_factor, [0.9673709573828508, 0.5957087676889605, 0.0978085260771118], rtol=1e-9
    )
    np.testing.assert_allclose(
        result.matrix,
        [
            [1.0986122886681096, 0.010464061947783222, 0.011584832285521993],
            [0.008356866950155018, 1.272789419861825, 0.003489855654790705],
            [0.03584666718667518, 0.44696171434494025, 0.20533406990865335],
            [0.027628768988943654, 0.04150617952922636, 0.047917319880850295],
        ],
        rtol=1e-9,
    )


@pytest.mark.parametrize("bins", [1, 2, 7, 20, 100])
def test_equals_pairwise_counts(bins):
    factors, latents = smooth_codes()
    expected = [[naive_mutual_information(z, g, bins) for g in factors.T] for z in latents.T]
    result = mig(latents, factors, bins=bins)
    np.testing.assert_allclose(result.matrix, expected, rtol=1e-10, atol=1e-14)
    second, best = np.sort(expected, axis=0)[-2:]
    np.testing.assert_allclose(result.per_factor, (best - second) / np.log([3, 4, 5]), atol=1e-12)


@st.composite
def problems(draw):
    n, d, k = draw(st.integers(1, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    latents = draw(hnp.arrays(np.float64, (n, d), elements=st.floats(-100, 100)))
    factors = draw(hnp.arrays(np.int64, (n, k), elements=st.integers(-2, 3)))
    return latents, factors


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(problems(), st.randoms(use_true_random=False))
def test_invariances(problem, random):
    latents, factors = problem
    n, d = latents.shape
    expected = mig(latents, factors)

    def permutation(size):
        return np.array(random.sample(range(size), size))

    rows, columns = permutation(n), permutation(d)
    shuffled = mig(latents[rows], factors[rows])
    for field in FIELDS:  # the same counts, hence the same bits
        np.testing.assert_array_equal(getattr(shuffled, field), getattr(expected, field))

    permuted = mig(latents[:, columns], factors)
    np.testing.assert_array_equal(permuted.per_factor, expected.per_factor)
    np.testing.assert_array_equal(permuted.matrix, expected.matrix[columns])

    relabelled = mig(latents, 10 * permutation(6)[factors + 2] - 7)
    with_dead = mig(np.column_stack([latents, np.full(n, 3.0)]), factors)
    for field in ("score", "per_factor"):
        np.testing.assert_allclose(getattr(relabelled, field), getattr(expected, field), atol=1e-12)
        np.testing.assert_array_equal(getattr(with_dead, field), getattr(expected, field))
    assert with_dead.num_dead_latents == expected.num_dead_latents + 1


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(problems())
def test_bounds(problem):
    result, found = mig(*problem), mutual_information(*problem)
    assert (found.matrix >= 0.0).all()
    assert (found.matrix <= found.entropies + 1e-12).all()
    gaps = result.per_factor[~np.isnan(result.per_factor)]
    assert ((gaps >= 0.0) & (gaps <= 1.0 + 1e-12)).all()
    assert (result.reason is None) == (not np.isnan(result.matrix).any())
    assert np.isnan(result.score) == (result.num_skipped_factors == problem[1].shape[1])


def test_constant_factor_is_left_out_with_a_reason():
    factors = grid_factors(2, 3)
    latents = factors.astype(float)
    result = mig(latents, np.insert(factors, 1, 7, axis=1))
    assert result.score == mig(latents, factors).score
    np.testing.assert_array_equal(np.isnan(result.per_factor), [False, True, False])
    assert result.num_skipped_factors == 1
    assert result.reason == "constant factors: [1]"


def test_all_factors_constant_is_nan_with_a_reason():
    result = mig(np.arange(8.0).reshape(4, 2), np.full((4, 2), 5))
    assert math.isnan(result.score)
    assert result.num_skipped_factors == 2
    assert result.reason == "constant factors: [0, 1]"


def test_all_latents_dead_scores_zero():
    result = mig(np.ones((6, 3)), grid_factors(2, 3))
    assert (result.score, result.num_dead_latents) == (0.0, 3)
    assert result.reason == "dead latents: [0, 1, 2]"
    np.testing.assert_array_equal(mutual_information(np.ones((6, 3)), grid_factors(2, 3)).matrix, 0)


@pytest.mark.parametrize(
    "codes",
    [
        [1.0, np.nextafter(1.0, 2.0), 1.0, 1.0],  # fewer floats than bins
        [0.0, 5e-324, 0.0, 5e-324],  # bins narrower than any float
        [-1e300, 1e300, 0.0, 0.0],
    ],
)
def test_extreme_ranges_neither_raise_nor_warn(codes):
    result = mig(np.array(codes)[:, None], np.arange(4)[:, None])
    assert 0.0 < result.score < 1.0
    assert result.num_dead_latents == 0


def test_fewer_examples_than_classes():
    result = mig(np.array([[0.1, 3.0], [0.7, 3.0]]), np.array([[12], [31]]))
    assert result.score == pytest.approx(1.0)
    assert math.isnan(mig(np.zeros((1, 2)), np.zeros((1, 2), int)).score)


@pytest.mark.parametrize(
    ("latents", "factors", "bins", "message"),
    [
        (np.zeros(4), np.zeros((4, 1), int), 20, r"latents \[N, D\].*\(4,\)"),
        (np.zeros((4, 0)), np.zeros((4, 1), int), 20, r"latents .*\(4, 0\)"),
        (np.zeros((4, 2)), np.zeros(4, int), 20, r"factors \[N, K\].*\(4,\)"),
        (np.zeros((4, 2)), np.zeros((2, 4), int), 20, r"factors .*N = 4.*\(2, 4\)"),
        (np.zeros((4, 2)), np.zeros((4, 1)), 20, "integer factors, got float64"),
        (np.array([[np.nan, np.inf]]), np.zeros((1, 1), int), 20, "finite latents, got 2"),
        (np.zeros((4, 2)), np.zeros((4, 1), int), 0, "bins >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(latents, factors, bins, message):
    with pytest.raises(ValueError, match=message):
        mig(latents, factors, bins=bins)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    latents, factors, _ = world(name)
    expected, found = REFERENCE[name], mutual_information(latents, factors)
    np.testing.assert_allclose(found.matrix, expected["mutual_information"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.entropies, expected["entropies"], rtol=1e-9)
    assert mig(latents, factors).score == pytest.approx(expected["mig"], rel=1e-9)
    with_dead = modularity(latents, factors).with_dead
    assert with_dead == pytest.approx(expected["modularity"], rel=1e-9)


def test_modularity_by_hand():
    # Information of a latent in nats: ln 2 about its factor, ln 2 about two, 0.13 about one.
    factors = grid_factors(2, 2, repeats=4)
    a, b = factors.T
    unsure = np.where(np.arange(16) % 4 == 0, 1 - a, a)  # [[6, 2], [2, 6]] against a
    result = modularity(np.stack([a, a + 2 * b, unsure], axis=1), factors)
    leaning = mutual_information(unsure[:, None], factors).matrix[0]
    np.testing.assert_allclose(
        result.per_latent, [1, 0, 1 - leaning.min() ** 2 / leaning.max() ** 2], atol=1e-12
    )
    assert result.score == pytest.approx(result.per_latent.mean())
    assert result.with_dead == result.score


def test_modularity_says_what_is_undefined():
    factors = grid_factors(2, 3)
    latents = factors.astype(float)
    assert modularity(latents, factors[:, :1]).reason == "fewer than two factors vary"
    dead = modularity(np.ones((6, 2)), factors)
    assert math.isnan(dead.score)
    assert dead.with_dead == 0.0
    assert "no live latent" in dead.reason
    # Varies, and has nothing to do with either factor: left out of the mean, 0 in the reference.
    unrelated = np.tile(factors, (2, 1)), np.repeat([0.0, 1.0], 6)
    result = modularity(np.column_stack([unrelated[0], unrelated[1]]), unrelated[0])
    assert (result.score, result.with_dead) == pytest.approx((1.0, 2 / 3))
    np.testing.assert_array_equal(np.isnan(result.per_latent), [False, False, True])
    assert result.reason == "some latent has no information of any factor"


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(problems(), st.randoms(use_true_random=False))
def test_modularity_invariances(problem, random):
    latents, factors = problem
    expected = modularity(latents, factors)
    columns = random.sample(range(latents.shape[1]), latents.shape[1])
    permuted = modularity(latents[:, columns], 3 * factors[:, ::-1] + 1)
    np.testing.assert_allclose(permuted.score, expected.score)
    np.testing.assert_allclose(permuted.per_latent, expected.per_latent[columns], atol=1e-9)
    ends = np.full((len(latents), 1), 1)
    more = modularity(np.hstack([latents, ends]), np.hstack([ends, factors]))
    np.testing.assert_array_equal(more.score, expected.score)
    assert more.num_dead_latents == expected.num_dead_latents + 1
    assert more.num_skipped_factors == expected.num_skipped_factors + 1


@pytest.mark.parametrize("metric", [mig, modularity])
def test_passive_latents_are_left_out_on_request(metric):
    latents, factors, _ = world("dead")
    active = np.array([True, True, True, True, True, False])
    result = metric(latents, factors, active=active)
    without = metric(latents[:, :5], factors)
    assert (result.score, result.with_dead) == (without.score, without.with_dead)
    assert (result.num_dead_latents, result.num_passive_latents) == (2, 1)
    assert np.isnan(result.matrix[[1, 3, 5]]).all()
    assert result.reason == "dead latents: [1, 3]; latents left out: [5]"


@pytest.mark.parametrize("metric", [mig, modularity])
def test_codes_are_counted_and_not_binned(metric):
    # 40 codes for 40 classes: bins of equal width would merge them in pairs.
    factors = np.stack([np.arange(400) % 40, np.arange(400) // 40], axis=1)
    codes = (7 * factors[:, :1]) % 40
    result = metric(np.hstack([codes, factors[:, 1:]]), factors, discrete=True)
    assert result.score == pytest.approx(1.0)
    assert result.matrix[0, 0] == pytest.approx(math.log(40))
    assert result.estimator == "counts, latents are codes"
    assert metric(codes.astype(float), factors).estimator.startswith("20 bins of equal width")
