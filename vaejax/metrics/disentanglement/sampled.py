"""Metrics that watch latents over sets of images that share one factor.

Unlike the other metrics of disentanglement these draw their own images, so they take an encoder and
a source.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaejax.data.protocols import DataSource, Renderable
from vaejax.metrics.disentanglement.fitting import fitting
from vaejax.metrics.disentanglement.scores import Examples, Score, asked_for, score
from vaejax.metrics.disentanglement.sets import (
    Encode,
    disagreement,
    distance,
    measure_sets,
    mismatch,
    variance,
)


def factor_vae_score(
    encode: Encode,
    variables: Any,
    source: DataSource,
    *,
    key: jax.Array,
    votes: tuple[int, int] = (10_000, 5_000),
    set_size: int = 64,
    pool: int | None = None,
    threshold: float = 0.05,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """FactorVAE score: whether the latent that varies least tells which factor is held fixed [S].

    A vote: a factor k is drawn uniformly, then a set of images that share one value of it, and

        i* = argmin_i Var_set(z_i) / Var_all(z_i)

    votes for k. Each latent stands for the factor that most of its training votes are for (ties:
    the first), and the score is the share of evaluation votes that this gets right. Chance is 1 / K
    for K factors that vary; with a single one the score is 1.

    `Var_all` is over 10,000 images or the pool, and latents whose standard deviation is below
    `threshold` do not vote. The variance of a code is the share of pairs of images at which it
    differs. Ties between latents, frequent among codes, go to the first of them.

    Args:
      encode: Maps `variables` and images `[n, H, W, C]` to latents `[n, D]`, usually posterior
        means, or integer codes if `discrete`. Traced by JAX and hashable: the same function
        compiles once.
      variables: What `encode` needs, any pytree.
      source: Draws the images, uniformly over factors.
      key: Of every draw.
      votes: For training and for evaluation.
      set_size: Images of a set, at least 2.
      pool: None to draw every set anew, which wants a `Renderable` source and encodes
        `sum(votes) * set_size` images. Otherwise so many images are drawn and encoded once [R]; an
        image of them gives the value of the fixed factor, and the set is drawn with replacement
        from those that share it.
      threshold: In units of the latents, or between 0 and 1 for codes.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes, that is classes without an order.

    Returns:
      A `Score` in [0, 1]: 0 if no latent may vote, NaN if no factor varies. `matrix` has the shares
      of the evaluation votes, `per_latent` and `per_factor` the shares of a latent's and of a
      factor's votes that are right. `with_dead` is NaN where the reference divides by the variance
      of dead latents, that is if `threshold` is 0.

    Raises:
      TypeError: Images of any factors are needed (no `pool`) and the source cannot render them.
      ValueError: A number, shape or dtype is not one of the above, or a latent is not finite.

    Examples:
      >>> from vaejax.data import ArraySource
      >>> factors = np.indices((3, 4)).reshape(2, 12).T
      >>> source = ArraySource.of(factors[:, None, None] / 3, factors)  # a pixel for each factor
      >>> def encode(variables, images):
      ...     return images[:, 0, 0]
      >>> factor_vae_score(
      ...     encode, None, source, key=jax.random.key(0), votes=(100, 50), pool=100
      ... ).score
      1.0

    References:
      Kim and Mnih, "Disentangling by Factorising", arXiv:1802.05983; for codes Dupont, "Learning
      Disentangled Joint Continuous and Discrete Representations", arXiv:1804.00104.
    """
    _check_arguments(source, votes, set_size, 2, pool)
    if not threshold >= 0:
        raise ValueError(f"expected threshold >= 0, got {threshold}")
    anchors = np.zeros(set_size, np.intp)  # a set shares the value of its first member
    measure = disagreement if discrete else variance
    population, varying, factors, spread = measure_sets(
        encode, variables, source, key, anchors, measure, sum(votes), pool, discrete, True
    )
    asked = asked_for(active, spread.shape[1])
    live = asked & (population != population[0]).any(axis=0)
    whole = _disagreement_of(population[:, live]) if discrete else _variance_of(population[:, live])
    kept = np.sqrt(whole) >= threshold
    winners = _winners(spread[:, live][:, kept], whole[kept])
    counts = np.zeros((2, len(whole), int(varying.sum())))
    if kept.any() and varying.any():
        voters = np.flatnonzero(kept)[winners]
        evaluated = (np.arange(sum(votes)) >= votes[0]).astype(int)
        np.add.at(counts, (evaluated, voters, factors), 1)
    stands_for = counts[0].argmax(axis=1) if varying.any() else np.zeros(len(whole), int)
    right = counts[1] * (stands_for[:, None] == np.arange(counts.shape[2]))

    reasons = []
    if not varying.any():
        reasons.append("no factor varies")
    elif not kept.any():
        reasons.append("no latent varies enough to vote")
    if not kept.all():
        reasons.append(f"pruned latents: {np.flatnonzero(live)[~kept].tolist()}")
    per_latent = _shares(right.sum(axis=1), counts[1].sum(axis=1))
    if np.isnan(per_latent[kept]).any():
        reasons.append("some latent has no votes")
    per_factor = _shares(right.sum(axis=0), counts[1].sum(axis=0))
    if not kept.any():
        per_factor[:] = 0
    elif np.isnan(per_factor).any():
        reasons.append("some factor has no votes")
    examples = _examples(asked, live, varying, discrete)
    value = right.sum() / votes[1] if varying.any() else math.nan
    return score(
        examples,
        value,
        estimator=f"majority of {_described(votes, set_size, pool)}, deviation >= {threshold}",
        per_latent=per_latent,
        per_factor=per_factor,
        matrix=np.where(kept[:, None], counts[1] / votes[1], math.nan),
        with_dead=math.nan if threshold == 0 and examples.num_dead else value,
        reason="; ".join(reasons) or None,
    )


def beta_vae_score(
    encode: Encode,
    variables: Any,
    source: DataSource,
    *,
    key: jax.Array,
    votes: tuple[int, int] = (10_000, 5_000),
    set_size: int = 64,
    pool: int | None = None,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """BetaVAE score: whether distances between latents tell which factor pairs share [S].

    A factor k is drawn uniformly, then `set_size` pairs of images, each of which shares a value of
    it, and

        x_i = mean_pairs |z_i - z'_i|

    A linear classifier is trained to tell k from x; the score is its accuracy on other draws.
    Chance is 1 / K for K factors that vary, which is also what no live latent gets. The distance
    between codes is whether they differ.

    Latents are not standardised: the score is that of any shift of them, but not of any scale, as
    the regression is regularised.

    Args:
      encode: Maps `variables` and images `[n, H, W, C]` to latents `[n, D]`, usually posterior
        means, or integer codes if `discrete`. Traced by JAX and hashable: the same function
        compiles once.
      variables: What `encode` needs, any pytree.
      source: Draws the images, uniformly over factors.
      key: Of every draw.
      votes: Sets of pairs for training and for evaluation.
      set_size: Pairs of a set.
      pool: None to draw every pair anew, which wants a `Renderable` source and encodes
        `2 * sum(votes) * set_size` images. Otherwise so many images are drawn and encoded once [R];
        an image of them gives the value of the fixed factor, and the pair is drawn with
        replacement from those that share it.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes, that is classes without an order.

    Returns:
      A `Score` in [0, 1], NaN if fewer than two factors vary. `matrix` has the classifier's
      coefficients, `per_factor` its accuracy on each factor's sets.

    Raises:
      TypeError: Images of any factors are needed (no `pool`) and the source cannot render them.
      ValueError: A number, shape or dtype is not one of the above, or a latent is not finite.

    Examples:
      >>> from vaejax.data import ArraySource
      >>> factors = np.indices((3, 4)).reshape(2, 12).T
      >>> source = ArraySource.of(factors[:, None, None] / 3, factors)  # a pixel for each factor
      >>> def encode(variables, images):
      ...     return images[:, 0, 0]
      >>> beta_vae_score(
      ...     encode, None, source, key=jax.random.key(0), votes=(100, 50), pool=100
      ... ).score
      1.0

    References:
      Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
      Framework", ICLR 2017.
    """
    _check_arguments(source, votes, set_size, 1, pool)
    anchors = np.tile(np.arange(set_size), 2)  # i and set_size + i are a pair
    measure = mismatch if discrete else distance
    _, varying, factors, distances = measure_sets(
        encode, variables, source, key, anchors, measure, sum(votes), pool, discrete, False
    )
    asked = asked_for(active, distances.shape[1])
    live = asked & (distances > 0).any(axis=0)
    num_factors = int(varying.sum())
    value, matrix = math.nan, np.full((int(live.sum()), num_factors), math.nan)
    per_factor = np.full(num_factors, math.nan)
    reasons = []
    if num_factors < 2:
        reasons.append("fewer than two factors vary")
    else:
        train, test = slice(votes[0]), slice(votes[0], None)
        predicted, matrix = _classify(
            distances[train, live], factors[train], distances[test, live], num_factors
        )
        right = predicted == factors[test]
        value = right.mean()
        seen = np.bincount(factors[test], minlength=num_factors)
        per_factor = _shares(np.bincount(factors[test], right, num_factors), seen)
        if not seen.all() or np.isnan(matrix).any():
            reasons.append("some factor has no votes")
    return score(
        _examples(asked, live, varying, discrete),
        value,
        estimator=f"scikit-learn LogisticRegression, {_described(votes, 2 * set_size, pool)}",
        per_factor=per_factor,
        matrix=matrix,
        reason="; ".join(reasons) or None,
    )


def _classify(
    features: NDArray[np.float64],
    factors: NDArray[np.intp],
    unlabelled: NDArray[np.float64],
    num_factors: int,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Predictions `[M]` for `unlabelled` `[M, D']`, and the coefficients `[D', K']`.

    Coefficients are NaN for factors that are not among `factors` `[N]`.
    """
    from sklearn.linear_model import LogisticRegression

    known = np.unique(factors)
    coefficients = np.full((features.shape[1], num_factors), np.nan)
    if not features.shape[1] or len(known) == 1:  # nothing to tell by, or nothing to tell apart
        coefficients[:, known] = 0
        return np.full(len(unlabelled), np.bincount(factors).argmax()), coefficients
    with fitting():
        model = LogisticRegression().fit(features, factors)
        predicted = model.predict(unlabelled)
    rows = np.concatenate([-model.coef_, model.coef_]) if len(known) == 2 else model.coef_
    coefficients[:, known] = rows.T
    return predicted, coefficients


def _variance_of(latents: NDArray[Any]) -> NDArray[np.float64]:
    return latents.astype(np.float64).var(axis=0, ddof=1) if latents.size else np.zeros(0)


def _disagreement_of(codes: NDArray[Any]) -> NDArray[np.float64]:
    """Share `[D]` of the pairs of examples whose codes, in columns `[N, D]`, differ."""
    n = len(codes)
    counts = [np.unique(code, return_counts=True)[1] for code in codes.T]
    return np.array([1 - (count * (count - 1)).sum() / (n * (n - 1)) for count in counts])


def _winners(spread: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.intp]:
    """The latent `[V]` that varies least in each set, relative to how it varies at all."""
    if not len(whole):
        return np.zeros(0, np.intp)
    return (spread / whole).argmin(axis=1)


def _shares(parts: NDArray[Any], wholes: NDArray[Any]) -> NDArray[np.float64]:
    """`parts / wholes`, NaN where there is nothing to share."""
    empty = np.full(wholes.shape, np.nan)
    return np.divide(parts, wholes, out=empty, where=wholes > 0)


def _examples(
    asked: NDArray[np.bool_], live: NDArray[np.bool_], varying: NDArray[np.bool_], discrete: bool
) -> Examples:
    """The record that `score` wants; there are no examples to keep."""
    latents, classes = np.zeros((0, int(live.sum()))), np.zeros((0, int(varying.sum())), np.intp)
    return Examples(latents, classes, asked, live, varying, (), (), discrete)


def _described(votes: tuple[int, int], images: int, pool: int | None) -> str:
    origin = "new images" if pool is None else f"images of {pool}"
    return f"{votes[0]} sets of {images} {origin}, tested on {votes[1]}"


def _check_arguments(
    source: DataSource, votes: tuple[int, int], set_size: int, smallest: int, pool: int | None
) -> None:
    if pool is None and not isinstance(source, Renderable):
        raise TypeError(
            "expected a source that renders any factors, or else pool (a number of images), "
            f"got {type(source).__name__} without pool"
        )
    if len(votes) != 2 or min(votes) < 1:
        raise ValueError(f"expected votes = (training, evaluation), both >= 1, got {votes}")
    if set_size < smallest:
        raise ValueError(f"expected set_size >= {smallest}, got {set_size}")
    if pool is not None and pool < 1:
        raise ValueError(f"expected pool >= 1, got {pool}")
    if not source.factors:
        raise ValueError("expected a source with factors, got none")
