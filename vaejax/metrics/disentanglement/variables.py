"""Which latents of a variational autoencoder are active, passive or mixed, from its variances."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class VariableTypes:
    """The types of D latents; each is of one.

    Attributes:
      active: `[D]` bool, their posterior is narrow for all examples.
      mixed: `[D]` bool, neither of the others: active for some examples and passive for others, or
        of a variance between the two.
      passive: `[D]` bool, their posterior is about as wide as the prior for all examples.
      mean_variance: `[D]`, of the posterior variance over examples.
      variance_of_variance: `[D]`, likewise.
    """

    active: NDArray[np.bool_]
    mixed: NDArray[np.bool_]
    passive: NDArray[np.bool_]
    mean_variance: NDArray[np.float64]
    variance_of_variance: NDArray[np.float64]


def variable_types(logvar: ArrayLike, *, threshold: float = 0.1) -> VariableTypes:
    """Types of latents by mean m and variance v over examples of the posterior variance [S].

        active:  v < threshold and m <= threshold
        passive: v < threshold and |m - 1| <= threshold
        mixed:   all others

    A metric leaves passive latents out by `active=~types.passive`.

    Args:
      logvar: `[N, D]` finite logarithms of posterior variances, of a prior of variance 1.
      threshold: In (0, 0.5), so that no latent is of two types.

    Raises:
      ValueError: `logvar` is not `[N, D]` or not finite, or `threshold` is not in (0, 0.5).

    Examples:
      >>> types = variable_types(np.log([[0.01, 0.01, 1.0], [0.02, 0.99, 0.98]]))
      >>> types.active.tolist(), types.mixed.tolist(), types.passive.tolist()
      ([True, False, False], [False, True, False], [False, False, True])

    References:
      Bonheme and Grzes, "Be More Active! Understanding the Differences between Mean and Sampled
      Representations of Variational Autoencoders", arXiv:2109.12679.
    """
    numbers = np.asarray(logvar, np.float64)
    if numbers.ndim != 2 or numbers.size == 0:
        raise ValueError(f"expected logvar [N, D], not empty, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"expected finite logvar, got {(~np.isfinite(numbers)).sum()} that is not")
    if not 0 < threshold < 0.5:
        raise ValueError(f"expected threshold in (0, 0.5), got {threshold}")
    # Of a diverged model variances overflow; it has latents of an infinite variance, hence mixed.
    with np.errstate(over="ignore", invalid="ignore"):
        variances = np.exp(numbers)
        mean = variances.mean(axis=0)
        variance = np.nan_to_num(variances.var(axis=0), nan=np.inf, posinf=np.inf)
    steady = variance < threshold
    active = steady & (mean <= threshold)
    passive = steady & (np.abs(mean - 1) <= threshold)
    return VariableTypes(active, ~(active | passive), passive, mean, variance)
