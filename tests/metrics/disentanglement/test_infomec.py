"""InfoMEC against the formulas of latent_quantization, and by hand."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special
from sklearn.feature_selection import mutual_info_classif
from worlds import NAMES, REFERENCE, world

from vaejax.metrics.disentanglement.infomec import infomec, nearest_information

GRID = np.tile(np.indices((3, 4, 5)).reshape(3, -1).T, (5, 1))
NAMED = ("infom", "infoc", "infoe")


def concentration(information):
    """Of each row, by the formula."""
    size = information.shape[1]
    return (information.max(axis=1) / information.sum(axis=1) - 1 / size) / (1 - 1 / size)


def values(result):
    return [getattr(result, name).score for name in NAMED]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    latents, factors, _ = world(name)
    expected, live = REFERENCE[name]["infomec"], (latents != latents[0]).any(axis=0)
    result = infomec(latents, factors)
    nmi = np.array(expected["nmi"])
    for score in (result.infom, result.infoc):
        np.testing.assert_allclose(score.matrix[live], nmi, atol=1e-12)
        assert np.isnan(score.matrix[~live]).all()
    informed = nmi.sum(axis=1) > 0
    per_latent = np.full(len(nmi), np.nan)
    per_latent[informed] = concentration(nmi[informed])
    np.testing.assert_allclose(result.infom.per_latent[live], per_latent, atol=1e-12)
    np.testing.assert_allclose(result.infoc.per_factor, concentration(nmi.T), atol=1e-12)
    assert result.infoc.score == pytest.approx(expected["infoc"], rel=1e-9)
    assert result.infoe.score == pytest.approx(expected["infoe"], abs=1e-3)
    # The reference is NaN where a latent has no information; here that latent is left out.
    assert informed.all() == (not math.isnan(expected["infom"]))
    infom = expected["infom"] if informed.all() else per_latent[informed].mean()
    assert result.infom.score == pytest.approx(infom, rel=1e-9)
    uninformed = np.flatnonzero(live)[~informed].tolist()
    if uninformed:
        assert result.infom.reason == f"latents without information: {uninformed}"
    for score in (result.infom, result.infoc, result.infoe):
        assert score.with_dead == score.score
        assert score.num_dead_latents == (~live).sum()


def test_codes_by_hand():
    # Two binary factors; code 0 is both, code 1 the first, code 2 neither.
    factors = np.tile([[0, 0], [0, 1], [1, 0], [1, 1]], (2, 1))
    both, first = factors @ [2, 1], factors[:, 0]
    latents = np.stack([both, first, np.arange(8) // 4], axis=1)
    result = infomec(latents, factors, discrete=True)
    np.testing.assert_allclose(result.infom.matrix, [[1, 1], [1, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(result.infom.per_latent, [0.0, 1.0, np.nan], atol=1e-12)
    assert result.infom.score == pytest.approx(0.5)
    assert result.infom.reason == "latents without information: [2]"
    # Factor 0 is known by two latents of three: (1/2 - 1/3) / (2/3); factor 1 by one.
    np.testing.assert_allclose(result.infoc.per_factor, [0.25, 1.0])
    assert result.infoc.score == pytest.approx(0.625)
    np.testing.assert_allclose(result.infoe.per_factor, 1.0, atol=1e-3)


@pytest.mark.parametrize("discrete", [False, True])
def test_perfect_code_scores_one(discrete):
    latents = GRID[:, [2, 0, 1]] * [-2, 1, 3]
    result = infomec(latents, GRID, discrete=discrete)
    assert values(result) == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    assert [getattr(result, name).reason for name in NAMED] == [None] * 3


def test_noise():
    # The estimate is 0 for most pairs and 0.003 on average for the others, so that neither InfoM
    # nor InfoC is small; InfoE is about the number of weights over 2 N ln 5.
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, size=(4000, 3))
    result = infomec(rng.uniform(size=(4000, 6)), factors)
    assert result.infom.matrix.max() < 0.015  # 0.012
    assert 0 < result.infoe.score < 0.004  # 0.002


def test_a_readout_that_knows_nothing_explains_nothing():
    # Of a balanced grid, factors say nothing of one another.
    result = infomec(GRID[:, :1] * 1.0, GRID[:, 1:])
    np.testing.assert_allclose(result.infoe.per_factor, 0.0, atol=1e-6)
    # However rare a class, a readout without information has all of them equally likely.
    rare = np.repeat([[0], [0], [0], [1]], 10, axis=0)
    result = infomec(np.tile([[0.0], [1.0]], (20, 1)), rare)
    assert result.infoe.score == pytest.approx(0.0, abs=1e-6)


def test_latents_of_a_small_range_are_pruned():
    latents, factors, _ = world("bent")
    widest = np.ptp(latents, axis=0).max()
    fitting = np.sin(7 * np.arange(len(latents)))
    fitting /= np.ptp(fitting)
    at, above = (
        infomec(np.column_stack([ratio * widest * fitting, latents]), factors)
        for ratio in (0.0499, 0.0501)
    )
    expected = infomec(latents, factors)
    assert values(at)[:2] == values(expected)[:2]
    assert at.infoe.score != expected.infoe.score  # the readout has them all
    np.testing.assert_array_equal(at.infom.per_latent[1:], expected.infom.per_latent)
    assert np.isnan(at.infom.per_latent[0])
    for score in (at.infom, at.infoc):
        assert "1 latents pruned" in score.estimator
        assert (score.num_dead_latents, score.reason) == (0, "latents pruned: [0]")
        assert np.isnan(score.matrix[0]).all()
    assert not np.isnan(above.infom.matrix).any()
    assert "0 latents pruned" in above.infom.estimator


@pytest.mark.parametrize("discrete", [False, True])
def test_few_latents_and_factors(discrete):
    latents, factors = GRID[:, :2] * [3, 1], GRID
    alone = infomec(latents, factors[:, :1], discrete=discrete)
    assert np.isnan(alone.infom.score)
    assert alone.infom.reason == "fewer than two factors vary"
    assert alone.infoc.score == pytest.approx(1.0, abs=0.01)
    single = infomec(latents, factors, active=np.array([True, False]), discrete=discrete)
    assert single.infom.score == pytest.approx(1.0, abs=0.01)
    assert np.isnan(single.infoc.score)
    assert single.infoc.reason == "fewer than two latents enter; latents left out: [1]"
    none = infomec(np.ones((60, 2), int), factors[:60], discrete=discrete)
    assert none.infom.reason == "no live latent; dead latents: [0, 1]"
    assert np.isnan([none.infom.score, none.infoc.score]).all()
    assert none.infoe.score == 0.0


def test_nothing_is_estimated_of_classes_of_one_example():
    latents, factors = np.random.default_rng(0).normal(size=(2, 6, 3))
    factors = np.column_stack([np.argsort(factors[:, 0]), np.arange(6) % 2])
    result = infomec(latents, factors)
    np.testing.assert_array_equal(result.infom.matrix[:, 0], 0.0)
    assert np.isnan(result.infoc.per_factor[0])
    assert result.infoc.reason.startswith("factors without information: [0")


VALUES = [0.0, 1.0, np.nextafter(1.0, 2.0), -2.5, 5e-324, 1e300, -1.7e308, 1.7e308]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(1, 15)),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_degenerate_inputs_neither_raise_nor_warn(sizes, palette, seed, discrete):
    n, d, k, classes = sizes
    rng = np.random.default_rng(seed)
    latents = rng.choice(np.array(palette), size=(n, d))
    if discrete:
        latents = np.searchsorted(np.unique(palette), latents)
    factors = rng.integers(0, classes, size=(n, k))
    result = infomec(latents, factors, discrete=discrete)
    more = infomec(
        np.insert(latents, 0, 3, axis=1), np.insert(factors, 1, 7, axis=1), discrete=discrete
    )
    np.testing.assert_array_equal(values(more), values(result))
    assert more.infom.num_dead_latents == result.infom.num_dead_latents + 1
    assert more.infoe.num_skipped_factors == result.infoe.num_skipped_factors + 1
    for score, part in (
        (result.infom, result.infom.per_latent),
        (result.infoc, result.infoc.per_factor),
        (result.infoe, result.infoe.per_factor),
    ):
        assert math.isnan(score.score) == np.isnan(part).all()
        if np.isnan(part).any():
            assert score.reason is not None
    for part in (result.infom.per_latent, result.infoc.per_factor):
        assert ((part >= -1e-12) & (part <= 1 + 1e-12) | np.isnan(part)).all()


@pytest.mark.parametrize("discrete", [False, True])
def test_invariances(discrete):
    # Distances that are not the same anywhere, as those of `worlds` are: ties are broken by noise.
    rng = np.random.default_rng(0)
    factors = rng.integers(0, (3, 4, 6), size=(400, 3))
    latents = np.column_stack([factors @ rng.normal(size=(3, 2)), factors])
    latents += 0.6 * rng.normal(size=latents.shape)
    if discrete:
        latents = np.round(latents).astype(int)
    rows, columns = rng.permutation(400), [3, 0, 4, 2, 1]
    expected = infomec(latents, factors, discrete=discrete)
    variants = {
        "examples": infomec(latents[rows], factors[rows], discrete=discrete),
        "classes": infomec(latents, 7 - 3 * factors, discrete=discrete),
        "shift and sign": infomec(5 - 3 * latents, factors, discrete=discrete),
        "latents": infomec(latents[:, columns], factors, discrete=discrete),
    }
    if not discrete:
        variants["unit"] = infomec(2.0**1000 * latents, factors)
    for name, variant in variants.items():
        # InfoE to what the optimiser leaves; one-hot codes are redundant, so it ends elsewhere.
        np.testing.assert_allclose(values(variant), values(expected), atol=1e-6, err_msg=name)
        places = columns if name == "latents" else slice(None)
        np.testing.assert_allclose(
            variant.infom.matrix, expected.infom.matrix[places], atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbors": 0}, "neighbors >= 1, got 0"),
        ({"latents": np.zeros(4)}, r"latents \[N, D\].*\(4,\)"),
        ({"active": [True]}, "active .*D = 2"),
        ({"discrete": True}, "integer latents"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given = {"latents": np.zeros((4, 2)), "factors": np.zeros((4, 1), int)} | arguments
    with pytest.raises(ValueError, match=message):
        infomec(**given)


def naive_information(column, classes, neighbors):
    """The estimate of Ross, example by example."""
    counts = {label: int((classes == label).sum()) for label in set(classes.tolist())}
    kept = [i for i in range(len(column)) if counts[classes[i]] > 1]
    terms = []
    for i in kept:
        others = [j for j in kept if j != i and classes[j] == classes[i]]
        k = min(neighbors, len(others))
        radius = np.nextafter(sorted(abs(column[j] - column[i]) for j in others)[k - 1], 0)
        within = sum(abs(column[j] - column[i]) <= radius for j in kept)
        n = counts[classes[i]]
        terms.append(special.digamma(k) - special.digamma(n) - special.digamma(within))
    return max(0.0, special.digamma(len(kept)) + np.mean(terms)) if kept else 0.0


@pytest.mark.parametrize(("n", "sizes"), [(6, 3), (30, 25), (40, 2), (150, 6), (5, 100)])
@pytest.mark.parametrize("spread", [1.0, 1e-9, 1e9])
def test_nearest_neighbours_are_those_of_a_loop(n, sizes, spread):
    rng = np.random.default_rng(n)
    classes = rng.integers(0, sizes, n)
    column = 1e3 + spread * (rng.normal(size=n) + 0.3 * classes)
    for neighbors in (1, 3, 10):
        found = nearest_information(column, classes, neighbors)
        assert found == pytest.approx(naive_information(column, classes, neighbors), abs=1e-12)


def test_equals_scikit_learn_on_classes_that_are_not_small():
    rng = np.random.default_rng(0)
    classes = np.arange(900) % 12
    factors = np.stack([classes, classes % 3], axis=1)
    columns = np.stack([rng.normal(size=900), classes + rng.normal(size=900), classes // 3], axis=1)
    found = infomec(columns, factors, seed=5).infom.matrix
    for k, (factor, size) in enumerate(zip(factors.T, (12, 3), strict=True)):
        for i, column in enumerate(columns.T):
            reference = mutual_info_classif(
                ((column - column.mean()) / column.std())[:, None],
                factor,
                discrete_features=False,
                n_neighbors=10,
                random_state=5,
            )
            assert found[i, k] == pytest.approx(reference[0] / math.log(size), rel=1e-9)
