"""Interventional robustness: how little a latent moves while its factor is held."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaejax.metrics.disentanglement.columns import scaled
from vaejax.metrics.disentanglement.scores import Examples, Score, read, score


def irs(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    quantile: float = 0.99,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """Interventional robustness score [S].

        IRS_ik = 1 - mean_c quantile_n(|z_i - mean_c z_i|) / M_i,   M_i = max_n |z_i - mean z_i|

    with c the classes of factor k and n the examples of class c; quantiles are interpolated. The
    score is the mean over latents of `max_k IRS_ik`, weighted by `M_i`. Several latents that follow
    the same factor all score high.

    Factors are classes already and never binned; the reference cuts them into 20 bins as well,
    which merges the classes of a factor that has more. `num_dead_latents` is a count, where the
    reference's `num_active_dims` is the sum of the latents' values.

    Codes [R] are one-hot vectors: deviations are Euclidean distances from the mean vector.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      quantile: Quantile of the deviations within a class, in [0, 1].
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      A `Score` of at most 1; `matrix` is `IRS_ik`, `per_latent` its maximum over factors. Both may
      be below 0, as an outlying class can have deviations that exceed `M_i`. With no live latent
      the score is 0, as in the reference.

    Raises:
      ValueError: A shape or dtype is not the one above, a latent is not finite, or `quantile` is
        not in [0, 1].

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> irs(factors * [2.0, -3.0], factors).matrix
      array([[1., 0.],
             [0., 1.]])
      >>> irs(factors @ [[1.0], [1.0]], factors).score  # z = 0, 1, 1, 2: half as far as overall
      0.5

    References:
      Suter, Miladinović, Schölkopf and Bauer, "Robustly Disentangled Causal Mechanisms",
      arXiv:1811.00007.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"expected quantile in [0, 1], got {quantile}")
    examples = read(latents, factors, active=active, discrete=discrete)
    matrix, largest = _robustness(examples, quantile)
    value, per_latent = math.nan, np.full(len(largest), np.nan)
    if matrix.shape[1]:
        per_latent = matrix.max(axis=1)
        value = np.average(per_latent, weights=largest) if len(largest) else 0.0
    return score(
        examples,
        value,
        estimator=f"quantile {quantile:g} of deviations within classes",
        per_latent=per_latent,
        matrix=matrix,
    )


def _robustness(
    examples: Examples, quantile: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`IRS_ik` `[D', K']`, and each latent's largest deviation `[D']` up to a common factor."""
    if examples.discrete:
        values, exponents = examples.latents, np.zeros(examples.latents.shape[1], int)
    else:
        values, exponents = scaled(examples.latents)
    # A row per latent, in memory too: figures of a latent do not depend on those beside it.
    values = np.ascontiguousarray(values.T)
    matrix = np.zeros((len(values), examples.classes.shape[1]))
    if not len(values):
        return matrix, np.zeros(0)
    largest = _deviations(values, examples.discrete).max(axis=1)
    for k, factor in enumerate(examples.classes.T):
        order = np.argsort(factor, kind="stable")
        classes = np.split(values[:, order], np.cumsum(np.bincount(factor))[:-1], axis=1)
        within = [
            np.quantile(_deviations(one, examples.discrete), quantile, axis=1) for one in classes
        ]
        matrix[:, k] = 1 - np.mean(within, axis=0) / largest
    return matrix, np.ldexp(largest, exponents - exponents.max())


def _deviations(values: NDArray[np.float64], discrete: bool) -> NDArray[np.float64]:
    """Distances `[D', n]` of numbers or codes from the mean over their n examples."""
    if not discrete:
        return np.abs(values - values.mean(axis=1, keepdims=True))
    rows, size = np.arange(len(values))[:, None], int(values.max()) + 1
    counts = np.bincount((rows * size + values).ravel(), minlength=len(values) * size)
    means = counts.reshape(-1, size) / values.shape[1]
    # |one_hot - mean|^2 = 1 - 2 mean[code] + |mean|^2
    squared = 1 - 2 * means[rows, values] + (means**2).sum(axis=1, keepdims=True)
    return np.sqrt(np.maximum(squared, 0.0))
