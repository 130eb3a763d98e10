"""Scores of how much latents depend on one another, which need no factors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaejax.metrics.disentanglement.columns import scaled, standardised
from vaejax.metrics.disentanglement.information import bin_columns, count_information
from vaejax.metrics.disentanglement.scores import Examples, left_out, read


@dataclasses.dataclass(frozen=True, eq=False)
class UnsupervisedScores:
    """How much D latents depend on one another; 0 where they are independent.

    Attributes:
      total_correlation: Of a Gaussian with the latents' covariance, in nats; inf where the
        covariance is singular.
      wasserstein: Squared 2-Wasserstein distance of that Gaussian from the one of independent
        latents, in squared units of the latents.
      wasserstein_normalised: The same over the latents' total variance, without a unit.
      mutual_information: Mean over pairs of different live latents, in nats.
      mutual_information_with_dead: The reference's, which counts the pairs of dead latents as 0.
      matrix: `[D, D]` mutual information of each pair in nats, entropies on the diagonal; NaN for
        dead latents.
      num_dead_latents: Latents left out because they are constant.
      num_passive_latents: Latents left out on request.
      reason: Why something is NaN or infinite; None when nothing is.
    """

    total_correlation: float
    wasserstein: float
    wasserstein_normalised: float
    mutual_information: float
    mutual_information_with_dead: float
    matrix: NDArray[np.float64]
    num_dead_latents: int
    num_passive_latents: int
    reason: str | None


def unsupervised_scores(
    latents: ArrayLike,
    *,
    bins: int = 20,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> UnsupervisedScores:
    """Total correlation, Wasserstein correlation and mutual information of the latents [S].

        TC = (sum_i ln C_ii - ln det C) / 2
        W  = 2 tr C - 2 tr (S C S)^(1/2),   S = diag(C)^(1/2)
        MI = mean_{i != j} I(z_i; z_j)

    with C the covariance of live latents (`N - 1` in the denominator), I the information between
    latents in `bins` bins of equal width. TC and W see linear dependence only. MI is biased upwards
    by about `(bins - 1)^2 / 2 N` nats. Codes have no covariance: of them there is the information.

    C is singular if the rank of the correlations, as `numpy.linalg.matrix_rank` finds it, is not
    full [R]: two latents are the same, or there are fewer examples than latents.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      bins: Number of bins of each latent.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Raises:
      ValueError: A shape or dtype is not the one above, a latent is not finite, or `bins` < 1.

    Examples:
      >>> square = np.array([[0.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 3.0]])
      >>> result = unsupervised_scores(square)
      >>> result.total_correlation, result.wasserstein, result.mutual_information
      (0.0, 0.0, 0.0)
      >>> unsupervised_scores(np.column_stack([square, square[:, 0]])).reason
      'the covariance is singular, its total correlation infinite'

    References:
      Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of
      Disentangled Representations", arXiv:1811.12359.
    """
    if bins < 1:
        raise ValueError(f"expected bins >= 1, got {bins}")
    # They are read as those of the other metrics, which have factors.
    placeholder = np.zeros((*np.shape(latents)[:1], 1), int)
    examples = read(latents, placeholder, active=active, discrete=discrete)
    live, counted = examples.live, int(examples.asked.sum())
    codes = examples.latents if discrete else bin_columns(examples.latents, bins)
    information = count_information(codes, codes)
    d = len(information)
    between = (information * ~np.eye(d, dtype=bool)).sum()
    total_correlation, wasserstein, normalised = _gaussian_scores(examples)
    matrix = np.full((len(live), len(live)), np.nan)
    matrix[np.ix_(live, live)] = information
    return UnsupervisedScores(
        total_correlation=total_correlation,
        wasserstein=wasserstein,
        wasserstein_normalised=normalised,
        mutual_information=_per_pair(between, d),
        mutual_information_with_dead=_per_pair(between, counted),
        matrix=matrix,
        num_dead_latents=examples.num_dead,
        num_passive_latents=int((~examples.asked).sum()),
        reason="; ".join(_reasons(examples, total_correlation)) or None,
    )


def _gaussian_scores(examples: Examples) -> tuple[float, float, float]:
    """Total correlation, Wasserstein correlation and the latter over the variance."""
    d = examples.latents.shape[1]
    if examples.discrete or not d:
        return math.nan, math.nan, math.nan
    if d == 1:
        return 0.0, 0.0, 0.0
    rows, exponents = scaled(examples.latents)
    deviations = np.ldexp(rows - rows.mean(axis=0), exponents - exponents.max())
    covariance = deviations.T @ deviations / (len(rows) - 1)
    total, scales = np.trace(covariance), np.sqrt(np.diag(covariance))
    eigenvalues = np.linalg.eigvalsh(scales[:, None] * covariance * scales)
    # Rounding leaves eigenvalues and distances of -1e-17 where they are 0.
    distance = max(0.0, 2 * total - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum())
    with np.errstate(over="ignore"):
        wasserstein = np.ldexp(distance, 2 * exponents.max())
    return _total_correlation(examples.latents), float(wasserstein), float(distance / total)


def _total_correlation(latents: NDArray[np.float64]) -> float:
    columns = standardised(latents)
    correlations = columns.T @ columns / len(columns)
    if np.linalg.matrix_rank(correlations, hermitian=True) < len(correlations):
        return math.inf
    return max(0.0, -0.5 * float(np.linalg.slogdet(correlations)[1]))


def _per_pair(total: float, d: int) -> float:
    return float(total / (d * (d - 1))) if d > 1 else math.nan


def _reasons(examples: Examples, total_correlation: float) -> list[str]:
    d, reasons = int(examples.live.sum()), []
    if examples.discrete:
        reasons.append("codes have no covariance")
    if d < 2:
        reasons.append("fewer than two live latents" if d else "no live latent")
    if math.isinf(total_correlation):
        reasons.append("the covariance is singular, its total correlation infinite")
    return reasons + left_out(examples)
