"""Disentanglement, completeness and informativeness, from the importances of boosted trees."""

from __future__ import annotations

import dataclasses
import math
import os
from concurrent import futures
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from vaejax.metrics.disentanglement.columns import unit_range
from vaejax.metrics.disentanglement.fitting import fitting
from vaejax.metrics.disentanglement.linear import constant_accuracy
from vaejax.metrics.disentanglement.scores import Examples, Score, features, held_out, read, score

ESTIMATORS = {
    "lightgbm": "lightgbm LGBMClassifier, 100 trees of depth 3, rate 0.1, gains",
    "sklearn-gbt": "scikit-learn GradientBoostingClassifier, 100 trees of depth 3, rate 0.1",
}


@dataclasses.dataclass(frozen=True, eq=False)
class DCI:
    """Three scores of the same importances, their `matrix` `[D, K]`.

    Each column of the matrix sums to 1, or is 0 where trees found nothing to split on.

    Attributes:
      disentanglement: Whether each latent matters for one factor only; has `per_latent`.
      completeness: Whether each factor depends on one latent only; has `per_factor`.
      informativeness: Test accuracy; has `per_factor`.
    """

    disentanglement: Score
    completeness: Score
    informativeness: Score


def dci(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    estimator: str = "lightgbm",
    seed: int = 0,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> DCI:
    """Disentanglement, completeness and informativeness (DCI) [S].

        disentanglement = sum_i rho_i (1 - H_K(R_i. / sum_k R_ik))   rho_i = sum_k R_ik / sum R
        completeness    = sum_k rho_k (1 - H_D(R_.k / sum_i R_ik))   rho_k = sum_i R_ik / sum R

    with `R_ik` the importance of latent i in the trees that predict factor k, and `H_B` entropy to
    base B, 1e-11 added to every importance. D and K count live latents and factors that vary; in
    `with_dead` D counts the dead too. Informativeness is the accuracy of the trees on the test set.

    Trees do not see the scale of the latents: each is mapped to [0, 1] first [R]. "sklearn-gbt" is
    the estimator of the reference; "lightgbm" [R] grows the same number and depth of trees on
    binned latents many times faster, and its disentanglement stayed within 0.05 of the former's
    wherever both were run.

    Without a live latent disentanglement and completeness are 0 and the answer is always the
    commonest class [R].

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`. A code
        is as many columns as it has values, its importance their sum [R].
      factors: `[N, K]` integer classes, with any labels.
      test: Latents `[M, D]` and factors `[M, K]` that accuracy is measured on.
      estimator: "lightgbm" or "sklearn-gbt".
      seed: Of the order in which "sklearn-gbt" tries latents, which decides ties.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      Three `Score`s in [0, 1]. Completeness is undefined with one live latent, disentanglement with
      one factor that varies.

    Raises:
      ValueError: A shape or dtype is not the one above, a latent is not finite, or the estimator is
        unknown.
      ImportError: "lightgbm" cannot be imported.

    Examples:
      >>> factors = np.indices((2, 3)).reshape(2, -1).T.repeat(20, axis=0)
      >>> examples = (factors * [2.0, -3.0], factors)  # one latent per factor
      >>> result = dci(*examples, test=examples)
      >>> result.disentanglement.matrix.round(3)
      array([[1., 0.],
             [0., 1.]])
      >>> result.informativeness.score
      1.0

    References:
      Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled
      Representations", ICLR 2018.
      Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of
      Disentangled Representations", arXiv:1811.12359 (trees).
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"expected estimator {' or '.join(ESTIMATORS)}, got {estimator!r}")
    examples = read(latents, factors, active=active, discrete=discrete)
    held = held_out(examples, test)
    importances, accuracies = with_dead = _fit(examples, held, estimator, seed)
    if estimator == "sklearn-gbt" and examples.num_dead:
        # Dead latents matter to it: the order in which it tries latents decides ties.
        with_dead = _fit(examples, held, estimator, seed, with_dead=True)
    text = ESTIMATORS[estimator]
    return DCI(
        _disentanglement(examples, importances, with_dead[0], text),
        _completeness(examples, importances, with_dead[0], text),
        score(
            examples,
            accuracies.mean() if accuracies.size else math.nan,
            estimator=text,
            per_factor=accuracies,
            matrix=importances,
            with_dead=with_dead[1].mean() if accuracies.size else math.nan,
        ),
    )


def _disentanglement(
    examples: Examples,
    importances: NDArray[np.float64],
    reference: NDArray[np.float64],
    text: str,
) -> Score:
    asked, varying = examples.asked.sum(), importances.shape[1]
    parts = _focus(importances)
    value = with_dead = math.nan
    if varying > 1:
        value = _weighted(parts, importances.sum(axis=1))
        with_dead = _weighted(_focus(reference), reference.sum(axis=1)) if asked else math.nan
    return score(
        examples,
        value,
        estimator=text,
        per_latent=parts,
        matrix=importances,
        with_dead=with_dead,
        reason="fewer than two factors vary" if varying < 2 else None,
    )


def _completeness(
    examples: Examples,
    importances: NDArray[np.float64],
    reference: NDArray[np.float64],
    text: str,
) -> Score:
    live, varying = importances.shape
    parts = _focus(importances.T) if live else np.zeros(varying)
    with_dead = np.concatenate([reference, np.zeros((examples.num_dead, varying))])
    return score(
        examples,
        _weighted(parts, importances.sum(axis=0)) if varying else math.nan,
        estimator=text,
        per_factor=parts,
        matrix=importances,
        with_dead=_weighted(_focus(with_dead.T), reference.sum(axis=0)) if varying else math.nan,
        reason="a single live latent" if live == 1 else None,
    )


def _focus(importances: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 less the entropy of each row of `[A, B]`, to base B; NaN if that is less than 2."""
    rows, size = importances.shape
    if size < 2:
        return np.full(rows, np.nan)
    shares = importances + 1e-11
    shares /= shares.sum(axis=1, keepdims=True)
    return np.maximum(1 - special.entr(shares).sum(axis=1) / math.log(size), 0.0)


def _weighted(parts: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Mean of the parts by weight, 0 where there is none."""
    return float((parts * weights).sum() / (weights.sum() or 1.0))


def _fit(
    examples: Examples,
    held: tuple[NDArray[Any], NDArray[np.intp]],
    estimator: str,
    seed: int,
    *,
    with_dead: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Importances `[D', K']` and test accuracies `[K']` of the trees of each varying factor.

    They do not see dead latents, or see them as columns of zeros.
    """
    live, varying = examples.latents.shape[1], examples.classes.shape[1]
    if not live or not varying:
        pairs = zip(examples.classes.T, held[1].T, strict=True)
        return np.zeros((live, varying)), np.array([constant_accuracy(*pair) for pair in pairs])
    columns, owners = features(examples.latents, examples)
    columns, held_columns = unit_range(columns, features(held[0], examples)[0])
    if with_dead:
        before = np.cumsum(examples.asked & ~examples.live)[examples.live][owners]
        places = np.arange(len(owners)) + before
        columns, held_columns = (
            _among_zeros(array, places, examples.num_dead) for array in (columns, held_columns)
        )

    def one(index: int) -> tuple[NDArray[np.float64], float]:
        trees = _trees(estimator, seed).fit(columns, examples.classes[:, index])
        right = trees.predict(held_columns) == held[1][:, index]
        gains = np.abs(trees.feature_importances_)[places if with_dead else slice(None)]
        gains = np.bincount(owners, gains, minlength=live)
        return gains / (gains.sum() or 1.0), float(right.mean())

    _trees(estimator, seed)  # imports, which threads would do twice
    with fitting(), futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        importances, accuracies = zip(*pool.map(one, range(varying)), strict=True)
    return np.stack(importances, axis=1), np.array(accuracies)


def _among_zeros(
    columns: NDArray[np.float64], places: NDArray[np.intp], zeros: int
) -> NDArray[np.float64]:
    """The columns `[N, F]` at their places among so many columns of zeros."""
    wider = np.zeros((len(columns), columns.shape[1] + zeros))
    wider[:, places] = columns
    return wider


def _trees(estimator: str, seed: int) -> Any:
    if estimator == "sklearn-gbt":
        from sklearn import ensemble

        return ensemble.GradientBoostingClassifier(random_state=seed)
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: a library that it is linked to is missing
        raise ImportError(
            f'expected lightgbm installed, or estimator="sklearn-gbt", got: {error}'
        ) from error
    return lightgbm.LGBMClassifier(
        n_estimators=100,
        max_depth=3,
        num_leaves=8,
        learning_rate=0.1,
        importance_type="gain",
        n_jobs=1,  # the threads are one per factor
        deterministic=True,
        force_row_wise=True,
        verbosity=-1,
        random_state=seed,
    )
