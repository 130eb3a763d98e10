"""How decoder logits become a distribution over images.

A likelihood is a frozen record with two functions: `mean(logits)`, the decoded means, and
`negative_log_likelihood(x, logits)`, per example, in nats, summed over all elements.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax


class Likelihood(Protocol):
    """What a model needs of a likelihood."""

    def mean(self, logits: jax.Array) -> jax.Array:
        """Decoded means, of the shape of `logits`."""
        ...

    def negative_log_likelihood(self, x: jax.Array, logits: jax.Array) -> jax.Array:
        """`-log p(x | z)` in nats, `[B]`, summed over all but the first axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Each element is Bernoulli with mean `sigmoid(logits)`; for images in [0, 1].

    For values strictly between 0 and 1 this is the cross-entropy, as is usual in the field, and
    not the logarithm of a density.

    Example:
      >>> import jax.numpy as jnp
      >>> x, logits = jnp.ones((2, 3)), jnp.zeros((2, 3))
      >>> print(Bernoulli().negative_log_likelihood(x, logits))  # 3 log 2
      [2.0794415 2.0794415]
    """

    def mean(self, logits: jax.Array) -> jax.Array:
        """`sigmoid(logits)`."""
        return jax.nn.sigmoid(logits)

    def negative_log_likelihood(self, x: jax.Array, logits: jax.Array) -> jax.Array:
        """Cross-entropy in nats, `[B]`; stable for logits of any size."""
        return _sum_elements(jax.nn.softplus(logits) - x * logits)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Each element is normal with mean `logits` and a fixed standard deviation.

    Attributes:
      stddev: The standard deviation, in units of the data.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.zeros((2, 3))
      >>> print(Normal().negative_log_likelihood(x, x))  # 3/2 log(2 pi)
      [2.7568154 2.7568154]
    """

    stddev: float = 1.0

    def mean(self, logits: jax.Array) -> jax.Array:
        """`logits` themselves."""
        return logits

    def negative_log_likelihood(self, x: jax.Array, logits: jax.Array) -> jax.Array:
        """Negative log density in nats, `[B]`."""
        constant = math.log(self.stddev) + 0.5 * math.log(2 * math.pi)
        return _sum_elements(0.5 * ((x - logits) / self.stddev) ** 2 + constant)


def _sum_elements(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1).sum(-1)
