"""The unsupervised ranking against disentanglement_lib, and by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats
from worlds import REFERENCE, world

from vaejax.metrics.disentanglement.udr import udr

KINDS = ("lasso", "spearman")
SQUARE = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def models():
    latents = [world("aligned")[0], world("bent")[0][:, :5], world("dead")[0][:, [0, 2, 4, 5, 1]]]
    active = [np.array(mask, bool) for mask in ([1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 1, 0])]
    return latents, active


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind):
    latents, active = models()
    result, expected = udr(latents, active=active, correlation=kind), REFERENCE[f"udr_{kind}"]
    np.testing.assert_allclose(result.scores, expected["scores"], rtol=1e-6)
    pairs = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(
        result.pairwise[pairs], np.array(expected["pairwise"])[pairs], rtol=1e-6
    )
    assert np.isnan(np.diag(result.pairwise)).all()
    assert (result.num_inactive.tolist(), result.reason) == ([1, 0, 1], None)
    shapes = [[None if c is None else c.shape for c in row] for row in result.correlations]
    assert shapes == [[None, (4, 5), (4, 4)], [(5, 4), None, (5, 4)], [(4, 4), (4, 5), None]]


def test_spearman_of_each_pair_of_latents():
    latents = [np.round(2 * z[:, :3]) for z in models()[0]]  # with many ties
    correlations = udr(latents, correlation="spearman").correlations
    for i, j, a, b in np.ndindex(3, 3, 3, 3):
        if i != j:
            expected = abs(stats.spearmanr(latents[i][:, a], latents[j][:, b]).statistic)
            assert correlations[i][j][a, b] == pytest.approx(expected, abs=1e-12)


def test_lasso_by_hand():
    # Of orthogonal latents the penalty takes 0.1 from each weight: 0.6 and 0.8 become 0.5 and 0.7.
    rotated = (SQUARE - 0.5) @ [[0.6, -0.8], [0.8, 0.6]] * [30.0, -0.2] + 5
    result = udr([SQUARE, rotated])
    np.testing.assert_allclose(result.correlations[0][1], [[0.5, 0.7], [0.7, 0.5]], atol=1e-9)
    strength = 0.7**2 / (0.5 + 0.7)
    np.testing.assert_allclose(result.scores, [strength, strength], atol=1e-9)
    # So that even a model that is the other's permutation and scaling has 0.9^2 / 0.9.
    np.testing.assert_allclose(udr([SQUARE, SQUARE[:, ::-1] * [-3, 5]]).scores, 0.9, atol=1e-9)


def test_relative_strength_by_hand():
    # Model 0 has the first latent only: R = [[1, 0]]. Columns: 1 and nothing, rows: 1.
    result = udr([SQUARE[:, :1], SQUARE], correlation="spearman")
    np.testing.assert_allclose(result.correlations[0][1], [[1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(result.pairwise[0, 1], ((1 + 0) / 2 + 1) / 2, atol=1e-12)
    np.testing.assert_allclose(result.pairwise[1, 0], result.pairwise[0, 1], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_medians_of_columns(kind):
    latents, _ = models()
    result = udr([*latents, world("rotated")[0]], correlation=kind)
    for m in range(4):
        others = sorted(np.delete(result.pairwise[:, m], m))
        assert result.scores[m] == pytest.approx(others[1])  # of three


@pytest.mark.parametrize(("kind", "best"), [("lasso", 0.9), ("spearman", 1.0)])
def test_models_that_agree_and_noise(kind, best):
    rng = np.random.default_rng(0)
    latents = np.indices((8, 8, 8, 8)).reshape(4, -1).T.astype(float)
    agreeing = [latents[:, rng.permutation(4)] * rng.choice([-2, 3], 4) for _ in range(3)]
    result = udr([*agreeing, rng.uniform(size=latents.shape)], correlation=kind)
    # Noise: no correlation above the penalty; those of ranks are 1 / sqrt(N) = 0.016.
    np.testing.assert_allclose(result.scores[:3], best, atol=1e-9)
    assert 0.0 <= result.scores[3] < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_dead_latents_are_inactive(kind):
    latents, active = models()
    expected = udr(latents, active=active, correlation=kind)
    more = [np.insert(z, 2, 1.0, axis=1) for z in latents]
    result = udr(more, active=[np.insert(a, 2, True) for a in active], correlation=kind)
    np.testing.assert_array_equal(result.pairwise, expected.pairwise)
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.num_inactive, expected.num_inactive + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_active_latents_is_left_out(kind):
    latents, active = models()
    expected = udr(latents, active=active, correlation=kind)
    result = udr(
        [latents[0], np.ones((600, 2)), *latents[1:]],
        active=[active[0], np.ones(2, bool), *active[1:]],
        correlation=kind,
    )
    np.testing.assert_array_equal(result.scores[[0, 2, 3]], expected.scores)
    assert np.isnan(result.scores[1])
    assert np.isnan(result.pairwise[1]).all()
    assert np.isnan(result.pairwise[:, 1]).all()
    assert result.correlations[0][1].shape == (4, 0)
    assert result.reason == "models without active latents: [1]"
    alone = udr([latents[0], np.ones((600, 2))], correlation=kind)
    assert np.isnan(alone.scores).all()


@pytest.mark.parametrize("kind", KINDS)
def test_invariances(kind):
    latents, active = models()
    expected = udr(latents, active=active, correlation=kind).pairwise
    rows, columns, order = np.random.default_rng(0).permutation(600), [3, 1, 4, 0, 2], [2, 0, 1]
    variants = {
        "examples": ([z[rows] for z in latents], active),
        "shift and sign": ([7 - 3 * z for z in latents], active),
        "latents": ([z[:, columns] for z in latents], [a[columns] for a in active]),
        "models": ([latents[m] for m in order], [active[m] for m in order]),
    }
    for name, (given, masks) in variants.items():
        result = udr(given, active=masks, correlation=kind)
        same = expected[np.ix_(order, order)] if name == "models" else expected
        # The lasso goes through latents one by one, to a duality gap of 1e-4 of the variance.
        tolerance = 5e-4 if kind == "lasso" and name == "latents" else 1e-9
        np.testing.assert_allclose(result.pairwise, same, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(
            result.scores, [np.nanmedian(column) for column in same.T], atol=tolerance
        )


VALUES = [0.0, 1.0, np.nextafter(1.0, 2.0), -2.5, 5e-324, 1e300, -1.7e308, 1.7e308]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.integers(1, 12),
    st.lists(st.integers(1, 3), min_size=2, max_size=3),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
)
def test_degenerate_inputs_neither_raise_nor_warn(n, sizes, palette, seed, kind):
    rng = np.random.default_rng(seed)
    latents = [rng.choice(np.array(palette), size=(n, d)) for d in sizes]
    latents[0] = np.repeat(latents[0], 2, axis=1)  # duplicates
    result = udr(latents, correlation=kind)
    empty = np.array([(z == z[0]).all() for z in latents])
    undefined = empty | empty[:, None] | np.eye(len(latents), dtype=bool)
    np.testing.assert_array_equal(np.isnan(result.pairwise), undefined)
    np.testing.assert_array_equal(np.isnan(result.scores), undefined.all(axis=0))
    assert (result.reason is None) == (not empty.any())
    known = result.pairwise[~undefined]
    assert ((known >= 0) & (known <= 1)).all()


@pytest.mark.parametrize(
    ("latents", "arguments", "message"),
    [
        ([SQUARE], {}, "2 models or more, got 1"),
        ([SQUARE, SQUARE[:3]], {}, r"same N images for all models, got \[4, 3\]"),
        ([SQUARE, SQUARE[0]], {}, r"model 1: expected latents \[N, D\]"),
        ([np.nan * SQUARE, SQUARE], {}, "model 0: expected finite latents, got 8"),
        ([SQUARE] * 2, {"active": [[True, True]]}, "2 masks in active, got 1"),
        ([SQUARE] * 2, {"active": [[True]] * 2}, "model 0: expected active .*D = 2"),
        ([SQUARE] * 2, {"correlation": "pearson"}, "'lasso' or 'spearman', got 'pearson'"),
    ],
)
def test_wrong_arguments_are_named(latents, arguments, message):
    with pytest.raises(ValueError, match=message):
        udr(latents, **arguments)
