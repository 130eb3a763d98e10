"""Metrics made of the mutual information between binned latents and factors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from vaejax.metrics.disentanglement.columns import scaled
from vaejax.metrics.disentanglement.scores import Examples, Score, read, score


@dataclasses.dataclass(frozen=True, eq=False)
class MutualInformation:
    """Mutual information of D latents and K factors, in nats.

    Attributes:
      matrix: `[D, K]`; 0 where the latent or the factor is constant.
      entropies: `[K]` of the factors.
    """

    matrix: NDArray[np.float64]
    entropies: NDArray[np.float64]


def mutual_information(
    latents: ArrayLike, factors: ArrayLike, *, bins: int = 20, discrete: bool = False
) -> MutualInformation:
    """Mutual information between every latent and every factor [S].

    Each latent is cut into `bins` bins of equal width over its own range; factors, and latents that
    are codes, are classes already and never binned.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      bins: Number of bins of each latent.
      discrete: Whether latents are codes.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> mutual_information(factors * [2.0, -3.0], factors).matrix.round(3)
      array([[0.693, 0.   ],
             [0.   , 0.693]])

    References:
      Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of
      Disentangled Representations", arXiv:1811.12359 (binning).
    """
    examples = read(latents, factors, discrete=discrete)
    found = score(examples, 0.0, estimator="", matrix=_information(examples, bins))
    assert found.matrix is not None
    entropies = np.zeros(len(examples.varying))
    entropies[examples.varying] = class_entropies(examples.classes)
    return MutualInformation(np.nan_to_num(found.matrix, nan=0.0), entropies)


def mig(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    bins: int = 20,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """Mutual information gap [S].

        MIG = mean_k (MI(z_(1), g_k) - MI(z_(2), g_k)) / H(g_k)

    with `z_(1)`, `z_(2)` the two latents that know most about factor k, information as
    `mutual_information` has it. A single live latent has a runner-up of no information [R] (the
    reference fails there), and with no live latent at all the score is 0.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      bins: Number of bins of each latent.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      A `Score` in [0, 1]; `per_factor` has the gaps, `matrix` the information in nats.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> mig(factors * [2.0, -3.0], factors).score  # one latent per factor
      1.0
      >>> mig(factors[:, [0, 0, 1]], factors).per_factor  # two latents share the first factor
      array([0., 1.])

    References:
      Chen, Li, Grosse and Duvenaud, "Isolating Sources of Disentanglement in Variational
      Autoencoders", arXiv:1802.04942.
    """
    examples = read(latents, factors, active=active, discrete=discrete)
    information = _information(examples, bins)
    runner_up, best = np.sort(np.pad(information, ((2, 0), (0, 0))), axis=0)[-2:]
    gaps = (best - runner_up) / class_entropies(examples.classes)
    return score(
        examples,
        gaps.mean() if gaps.size else math.nan,
        estimator=_estimator(examples, bins),
        per_factor=gaps,
        matrix=information,
    )


def modularity(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    bins: int = 20,
    active: ArrayLike | None = None,
    discrete: bool = False,
) -> Score:
    """Modularity of Ridgeway and Mozer: whether a latent knows one factor only [S].

        mean_i 1 - sum_{k != k*} MI_ik^2 / (MI_ik*^2 (K - 1))

    with k* the factor that latent i knows most about, information as `mutual_information` has it.
    It says nothing about how much a latent knows: noise, whose information is the bias of the
    estimate, scores well above 0. No relation of `circuit_modularity`.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means; integer codes if `discrete`.
      factors: `[N, K]` integer classes, with any labels.
      bins: Number of bins of each latent.
      active: `[D]` bool, the latents to score; None for all.
      discrete: Whether latents are codes.

    Returns:
      A `Score` in [0, 1]; `matrix` has the information in nats. A latent that has none of any
      factor counts as 0 in `with_dead`, as in the reference, and not at all in `score`.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> result = modularity(np.column_stack([factors, factors.sum(1), np.ones(4)]), factors)
      >>> result.per_latent  # a latent for each factor, one for both, a dead one
      array([ 1.,  1.,  0., nan])
      >>> round(result.score, 3), result.with_dead
      (0.667, 0.5)

    References:
      Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss",
      arXiv:1802.05312.
    """
    examples = read(latents, factors, active=active, discrete=discrete)
    information = _information(examples, bins)
    others = examples.classes.shape[1] - 1
    per_latent = np.full(len(information), np.nan)
    reason = None
    if others < 1:
        reason = "fewer than two factors vary"
    elif not len(information):
        reason = "no live latent"
    else:
        squared = information**2
        best = squared.max(axis=1)
        rest = squared.sum(axis=1) - best
        np.divide(rest, best * others, out=per_latent, where=best > 0)
        per_latent = 1 - per_latent
        if not (best > 0).all():
            reason = "some latent has no information of any factor"
    informed = ~np.isnan(per_latent)
    counted = int(examples.asked.sum())
    return score(
        examples,
        per_latent[informed].mean() if informed.any() else math.nan,
        estimator=_estimator(examples, bins),
        per_latent=per_latent,
        matrix=information,
        with_dead=per_latent[informed].sum() / counted if others > 0 and counted else math.nan,
        reason=reason,
    )


def bin_columns(latents: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Bins `0 .. bins - 1` of each number in the columns `[N, D]`; equal width, closed below.

    The maximum belongs to the last bin. Same as `digitize(code, histogram(code, bins)[1][:-1]) - 1`
    but for codes that span too few floats for `bins` bins, where `histogram` raises.
    """
    binned = np.zeros(latents.shape, np.intp)
    if not len(latents.T):
        return binned
    for index, code in enumerate(scaled(latents)[0].T):
        edges = np.linspace(code.min(), code.max(), bins + 1)[:-1]
        binned[:, index] = np.searchsorted(edges, code, side="right") - 1
    return binned


def count_information(left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mutual information `[D, K]` in nats of the columns of `left` `[N, D]` and `right` `[N, K]`.

    Both hold codes `0 .. size - 1`.
    """
    shape = left.shape[1], right.shape[1]
    if not math.prod(shape):
        return np.zeros(shape)
    return np.stack([_mutual_information(_joint_counts(left, code)) for code in right.T], axis=1)


def class_entropies(classes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Entropy `[K]` in nats of the columns `[N, K]`, which hold codes `0 .. size - 1`."""
    counts = [np.bincount(factor) for factor in classes.T]
    return np.array([special.entr(count / count.sum()).sum() for count in counts])


def _information(examples: Examples, bins: int) -> NDArray[np.float64]:
    if bins < 1:
        raise ValueError(f"expected bins >= 1, got {bins}")
    latents = examples.latents
    codes = latents.astype(np.intp) if examples.discrete else bin_columns(latents, bins)
    return count_information(codes, examples.classes)


def _estimator(examples: Examples, bins: int) -> str:
    return "counts" if examples.discrete else f"{bins} bins of equal width"


def _joint_counts(codes: NDArray[np.intp], classes: NDArray[np.intp]) -> NDArray[np.intp]:
    """How often `[D, codes, classes]` each code of each column `[N, D]` meets a class of `[N]`."""
    shape = (codes.shape[1], int(codes.max()) + 1, int(classes.max()) + 1)
    cells = np.ravel_multi_index((np.arange(shape[0]), codes, classes[:, None]), shape)
    return np.bincount(cells.ravel(), minlength=math.prod(shape)).reshape(shape)


def _mutual_information(counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mutual information `[D]` in nats of joint distributions given as counts `[D, bins, C]`."""
    total = counts[0].sum()
    # Margins of counts are exact: a dead latent gets exactly 0, and no figure depends on the order
    # of latents or examples.
    by_bin = counts.sum(axis=2, keepdims=True) / total
    by_class = counts.sum(axis=1, keepdims=True) / total
    information = special.rel_entr(counts / total, by_bin * by_class).sum(axis=(1, 2))
    return np.maximum(information, 0.0)  # rounding can leave -1e-17 where nothing is shared
