"""InfoMEC: modularity, compactness and explicitness in terms of information."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from vaejax.metrics.disentanglement.columns import scaled, standardised
from vaejax.metrics.disentanglement.fitting import fitting
from vaejax.metrics.disentanglement.information import class_entropies, count_information
from vaejax.metrics.disentanglement.scores import Examples, Score, features, read, score

_PRUNE_BELOW = 1 / 20


@dataclasses.dataclass(frozen=True, eq=False)
class InfoMEC:
    """The three scores of InfoMEC.

    Attributes:
      infom: Modularity, whether a latent knows one factor only; `per_latent`.
      infoc: Compactness, whether one latent only knows a factor; `per_factor`.
      infoe: Explicitness, how well a linear readout of all latents knows a factor; `per_factor`.
    """

    infom: Score
    infoc: Score
    infoe: Score


def infomec(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    neighbors: int = 10,
    seed: int = 0,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> InfoMEC:
    """Modularity, compactness and explicitness of Hsu et al. [S].

        NMI_ik = I(z_i; g_k) / H(g_k)
        InfoM  = (mean_i max_k NMI_ik / sum_k NMI_ik - 1 / K) / (1 - 1 / K)
        InfoC  = (mean_k max_i NMI_ik / sum_i NMI_ik - 1 / A) / (1 - 1 / A)
        InfoE  = mean_k 1 - L_k / ln C_k

    I of numbers is the estimate of Ross from nearest neighbours, I of codes that of their counts.
    Latents whose range is below 1 / 20 of the largest are pruned: only A are in the first two
    scores (of codes, all that vary). `L_k` is the log loss, on the same examples, of an
    unregularised logistic regression of all live latents, whose classes weigh the same; a readout
    that knows nothing has `ln C_k`, as its classes are equally likely.

    A latent (factor) without any information has no part and is left out of the mean [R], where the
    reference is NaN. So is the information that cannot be estimated, as no two examples share a
    class: it counts as 0 [R].

    InfoM and InfoC say nothing about how much is known: noise, whose few estimates above 0 are far
    apart, scores high. InfoE is of the examples it is fitted on, hence too high if they are few,
    and below 0 where weighing the classes the same makes the readout worse than none.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      neighbors: Nearest neighbours of each example within its class; not used if `discrete`.
      seed: Of the noise of 1e-10 standard deviations that breaks ties between latents; not used if
        `discrete`.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      Three `Score`s. `matrix` of the first two is NMI, NaN for latents that are pruned; their parts
      are normalised as the scores are.

    Raises:
      ValueError: A shape or dtype is not the one above, a latent is not finite, or `neighbors` < 1.

    Examples:
      >>> factors = np.tile([[0, 0], [0, 1], [1, 0], [1, 1]], (5, 1))
      >>> result = infomec(factors, factors, discrete=True)
      >>> round(result.infom.score, 3), round(result.infoc.score, 3), round(result.infoe.score, 3)
      (1.0, 1.0, 1.0)

    References:
      Hsu, Dorrell, Whittington, Wu and Finn, "Disentanglement via Latent Quantization",
      arXiv:2305.18378. Ross, "Mutual Information between Discrete and Continuous Data Sets", PLoS
      ONE 9(2), 2014.
    """
    if neighbors < 1:
        raise ValueError(f"expected neighbors >= 1, got {neighbors}")
    examples = read(latents, factors, active=active, discrete=discrete)
    entering = _entering(examples)
    information = np.full((len(entering), examples.classes.shape[1]), np.nan)
    information[entering] = _normalised_information(examples, entering, neighbors, seed)
    estimator = (
        f"{'counts' if discrete else f'{neighbors} nearest neighbours'}, "
        f"{(~entering).sum()} latents pruned"
    )
    pruned = [] if entering.all() else [f"latents pruned: {_places(examples.live, ~entering)}"]

    per_latent = np.full(len(entering), np.nan)
    per_latent[entering] = _concentration(information[entering])
    modularity = score(
        examples,
        _mean(per_latent),
        estimator=estimator,
        per_latent=per_latent,
        matrix=information,
        reason="; ".join(_reasons_of_modularity(examples, entering, per_latent) + pruned) or None,
    )
    per_factor = _concentration(information[entering].T)
    compactness = score(
        examples,
        _mean(per_factor),
        estimator=estimator,
        per_factor=per_factor,
        matrix=information,
        reason="; ".join(_reasons_of_compactness(examples, entering, per_factor) + pruned) or None,
    )
    explained = _explained(examples)
    explicitness = score(
        examples,
        _mean(explained),
        estimator="scikit-learn LogisticRegression, balanced classes, no penalty, 100 iterations",
        per_factor=explained,
    )
    return InfoMEC(modularity, compactness, explicitness)


def _entering(examples: Examples) -> NDArray[np.bool_]:
    """The live latents `[D']` that are not pruned."""
    d = examples.latents.shape[1]
    if examples.discrete or not d:
        return np.ones(d, bool)
    columns, exponents = scaled(examples.latents)
    ranges = np.ldexp(np.ptp(columns, axis=0), exponents - exponents.max())
    return ranges > ranges.max() * _PRUNE_BELOW


def _normalised_information(
    examples: Examples, entering: NDArray[np.bool_], neighbors: int, seed: int
) -> NDArray[np.float64]:
    entropies = class_entropies(examples.classes)
    kept = examples.latents[:, entering]
    if examples.discrete:
        return count_information(kept, examples.classes) / entropies

    information = np.zeros((kept.shape[1], len(entropies)))
    for i, column in enumerate(standardised(kept).T):
        # Every latent meets the same noise, whatever latents are beside it.
        noise = np.random.RandomState(seed).standard_normal(len(column))
        column = column + 1e-10 * max(1.0, np.abs(column).mean()) * noise
        information[i] = [nearest_information(column, g, neighbors) for g in examples.classes.T]
    return information / entropies


def nearest_information(
    column: NDArray[np.float64], classes: NDArray[np.intp], neighbors: int
) -> float:
    """Mutual information in nats of numbers `[N]` and classes `[N]`, from nearest neighbours.

    The estimate of Ross: r is a little less than the distance of an example's k-th neighbour within
    its class of n examples, m counts all the examples within r, itself among them, and

        I = psi(N) + mean psi(k) - mean psi(n) - mean psi(m)

    Examples that are alone in their class are left out; 0 if all are, or if the estimate is below.
    scikit-learn's `mutual_info_classif` gives the same for classes of more than 2 k examples; in
    smaller ones it rounds distances more coarsely, and may count the k-th neighbour itself.
    """
    order = np.lexsort((column, classes))
    column, classes = column[order], classes[order]
    _, first, inverse, counts = np.unique(
        classes, return_index=True, return_inverse=True, return_counts=True
    )
    size, start = counts[inverse], first[inverse]
    shared = size > 1
    if not shared.any():
        return 0.0
    column, size, start = column[shared], size[shared], start[shared]
    # Places among those that are left, class by class and sorted within each.
    start = start - np.cumsum(~shared)[shared]
    place, k = np.arange(len(column)), np.minimum(neighbors, size - 1)
    distance = np.full(len(column), np.inf)
    for below in range(int(k.max()) + 1):  # so many of the k neighbours are below
        low, high = place - below, place - below + k
        inside = (below <= k) & (low >= start) & (high < start + size)
        apart = np.maximum(
            column - column[np.where(inside, low, place)],
            column[np.where(inside, high, place)] - column,
        )
        distance = np.where(inside, np.minimum(distance, apart), distance)
    within = _count_within(column, np.nextafter(distance, 0))
    psi = special.digamma
    estimate = psi(len(column)) + (psi(k) - psi(size) - psi(within)).mean()
    return max(0.0, float(estimate))


def _count_within(column: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many of the numbers `[N]` are no farther from each of them than its radius `[N]`."""
    ordered = np.sort(column)
    first = np.searchsorted(ordered, column - radius)
    last = np.searchsorted(ordered, column + radius, side="right")
    # The sums are rounded more coarsely than the distances that count: mend what is next to the
    # ends, where a neighbour that defines the radius lies.
    ends = np.concatenate([[-np.inf], ordered, [np.inf]])
    while True:
        right = (ends[last + 1] - column <= radius).astype(int)
        right -= ends[last] - column > radius
        left = (column - ends[first] <= radius).astype(int)
        left -= column - ends[first + 1] > radius
        if not (right.any() or left.any()):
            return last - first
        last, first = last + right, first - left


def _concentration(information: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each row `[A, B]` is that of one column: 1 if it is, 0 if all have the same."""
    size = information.shape[1]
    parts = np.full(len(information), np.nan)
    if size > 1:
        total = information.sum(axis=1)
        np.divide(information.max(axis=1), total, out=parts, where=total > 0)
        parts = (parts - 1 / size) / (1 - 1 / size)
    return parts


def _explained(examples: Examples) -> NDArray[np.float64]:
    """`1 - L_k / ln C_k` `[K']`."""
    d, k = examples.latents.shape[1], examples.classes.shape[1]
    if not d:
        return np.zeros(k)

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    inputs = features(examples.latents, examples)[0]
    if not examples.discrete:
        inputs = standardised(inputs)
    explained = np.zeros(k)
    for index, factor in enumerate(examples.classes.T):
        classes = np.arange(factor.max() + 1)
        model = LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-4, max_iter=100)
        with fitting():
            probabilities = model.fit(inputs, factor).predict_proba(inputs)
            loss = log_loss(factor, probabilities, labels=classes)
        explained[index] = 1 - loss / math.log(len(classes))
    return explained


def _mean(parts: NDArray[np.float64]) -> float:
    parts = parts[~np.isnan(parts)]
    return float(parts.mean()) if len(parts) else math.nan


def _reasons_of_modularity(
    examples: Examples, entering: NDArray[np.bool_], per_latent: NDArray[np.float64]
) -> list[str]:
    if not len(entering):
        return ["no live latent"]
    if examples.classes.shape[1] < 2:
        return ["fewer than two factors vary"]
    uninformed = entering & np.isnan(per_latent)
    places = _places(examples.live, uninformed)
    return [f"latents without information: {places}"] if uninformed.any() else []


def _reasons_of_compactness(
    examples: Examples, entering: NDArray[np.bool_], per_factor: NDArray[np.float64]
) -> list[str]:
    if entering.sum() < 2:
        return ["fewer than two latents enter"]
    unknown = np.isnan(per_factor)
    places = _places(examples.varying, unknown)
    return [f"factors without information: {places}"] if unknown.any() else []


def _places(kept: NDArray[np.bool_], which: NDArray[np.bool_]) -> list[int]:
    """Of those of the `kept` that `which` says, the indices before the others were taken out."""
    places: list[int] = np.flatnonzero(kept)[which].tolist()
    return places
