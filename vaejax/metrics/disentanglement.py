"""Disentanglement metrics: how well single latents stand for single ground-truth factors.

On the host, in float64 NumPy: the metrics run once per model, and their reference implementations
are NumPy too. Reference behaviour is that of disentanglement_lib (Locatello et al. 2019). Marks in
the docstrings: [S] standard in the cited literature, [R] our choice.

One policy for degenerate input: dead latents carry no information and are counted; what is
undefined is NaN and comes with the reason, nothing raises or warns.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


@dataclasses.dataclass(frozen=True, eq=False)
class MIG:
    """Mutual information gap of D latents and K factors. Information in nats.

    Attributes:
      score: Mean of `gaps` over the factors that vary, in [0, 1]; NaN when none does.
      gaps: `[K]` gap of each factor; NaN for a constant factor.
      mutual_information: `[D, K]` between binned latent and factor.
      entropies: `[K]` of the factors.
      num_constant_factors: Factors left out of `score`.
      num_dead_latents: Constant latents. Their mutual information is 0.
      reason: Why `score` or some gap is NaN; None when nothing is.
    """

    score: float
    gaps: NDArray[np.float64]
    mutual_information: NDArray[np.float64]
    entropies: NDArray[np.float64]
    num_constant_factors: int
    num_dead_latents: int
    reason: str | None


def mig(latents: ArrayLike, factors: ArrayLike, bins: int = 20) -> MIG:
    """Mutual information gap [S].

        MIG = mean_k (MI(z_(1), g_k) - MI(z_(2), g_k)) / H(g_k)

    with `z_(1)`, `z_(2)` the two latents that know most about factor k. Each latent is cut into
    `bins` bins of equal width over its own range; factors are classes already and never binned.

    Constant factors are left out of the mean. Dead latents stay in with no information, so adding
    one changes nothing; for the same reason a single latent has a runner-up of 0 [R] (the reference
    fails there). When all latents are dead the score is 0. Permuting latents or examples or
    relabelling classes changes nothing.

    Args:
      latents: `[N, D]` finite numbers, usually posterior means.
      factors: `[N, K]` integer classes, with any labels.
      bins: Number of bins of each latent.

    Returns:
      A `MIG`.

    Raises:
      ValueError: A shape or dtype is not the one above, or a latent is not finite.

    Examples:
      >>> factors = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> mig(factors * [2.0, -3.0], factors).score  # one latent per factor
      1.0
      >>> mig(factors[:, [0, 0, 1]], factors).gaps  # two latents share the first factor
      array([0., 1.])

    References:
      Chen, Li, Grosse and Duvenaud, "Isolating Sources of Disentanglement in Variational
      Autoencoders", arXiv:1802.04942.
      Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of
      Disentangled Representations", arXiv:1811.12359 (binning).
    """
    codes, classes = np.asarray(latents, dtype=np.float64), np.asarray(factors)
    if codes.ndim != 2 or codes.size == 0:
        raise ValueError(f"expected latents [N, D], not empty, got shape {codes.shape}")
    if classes.ndim != 2 or classes.size == 0 or len(classes) != len(codes):
        raise ValueError(
            f"expected factors [N, K], not empty, with N = {len(codes)}, got shape {classes.shape}"
        )
    if classes.dtype.kind not in "biu":
        raise ValueError(f"expected integer factors, got {classes.dtype}")
    if not np.isfinite(codes).all():
        raise ValueError(f"expected finite latents, got {(~np.isfinite(codes)).sum()} that are not")
    if bins < 1:
        raise ValueError(f"expected bins >= 1, got {bins}")

    binned = np.stack([_bin(code, bins) for code in codes.T], axis=1)
    counts = [_joint_counts(binned, bins, factor) for factor in classes.T]
    information = np.stack([_mutual_information(joint) for joint in counts], axis=1)
    # Any latent's joint counts have the factor's own as their margin.
    entropies = np.array([_entropy(joint[0].sum(axis=0)) for joint in counts])

    constant = np.array([joint.shape[2] == 1 for joint in counts])
    runner_up, best = np.sort(np.pad(information, ((1, 0), (0, 0))), axis=0)[-2:]
    gaps = np.full(len(counts), np.nan)
    np.divide(best - runner_up, entropies, out=gaps, where=~constant)
    return MIG(
        score=float("nan") if constant.all() else float(gaps[~constant].mean()),
        gaps=gaps,
        mutual_information=information,
        entropies=entropies,
        num_constant_factors=int(constant.sum()),
        num_dead_latents=int((codes == codes[0]).all(axis=0).sum()),
        reason=f"constant factors: {np.flatnonzero(constant).tolist()}" if constant.any() else None,
    )


def _bin(code: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    """Bin `0 .. bins - 1` of each number in `code` `[N]`; bins of equal width, closed below.

    The maximum belongs to the last bin. Same as `digitize(code, histogram(code, bins)[1][:-1]) - 1`
    but for codes that span too few floats for `bins` bins, where `histogram` raises.
    """
    edges = np.linspace(code.min(), code.max(), bins + 1)[:-1]
    return np.searchsorted(edges, code, side="right") - 1


def _joint_counts(
    binned: NDArray[np.intp], bins: int, factor: NDArray[np.integer]
) -> NDArray[np.intp]:
    """How often `[D, bins, classes]` each bin of each latent `[N, D]` meets a class of `[N]`."""
    labels, classes = np.unique(factor, return_inverse=True)
    shape = (binned.shape[1], bins, len(labels))
    cells = np.ravel_multi_index((np.arange(shape[0]), binned, classes[:, None]), shape)
    return np.bincount(cells.ravel(), minlength=math.prod(shape)).reshape(shape)


def _entropy(counts: NDArray[np.intp]) -> float:
    """Entropy in nats of a distribution given as counts."""
    return float(special.entr(counts / counts.sum()).sum())


def _mutual_information(counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mutual information `[D]` in nats of joint distributions given as counts `[D, bins, C]`."""
    total = counts[0].sum()
    # Margins of counts are exact: a dead latent gets exactly 0, and no figure depends on the order
    # of latents or examples.
    by_bin = counts.sum(axis=2, keepdims=True) / total
    by_class = counts.sum(axis=1, keepdims=True) / total
    information = special.rel_entr(counts / total, by_bin * by_class).sum(axis=(1, 2))
    return np.maximum(information, 0.0)  # rounding can leave -1e-17 where nothing is shared
