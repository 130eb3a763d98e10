"""Active, mixed and passive latents by hand."""

import numpy as np
import pytest

from vaejax.metrics.disentanglement.variables import variable_types

# Of two examples a and b the mean is (a + b) / 2 and the variance (a - b)^2 / 4.
CASES = [
    ((0.01, 0.02), "active"),
    ((0.0999, 0.0999), "active"),
    ((0.101, 0.101), "mixed"),  # steady, and neither narrow nor as wide as the prior
    ((0.5, 0.5), "mixed"),
    ((0.01, 0.99), "mixed"),  # active for one example, passive for the other
    ((0.899, 0.899), "mixed"),
    ((0.901, 0.901), "passive"),
    ((0.75, 1.3), "passive"),  # variance 0.0756
    ((0.68, 1.32), "mixed"),  # variance 0.1024
    ((1.099, 1.099), "passive"),
    ((1.101, 1.101), "mixed"),
]


@pytest.mark.parametrize(("variances", "expected"), CASES)
def test_types_by_hand(variances, expected):
    types = variable_types(np.log(variances)[:, None])
    found = [name for name in ("active", "mixed", "passive") if getattr(types, name)[0]]
    assert found == [expected]
    first, second = variances
    np.testing.assert_allclose(types.mean_variance, [(first + second) / 2])
    np.testing.assert_allclose(types.variance_of_variance, [(first - second) ** 2 / 4], atol=1e-16)


def test_latents_are_apart_and_examples_alike():
    logvar = np.log(np.array([variances for variances, _ in CASES]).T)
    types = variable_types(logvar)
    for name in ("active", "mixed", "passive"):
        expected = [kind == name for _, kind in CASES]
        np.testing.assert_array_equal(getattr(types, name), expected)
        again = variable_types(np.tile(logvar[::-1], (3, 1)))
        np.testing.assert_array_equal(getattr(again, name), expected)


def test_threshold():
    logvar = np.log([[0.25, 0.75], [0.25, 0.75]])
    assert variable_types(logvar).mixed.all()
    types = variable_types(logvar, threshold=0.3)
    assert (types.active.tolist(), types.passive.tolist()) == ([True, False], [False, True])


def test_extremes_neither_raise_nor_warn():
    # Variances of 0, of e^400, one that overflows, and one that does for a single example.
    logvar = np.zeros((5, 4))
    logvar[:] = [-1e308, 400.0, 1e308, 0.0]
    logvar[0, 3] = 1e5
    types = variable_types(logvar)
    assert types.active.tolist() == [True, False, False, False]
    assert types.mixed.tolist() == [False, True, True, True]
    np.testing.assert_array_equal(types.variance_of_variance, [0.0, 0.0, np.inf, np.inf])
    assert variable_types(np.zeros((1, 1))).passive.all()


@pytest.mark.parametrize(
    ("logvar", "threshold", "message"),
    [
        (np.zeros(3), 0.1, r"logvar \[N, D\].*\(3,\)"),
        (np.zeros((0, 3)), 0.1, r"not empty.*\(0, 3\)"),
        (np.array([[0.0, np.nan, -np.inf]]), 0.1, "finite logvar, got 2"),
        (np.zeros((2, 3)), 0.0, r"threshold in \(0, 0.5\), got 0.0"),
        (np.zeros((2, 3)), 0.5, "got 0.5"),
    ],
)
def test_wrong_arguments_are_named(logvar, threshold, message):
    with pytest.raises(ValueError, match=message):
        variable_types(logvar, threshold=threshold)
