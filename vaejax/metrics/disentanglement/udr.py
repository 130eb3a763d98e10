"""Unsupervised disentanglement ranking: whether models agree on what single latents stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vaejax.metrics.disentanglement.columns import standardised
from vaejax.metrics.disentanglement.fitting import fitting
from vaejax.metrics.disentanglement.scores import Examples, read

Correlation = Literal["lasso", "spearman"]
_PENALTY = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class UDR:
    """The ranking of M models.

    Attributes:
      scores: `[M]`, the median of how far the other models agree with each.
      pairwise: `[M, M]`, how far models i and j agree, latents of i predicting those of j; NaN on
        the diagonal and for models without active latents.
      correlations: The absolute correlations `[active_i, active_j]` of each pair of models; None on
        the diagonal.
      estimator: What estimated the correlations, with its settings.
      num_inactive: `[M]`, latents of each model left out, because they are constant or on request.
      reason: Why a score or a pair is NaN; None when none is but the diagonal.
    """

    scores: NDArray[np.float64]
    pairwise: NDArray[np.float64]
    correlations: tuple[tuple[NDArray[np.float64] | None, ...], ...]
    estimator: str
    num_inactive: NDArray[np.intp]
    reason: str | None


def udr(
    latents: Sequence[ArrayLike],
    *,
    active: Sequence[ArrayLike] | None = None,
    correlation: Correlation = "lasso",
) -> UDR:
    """Unsupervised disentanglement ranking of models of the same images [S].

        UDR_ij = (mean_b max_a R_ab^2 / sum_a R_ab + mean_a max_b R_ab^2 / sum_b R_ab) / 2
        UDR_m  = median_{i != m} UDR_im

    with `R_ab` the absolute correlation of active latent a of model i and b of model j. It takes
    disentangled models to be alike, and entangled ones each in its own way; models that all are
    entangled in the same way score high. A latent that nothing correlates with counts as 0.

    "lasso" has for R the weights of a linear regression with an L1 penalty of 0.1 from all active
    latents of model i to each of model j, both of mean 0 and variance 1; "spearman" the rank
    correlations, in which ties have their average rank.

    Args:
      latents: M >= 2 arrays `[N, D_m]` of finite numbers, usually posterior means, of the same N
        images by M models, which differ in their seeds.
      active: M masks `[D_m]` bool of the latents to compare; None for all. The reference takes
        those of a KL divergence above 0.01, as `vaejax.metrics.active_latents` finds them. Latents
        that are constant are never active.
      correlation: "lasso" or "spearman".

    Raises:
      ValueError: A shape is not the one above, a latent is not finite, or the correlation is
        unknown.

    Examples:
      >>> square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
      >>> swapped, mixed = -3 * square[:, ::-1], square @ [[1.0, 1.0], [1.0, -1.0]]
      >>> udr([square, swapped, mixed], correlation="spearman").pairwise.round(2)
      array([[ nan, 1.  , 0.35],
             [1.  ,  nan, 0.35],
             [0.35, 0.35,  nan]])

    References:
      Duan et al., "Unsupervised Model Selection for Variational Disentangled Representation
      Learning", arXiv:1905.12614.
    """
    if correlation not in get_args(Correlation):
        raise ValueError(f"expected correlation 'lasso' or 'spearman', got {correlation!r}")
    models = _read_models(latents, active)
    columns = [_prepared(model.latents, correlation) for model in models]
    correlate = _lasso if correlation == "lasso" else _products
    rows = [
        tuple(None if i == j else correlate(left, right) for j, right in enumerate(columns))
        for i, left in enumerate(columns)
    ]
    pairwise = np.array(
        [[math.nan if r is None else _relative_strength(r) for r in row] for row in rows]
    )
    empty = [m for m, model in enumerate(models) if not model.live.any()]
    return UDR(
        scores=np.array([_median(column) for column in pairwise.T]),
        pairwise=pairwise,
        correlations=tuple(rows),
        estimator=(
            f"scikit-learn Lasso, alpha {_PENALTY}"
            if correlation == "lasso"
            else "Spearman rank correlations"
        ),
        num_inactive=np.array([(~model.live).sum() for model in models]),
        reason=f"models without active latents: {empty}" if empty else None,
    )


def _read_models(
    latents: Sequence[ArrayLike], active: Sequence[ArrayLike] | None
) -> list[Examples]:
    if len(latents) < 2:
        raise ValueError(f"expected the latents of 2 models or more, got {len(latents)}")
    if active is not None and len(active) != len(latents):
        raise ValueError(f"expected {len(latents)} masks in active, got {len(active)}")
    models = []
    for m, numbers in enumerate(latents):
        # They are read as those of the other metrics, which have factors.
        placeholder = np.zeros((*np.shape(numbers)[:1], 1), int)
        try:
            mask = None if active is None else active[m]
            models.append(read(numbers, placeholder, active=mask))
        except ValueError as error:
            raise ValueError(f"model {m}: {error}") from None
    sizes = [len(model.latents) for model in models]
    if len(set(sizes)) > 1:
        raise ValueError(f"expected the same N images for all models, got {sizes}")
    return models


def _prepared(latents: NDArray[np.float64], correlation: Correlation) -> NDArray[np.float64]:
    return standardised(stats.rankdata(latents, axis=0) if correlation == "spearman" else latents)


def _lasso(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute weights `[D_i, D_j]` of the regression from `[N, D_i]` to `[N, D_j]`."""
    shape = left.shape[1], right.shape[1]
    if not math.prod(shape):
        return np.zeros(shape)

    from sklearn.linear_model import Lasso

    with fitting():
        weights = Lasso(alpha=_PENALTY).fit(left, right).coef_
    return np.abs(weights.reshape(shape[::-1]).T)


def _products(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute correlations `[D_i, D_j]` of `[N, D_i]` and `[N, D_j]`."""
    return np.minimum(np.abs(left.T @ right) / len(left), 1.0)


def _relative_strength(correlations: NDArray[np.float64]) -> float:
    """Mean over columns and over rows of how much of their correlation is that of one latent."""
    if not correlations.size:
        return math.nan
    means = []
    for axis in (0, 1):
        total = correlations.sum(axis=axis)
        squared = correlations.max(axis=axis) ** 2
        means.append(np.divide(squared, total, out=np.zeros_like(total), where=total > 0).mean())
    return float(np.mean(means))


def _median(column: NDArray[np.float64]) -> float:
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else math.nan
