"""Metrics made of linear classifiers, of one latent at a time or of all together."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vaejax.metrics.disentanglement.columns import unit_range
from vaejax.metrics.disentanglement.fitting import fitting
from vaejax.metrics.disentanglement.scores import (
    Examples,
    Latents,
    Score,
    features,
    held_out,
    read,
    score,
)

Columns = NDArray[np.float64]


def sap(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    continuous: bool = False,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """Separated attribute predictability: how far one latent alone is ahead of the next [S].

        SAP = mean_k (S_(1)k - S_(2)k)

    with `S_(1)k`, `S_(2)k` the two latents that predict factor k best. By default `S` is the test
    accuracy of a linear support vector machine that sees one latent (C = 0.01, classes balanced),
    which depends on the scale of the latents; with `continuous` it is the squared correlation of
    latent and factor on the training set, which does not, and for which the labels are numbers.

    With fewer than two live latents the rest are constant codes [R], which predict the commonest
    class of the training set, or, with `continuous`, nothing.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`. A code
        is as many columns as it has values [R].
      factors: `[N, K]` integer classes, with any labels.
      test: Latents `[M, D]` and factors `[M, K]` that accuracy is measured on; None if
        `continuous`.
      continuous: Whether factors are numbers and not classes. No codes then.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      A `Score` in [0, 1]; `per_factor` has the gaps, `matrix` the accuracies or correlations, 0 as
      in the reference where a latent's variance is 1e-12 or less.

    Raises:
      ValueError: A shape or dtype is not the one above, a latent is not finite, or `test` is
        missing or of no use.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> latents = factors * [20.0, -30.0]
      >>> sap(latents, factors, test=(latents, factors)).matrix
      array([[1. , 0.5],
             [0.5, 1. ]])
      >>> sap(latents, factors, continuous=True).score
      1.0

    References:
      Kumar, Sattigeri and Balakrishnan, "Variational Inference of Disentangled Latent Concepts from
      Unlabeled Observations", arXiv:1711.00848.
    """
    if continuous and discrete:
        raise ValueError("expected latents that are numbers, as SAP is continuous, got codes")
    if continuous and test is not None:
        raise ValueError("expected no test set, as continuous SAP is of the training set")
    if not continuous and test is None:
        raise ValueError("expected test = (latents, factors), as SAP is not continuous")
    examples = read(latents, factors, active=active, discrete=discrete)
    if test is None:
        estimator = "squared correlation"
        live = _correlations(examples)
        dead = np.zeros((examples.num_dead, live.shape[1]))
        constant = np.zeros(live.shape[1])
    else:
        estimator = "scikit-learn LinearSVC, C 0.01, balanced classes, on one latent at a time"
        held = held_out(examples, test)
        live = _accuracies(_live_columns(examples, held[0]), examples.classes, held[1])
        dead = _accuracies(_dead_columns(examples, latents, test[0]), examples.classes, held[1])
        constant = np.array(
            [constant_accuracy(*pair) for pair in zip(examples.classes.T, held[1].T, strict=True)]
        )
    padding = np.tile(constant, (max(2 - len(live), 0), 1))
    gaps = _gaps(np.concatenate([live, padding]))
    with_dead = math.nan
    if gaps.size and examples.asked.sum() > 1:  # the reference needs a runner-up
        with_dead = _gaps(np.concatenate([live, dead])).mean()
    return score(
        examples,
        gaps.mean() if gaps.size else math.nan,
        estimator=estimator,
        per_factor=gaps,
        matrix=live,
        with_dead=with_dead,
    )


def explicitness(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    test: tuple[ArrayLike, ArrayLike],
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """Explicitness of Ridgeway and Mozer: how well all latents together tell the classes [S].

        mean_k mean_c AUC(p(g_k = c | z), g_k = c)

    with `p` a logistic regression on all live latents, standardised over the training set, and the
    area under the curve (AUC) of one class against the rest taken on the test set: 1/2 for a
    guess, so also with no live latent at all. Classes that the training or the test set does not
    have are left out [R].

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`. A code
        is as many columns as it has values [R].
      factors: `[N, K]` integer classes, with any labels.
      test: Latents `[M, D]` and factors `[M, K]` that the areas are measured on.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      A `Score` in [0, 1] without a matrix; `per_factor` has the mean areas. A factor of which the
      test set has one class only is not counted. `with_dead` is NaN if any latent is dead, since
      the reference divides by its standard deviation.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> examples = (factors[:, :1] * 2.0, factors)  # a latent for the first factor only
      >>> explicitness(*examples, test=examples).per_factor
      array([1. , 0.5])

    References:
      Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss",
      arXiv:1802.05312.
    """
    examples = read(latents, factors, active=active, discrete=discrete)
    held, held_classes = held_out(examples, test)
    columns, _ = features(examples.latents, examples)
    columns, held = unit_range(columns, features(held, examples)[0])
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    columns, held = (columns - mean) / deviation, (held - mean) / deviation
    areas = np.array(
        [
            _mean_area(_probabilities(columns, classes, held), answers)
            for classes, answers in zip(examples.classes.T, held_classes.T, strict=True)
        ]
    )
    defined = ~np.isnan(areas)
    value = areas[defined].mean() if defined.any() else math.nan
    return score(
        examples,
        value,
        estimator="scikit-learn LogisticRegression, C 1",
        per_factor=areas,
        with_dead=math.nan if examples.num_dead else value,
        reason=None if defined.all() else "the test set has one class only of some factor",
    )


def constant_accuracy(classes: NDArray[np.intp], answers: NDArray[np.intp]) -> float:
    """Accuracy of answering the commonest of `classes` `[N]` always, where `answers` `[M]` are due.

    The mean over the commonest where there are several [R], so that labels make no difference.
    """
    counts = np.bincount(classes)
    commonest = np.flatnonzero(counts == counts.max())
    return float(np.isin(answers, commonest).mean()) / len(commonest)


def _gaps(predictability: NDArray[np.float64]) -> NDArray[np.float64]:
    runner_up, best = np.sort(predictability, axis=0)[-2:]
    return best - runner_up


def _correlations(examples: Examples) -> NDArray[np.float64]:
    """Squared correlation `[D', K']` of live latents and the labels of varying factors."""
    columns = examples.latents
    labels = [
        values[codes].astype(np.float64)
        for values, codes in zip(examples.class_labels, examples.classes.T, strict=True)
    ]
    numbers = np.stack(labels, axis=1) if labels else np.zeros(examples.classes.shape)
    unit, _ = unit_range(columns, columns)
    unit = unit - unit.mean(axis=0)
    numbers = numbers - numbers.mean(axis=0)
    squares = (unit**2).sum(axis=0)
    with np.errstate(over="ignore"):
        variances = squares / max(len(unit) - 1, 1) * np.ptp(columns, axis=0) ** 2
    varied = variances > 1e-12
    power = squares[:, None] * (numbers**2).sum(axis=0)
    squared = np.zeros(power.shape)
    # Labels beyond 2^53 may be one float, and then have no power.
    counted = varied[:, None] & (power > 0)
    np.divide((unit.T @ numbers) ** 2, power, out=squared, where=counted)
    return np.minimum(squared, 1.0)


def _live_columns(examples: Examples, held: Latents) -> list[tuple[Columns, Columns]]:
    """What a classifier of one live latent sees `[N, F]`, `[M, F]`, for each of them."""
    columns, owners = features(examples.latents, examples)
    held, _ = features(held, examples)
    count = examples.latents.shape[1]
    return [(columns[:, owners == index], held[:, owners == index]) for index in range(count)]


def _dead_columns(
    examples: Examples, latents: ArrayLike, held: ArrayLike
) -> list[tuple[Columns, Columns]]:
    """The same of dead latents, as numbers that happen to be constant."""
    dead = examples.asked & ~examples.live
    both = [np.asarray(latents)[:, dead], np.asarray(held)[:, dead]]
    if examples.discrete:
        both = [codes == both[0][:1] for codes in both]
    seen, unseen = (numbers.astype(np.float64) for numbers in both)
    return [(seen[:, [index]], unseen[:, [index]]) for index in range(seen.shape[1])]


def _accuracies(
    columns: list[tuple[Columns, Columns]],
    classes: NDArray[np.intp],
    held_classes: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Test accuracy `[len(columns), K']` of a support vector machine on each of `columns`."""
    from sklearn import svm

    accuracies = np.zeros((len(columns), classes.shape[1]))
    machine = svm.LinearSVC(C=0.01, class_weight="balanced", random_state=0)
    with fitting():
        for row, (seen, held) in zip(accuracies, columns, strict=True):
            # The solver never ends where powers of its numbers overflow, or vanish but are not 0.
            scale = max(np.abs(seen).max() / 1e30, 1.0)
            scaled = np.where(np.abs(seen / scale) < 1e-30, 0.0, seen / scale)
            for index, (factor, answers) in enumerate(zip(classes.T, held_classes.T, strict=True)):
                guesses = machine.fit(scaled, factor).predict(held / scale)
                row[index] = (guesses == answers).mean()
    return accuracies


def _probabilities(columns: Columns, classes: NDArray[np.intp], held: Columns) -> Columns:
    """Probability `[M, C]` of each class on the held-out set; no columns, no differences."""
    if not columns.shape[1]:
        return np.zeros((len(held), int(classes.max()) + 1))
    from sklearn import linear_model

    model = linear_model.LogisticRegression(max_iter=1000)
    with fitting():
        return model.fit(columns, classes).predict_proba(held)


def _mean_area(probabilities: Columns, answers: NDArray[np.intp]) -> float:
    """Mean area under the curves of the classes that `answers` `[M]` has, and not only."""
    members = answers[:, None] == np.arange(probabilities.shape[1])
    positives = members.sum(axis=0)
    pairs = positives * (len(answers) - positives)
    ranks = np.where(members, stats.rankdata(probabilities, axis=0), 0.0).sum(axis=0)
    wins = ranks - positives * (positives + 1) / 2
    return float((wins[pairs > 0] / pairs[pairs > 0]).mean()) if (pairs > 0).any() else math.nan
