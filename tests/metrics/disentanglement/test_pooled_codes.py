"""Pooled codes."""

import numpy as np
import pytest

from vaejax.metrics import pooled_codes


def test_counts_are_those_of_a_loop():
    codes = np.arange(5 * 3 * 4).reshape(5, 3, 4) ** 2 % 7
    pooled = pooled_codes(codes, size=8)
    expected = [[(image == entry).mean() for entry in range(8)] for image in codes]
    np.testing.assert_allclose(pooled, expected)
    np.testing.assert_allclose(pooled.sum(1), 1)
    shuffled = codes.reshape(5, 12)[:, ::-1]  # where an entry stands does not matter
    np.testing.assert_array_equal(pooled_codes(shuffled, size=8), pooled)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.zeros((2, 3)), "integer codes .*float64"),
        (np.zeros(3, int), r"codes \[N, ...\].*\(3,\)"),
        (np.array([[0, 3]]), "from 0 to 2, got 0 to 3"),
        (np.array([[-1, 0]]), "from 0 to 2, got -1 to 0"),
    ],
)
def test_wrong_codes_are_named(codes, said):
    with pytest.raises(ValueError, match=said):
        pooled_codes(codes, size=3)
