"""Whether two circuits are the same: overlap of unit sets, and units matched between networks.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from flax import struct

_PERMUTATIONS = 99


@struct.dataclass
class Overlap:
    """How much two sets of units have in common.

    Attributes:
      jaccard: Size of the intersection by that of the union; NaN if both are empty.
      expected: Its mean for two sets of these sizes drawn at random.
      p_value: How often such sets share as many units.
    """

    jaccard: float
    expected: float
    p_value: float


def overlap(first: Any, second: Any, num_units: int) -> Overlap:
    """The overlap of two circuits at a site, and that of random sets of their sizes [R].

    Args:
      first: Indices of units.
      second: Indices of units.
      num_units: How many units there are to draw from.

    Raises:
      ValueError: An index is not below `num_units`.

    Example:
      >>> found = overlap([0, 1, 2], [1, 2, 3], 100)
      >>> found.jaccard, round(found.expected, 3), found.p_value < 0.01
      (0.5, 0.018, True)
    """
    from scipy import stats

    first, second = set(np.ravel(first).tolist()), set(np.ravel(second).tolist())
    wrong = [unit for unit in first | second if not 0 <= unit < num_units]
    if wrong:
        raise ValueError(f"expected units from 0 to {num_units - 1}, got {wrong}")
    if not first | second:
        return Overlap(float("nan"), float("nan"), float("nan"))
    shared = len(first & second)
    possible = np.arange(min(len(first), len(second)) + 1)
    drawn = stats.hypergeom(num_units, len(first), len(second))
    jaccard = possible / np.maximum(len(first) + len(second) - possible, 1)
    return Overlap(
        shared / len(first | second),
        float(np.sum(drawn.pmf(possible) * jaccard)),
        float(drawn.sf(shared - 1)),
    )


@struct.dataclass
class Matching:
    """Units of one network and their partners in another: S units.

    Attributes:
      partner: `[S]`, the unit of the second network; -1 for those without one.
      similarity: `[S]`, cosine of the two effect profiles; NaN for those without a partner.
      null: Mean similarity when factors of the second network are permuted, mean over permutations.
      p_value: How often permuted factors match as well, the true order included.
    """

    partner: np.ndarray
    similarity: np.ndarray
    null: float
    p_value: float

    def mapped(self, units: Any) -> np.ndarray:
        """The partners of some units, for those that have one."""
        partners = self.partner[np.asarray(units, int)]
        return partners[partners >= 0]


def pair_units(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`match_units` without its null, which takes a hundred times as long.

    Args:
      first: Effects `[S, K]`.
      second: Effects `[T, K]`.

    Returns:
      For each pair a unit of the first, its partner in the second, and the cosine: `[P]` each.

    Raises:
      ValueError: As `match_units`.
    """
    first, second = _effects(first, second)
    (rows, a), (columns, b) = (_directions(effects) for effects in (first, second))
    pairs, cosines = _assign(a, b)
    return rows[pairs[0]], columns[pairs[1]], cosines


def match_units(first: Any, second: Any, *, seed: int = 0) -> Matching:
    """Pairs the units of a site of two networks by what they do for each factor [R].

    Units of separately trained networks have no order in common. Here each gets the partner whose
    effects on the factors are most alike, such that the sum of similarities is largest (an
    assignment problem). Units without effect have no partner.

    Args:
      first: Effects `[S, K]`, as `FactorUnits.effect.value`; NaN counts as 0.
      second: Effects `[T, K]`.
      seed: Draws permutations of factors, where there are too many for all.

    Raises:
      ValueError: The two have not the same factors.

    Example:
      >>> matching = match_units([[1.0, 0.0], [0.2, 0.8]], [[0.1, 0.4], [2.0, 0.0]])
      >>> matching.partner.tolist(), matching.mapped([1]).tolist()
      ([1, 0], [0])
    """
    first, second = _effects(first, second)
    rows, partners, cosines = pair_units(first, second)
    partner, similarity = np.full(len(first), -1), np.full(len(first), np.nan)
    partner[rows], similarity[rows] = partners, cosines
    a, b = (_directions(effects)[1] for effects in (first, second))
    orders = _orders(first.shape[1], seed) if len(cosines) else []
    null = np.array([_assign(a, b[:, order])[1].mean() for order in orders])
    as_good = np.sum(null >= cosines.mean() - 1e-9) if len(cosines) else 0
    return Matching(
        partner,
        similarity,
        float(null.mean()) if len(null) else float("nan"),
        float((1 + as_good) / (1 + len(null))),
    )


def _effects(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, 0 for NaN.

    Raises:
      ValueError: The two have not the same factors.
    """
    first, second = (np.nan_to_num(np.asarray(array, float)) for array in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected effects [S, K] and [T, K], got shapes {first.shape} and {second.shape}"
        )
    return first, second


def _directions(effects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The units that have an effect, and their profiles of length 1."""
    lengths = np.linalg.norm(effects, axis=1)
    there = np.flatnonzero(lengths > 0)
    return there, effects[there] / lengths[there, None]


def _assign(a: np.ndarray, b: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    from scipy import optimize

    cosines = a @ b.T
    rows, columns = optimize.linear_sum_assignment(cosines, maximize=True)
    return (rows, columns), cosines[rows, columns]


def _orders(num: int, seed: int) -> list[np.ndarray]:
    """Permutations of factors that are not the identity: all, or some at random."""
    if math.factorial(num) - 1 <= _PERMUTATIONS:
        return [np.array(order) for order in list(itertools.permutations(range(num)))[1:]]
    generator = np.random.default_rng(seed)
    drawn = (generator.permutation(num) for _ in itertools.count())
    return list(itertools.islice((o for o in drawn if (o != np.arange(num)).any()), _PERMUTATIONS))
