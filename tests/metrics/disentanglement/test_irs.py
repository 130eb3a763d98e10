"""The interventional robustness score against disentanglement_lib, a plain loop and by hand."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from worlds import NAMES, REFERENCE, world

from vaejax.metrics.disentanglement.irs import irs


def naive(latents, factors, quantile, discrete):
    """The definition, a latent and a class at a time; codes as one-hot vectors: `IRS [D, K]`, M."""

    def deviations(values):
        return np.linalg.norm(values - values.mean(axis=0), axis=1)

    matrix, largest = np.zeros((latents.shape[1], factors.shape[1])), []
    for i, z in enumerate(latents.T):
        values = z[:, None] == np.unique(z) if discrete else z[:, None]
        largest.append(deviations(values).max())
        for k, g in enumerate(factors.T):
            within = [np.quantile(deviations(values[g == c]), quantile) for c in np.unique(g)]
            matrix[i, k] = 1 - np.mean(within) / largest[-1]
    return matrix, np.array(largest)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    latents, factors, _ = world(name)
    expected, live = REFERENCE[name]["irs"], (latents != latents[0]).any(axis=0)
    result = irs(latents, factors)
    assert result.score == pytest.approx(expected["avg_score"], rel=1e-9)
    assert result.with_dead == result.score
    np.testing.assert_allclose(result.matrix[live], expected["IRS_matrix"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        result.per_latent[live], expected["disentanglement_scores"], rtol=1e-9
    )
    assert np.isnan(result.per_latent[~live]).all()
    assert result.num_dead_latents == (~live).sum()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("discrete", [False, True])
def test_equals_a_loop_over_classes(quantile, discrete):
    latents, factors, _ = world("bent")
    if discrete:
        latents = np.round(2 * latents).astype(int)
    matrix, largest = naive(latents, factors, quantile, discrete)
    result = irs(latents, factors, quantile=quantile, discrete=discrete)
    np.testing.assert_allclose(result.matrix, matrix, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.per_latent, matrix.max(axis=1), rtol=1e-9)
    weighted = (matrix.max(axis=1) * largest).sum() / largest.sum()
    assert result.score == pytest.approx(weighted, rel=1e-9)


def test_by_hand():
    # z = 0, 1 in class 0 and 5, 6, 10 in class 1, of means 0.5 and 7: deviations 0.5, 0.5 and
    # 2, 1, 3. The mean of all is 4.4 and the largest deviation from it 5.6.
    latents = np.array([[0.0], [1.0], [5.0], [6.0], [10.0]])
    factors = np.array([[0], [0], [1], [1], [1]])
    for quantile, of_class_1 in ((1.0, 3.0), (0.5, 2.0), (0.75, 2.5)):
        expected = 1 - (0.5 + of_class_1) / 2 / 5.6
        assert irs(latents, factors, quantile=quantile).score == pytest.approx(expected)


def test_latents_weigh_by_their_largest_deviation():
    # A latent of range 9 that is its factor, one of range 1 that is the other's half the way.
    factors = np.indices((2, 2, 2)).reshape(3, -1).T
    latents = np.stack([9.0 * factors[:, 0], 0.5 * factors[:, 1] + 0.5 * factors[:, 2]], axis=1)
    result = irs(latents, factors[:, :2])
    np.testing.assert_allclose(result.per_latent, [1.0, 0.5])
    assert result.score == pytest.approx((9 * 1.0 + 1 * 0.5) / 10)


@pytest.mark.parametrize("discrete", [False, True])
def test_perfect_code_scores_one(discrete):
    factors = np.indices((3, 40)).reshape(2, -1).T  # 40 classes, which 20 bins would merge
    result = irs(factors[:, ::-1] * [-3, 1], factors, discrete=discrete)
    assert result.score == pytest.approx(1.0, abs=1e-12)


def test_noise_scores_near_zero():
    # The 0.99 quantile of uniform noise is 0.99 of its largest deviation, whatever class is held.
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, size=(4000, 3))
    assert 0.0 < irs(rng.uniform(size=(4000, 6)), factors).score < 0.02  # 0.0146
    # Codes: of 50 that are equally likely all deviations are about the same.
    result = irs(rng.integers(0, 50, size=(4000, 6)), factors, discrete=True)
    assert abs(result.score) < 0.01  # -0.0047


VALUES = [0.0, 1.0, np.nextafter(1.0, 2.0), -2.5, 5e-324, 1e300, -1.7e308, 1.7e308]


@st.composite
def problems(draw):
    n, d, k = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    palette = np.array(draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=4)))
    latents = rng.choice(palette, size=(n, d))
    factors = rng.integers(0, draw(st.integers(1, 15)), size=(n, k))
    if draw(st.booleans()):
        return np.searchsorted(np.sort(palette), latents), factors, True
    return latents, factors, False


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(problems())
def test_degenerate_inputs_neither_raise_nor_warn(problem):
    latents, factors, discrete = problem
    result = irs(latents, factors, discrete=discrete)
    live, varying = (latents != latents[0]).any(axis=0), (factors != factors[0]).any(axis=0)
    assert math.isnan(result.score) == (not varying.any())
    assert varying.any() or result.reason.startswith("constant factors")
    assert live.any() or not varying.any() or result.score == 0.0
    np.testing.assert_array_equal(~np.isnan(result.matrix), live[:, None] & varying)
    assert (result.reason is None) == (not np.isnan(result.matrix).any())
    assert not (result.matrix > 1).any()
    # Neither a dead latent nor a constant factor changes a bit.
    more = irs(
        np.insert(latents, 0, 3, axis=1), np.insert(factors, 1, 7, axis=1), discrete=discrete
    )
    np.testing.assert_array_equal(more.score, result.score)
    np.testing.assert_array_equal(np.delete(more.matrix[1:], 1, axis=1), result.matrix)
    assert more.num_dead_latents == result.num_dead_latents + 1


@pytest.mark.parametrize("discrete", [False, True])
def test_invariances(discrete):
    latents, factors, _ = world("dead")
    if discrete:
        latents = np.round(latents).astype(int)
    expected = irs(latents, factors, discrete=discrete)
    rows, columns = np.random.default_rng(0).permutation(len(latents)), [3, 5, 0, 2, 4, 1]
    variants = {
        "examples": irs(latents[rows], factors[rows], discrete=discrete),
        "classes": irs(latents, 7 - 3 * factors, discrete=discrete),
        "shift and sign": irs(5 - 3 * latents, factors, discrete=discrete),
        "active": irs(
            np.column_stack([latents, latents[:, 2] ** 2]),
            factors,
            active=np.arange(7) < 6,
            discrete=discrete,
        ),
        "latents": irs(latents[:, columns], factors, discrete=discrete),
    }
    for name, variant in variants.items():
        assert variant.score == pytest.approx(expected.score, rel=1e-9), name
        places = columns if name == "latents" else slice(None)
        np.testing.assert_allclose(
            variant.per_latent[:6], expected.per_latent[places], rtol=1e-9, err_msg=name
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantile": 1.5}, r"quantile in \[0, 1\], got 1.5"),
        ({"quantile": math.nan}, "got nan"),
        ({"latents": np.zeros(4)}, r"latents \[N, D\].*\(4,\)"),
        ({"active": [True]}, "active .*D = 2"),
        ({"discrete": True}, "integer latents"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given = {"latents": np.zeros((4, 2)), "factors": np.zeros((4, 1), int)} | arguments
    with pytest.raises(ValueError, match=message):
        irs(**given)
