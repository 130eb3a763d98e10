"""Which direction of a code encodes each factor.

Marks as in `vaejax.metrics`: [S] standard in the cited literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class LinearReadout:
    """A linear map from codes of D latents to K factors, in units of their ranges.

    Attributes:
      weights: `[D, K]`.
      bias: `[K]`.
      noise: `[D, D]`, what a direction in the codes is multiplied by, from both sides, for the
        variance that its read-out has when the factor is permuted over examples.
      spread: `[K]`, the variance of each factor, which that is in units of.
      r2: `[K]`, the share of it that the read-out explains, on what it was fitted to; NaN for a
        factor that does not vary.
      ranges: `[K]`, the range of each factor in classes, `size - 1`.
    """

    weights: jax.Array
    bias: jax.Array
    noise: jax.Array
    spread: jax.Array
    r2: jax.Array
    ranges: jax.Array

    def __call__(self, codes: jax.Array) -> jax.Array:
        """Reads codes `[..., D]`: `[..., K]`."""
        return jnp.matmul(codes, self.weights, precision="highest") + self.bias


def fit_readout(
    codes: Any, factors: Any, sizes: Sequence[int], *, ridge: float = 1e-6
) -> LinearReadout:
    """The direction in which each factor is encoded: least squares on its class.

    Fit it to images whose factors were drawn independently: if they are correlated, the direction
    of one factor leans on those of the others. For a categorical factor too the class is regressed
    on, as it is numbered; the expected class of a read-out of each class by itself is the same
    number, since least squares is linear in what is regressed.

    Args:
      codes: `[N, D]`.
      factors: `[N, K]`, classes or numbers between them; permuted over examples for a control.
      sizes: Number of classes of each factor.
      ridge: Penalty on the weights of standardised latents, as a share of N; keeps latents that do
        not vary, or copy each other, from being divided by.

    Returns:
      The read-out.

    Raises:
      ValueError: Shapes do not fit.

    Example:
      >>> factors = np.array([[0, 0], [0, 3], [2, 0], [2, 3]])
      >>> readout = fit_readout(factors @ [[1.0, 1.0], [1.0, -1.0]], factors, [3, 4])
      >>> print(readout(jnp.array([[2.5, -0.5]])).round(3))  # classes 1 and 1.5
      [[0.5 0.5]]
    """
    codes, factors = np.asarray(codes, np.float64), np.asarray(factors, np.float64)
    if codes.ndim != 2 or factors.shape != (len(codes), len(sizes)) or not codes.size:
        raise ValueError(
            f"expected codes [N, D] and factors [N, {len(sizes)}], not empty, "
            f"got shapes {codes.shape} and {factors.shape}"
        )
    total = len(codes)
    ranges = np.maximum(np.asarray(sizes, np.float64) - 1, 1)
    answers = factors / ranges
    center, mean = codes.mean(0), answers.mean(0)
    scale = codes.std(0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-30), scale, np.inf)  # dead: weight 0
    x, y = (codes - center) / scale, answers - mean
    inverse = np.linalg.inv(x.T @ x + ridge * total * np.eye(x.shape[1]))
    weights = inverse @ (x.T @ y)
    spread = y.var(0)
    residual = (y - x @ weights).var(0)
    # Permuted answers have the mean 0, the variance `spread` and, two of them, the covariance
    # `-spread / (N - 1)`. So `x' y` of centred x has the covariance `x' x spread N / (N - 1)`.
    noise = inverse @ (x.T @ x) @ inverse * (total / max(total - 1, 1))
    weights, noise = weights / scale[:, None], noise / scale / scale[:, None]
    return LinearReadout(
        *(
            jnp.asarray(array, jnp.float32)
            for array in (
                weights, mean - center @ weights, noise, spread,
                1 - residual / np.where(spread > 0, spread, np.nan), ranges,
            )
        )
    )  # fmt: skip
