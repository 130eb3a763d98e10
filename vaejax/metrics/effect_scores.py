"""The records of causal effect strength."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from vaejax.estimates import bootstrap_mean


@struct.dataclass
class EffectScores:
    """The effect of every latent and its summaries over latents, in one unit.

    Attributes:
      per_latent: `[D]` mean effect of each latent.
      all: `[]` mean over all latents, dead ones included.
      active: `[]` mean over active latents; NaN when no mask was given or no latent is active.
      max: `[]` the largest effect of any latent.
      low: The same numbers at the lower end of their 95% bootstrap intervals over examples, each
        number for itself; None inside `low` and `high`.
      high: The same at the upper end.
    """

    per_latent: jax.Array
    all: jax.Array
    active: jax.Array
    max: jax.Array
    low: EffectScores | None = None
    high: EffectScores | None = None


@struct.dataclass
class CES:
    """Causal effect strength. The scores and their `low` and `high` are short for those of `l2`.

    Attributes:
      l2: Scores in the L2 norm of the change of the whole output.
      rms: The same per output element: L2 / sqrt(number of output elements of one example).
      num_active: `[]` int32, the number of active latents; None when no mask was given.
      num_dead: `[]` int32, the number of latents whose effect is exactly 0 in every intervention.
    """

    l2: EffectScores
    rms: EffectScores
    num_active: jax.Array | None
    num_dead: jax.Array

    @property
    def per_latent(self) -> jax.Array:
        """`[D]` L2 effect of each latent."""
        return self.l2.per_latent

    @property
    def all(self) -> jax.Array:
        """`[]` L2 effect, mean over all latents."""
        return self.l2.all

    @property
    def active(self) -> jax.Array:
        """`[]` L2 effect, mean over active latents."""
        return self.l2.active

    @property
    def max(self) -> jax.Array:
        """`[]` L2 effect of the strongest latent."""
        return self.l2.max

    @property
    def low(self) -> EffectScores | None:
        """L2 effects at the lower ends of their intervals."""
        return self.l2.low

    @property
    def high(self) -> EffectScores | None:
        """L2 effects at the upper ends of their intervals."""
        return self.l2.high


def effect_scores(
    effects: jax.Array, output: Any, active: jax.Array | None, key: jax.Array | None
) -> CES:
    """The record of effects `[N, D]` on an output of the shapes of `output`, `[chunk, ...]`."""
    l2 = _summarise(effects, active, key)
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(output))
    return CES(
        l2=l2,
        rms=jax.tree.map(lambda score: score / math.sqrt(size), l2),
        num_active=None if active is None else jnp.sum(active, dtype=jnp.int32),
        num_dead=jnp.sum(l2.per_latent == 0, dtype=jnp.int32),
    )


@jax.jit  # outside of `jit` every small step would be compiled by itself
def _summarise(effects: jax.Array, active: jax.Array | None, key: jax.Array | None) -> EffectScores:
    # The mean of no latents is NaN.
    mask = jnp.zeros(effects.shape[1], bool) if active is None else active

    def of_mean(per_latent: jax.Array) -> EffectScores:
        return EffectScores(
            per_latent=per_latent,
            all=per_latent.mean(),
            active=per_latent.mean(where=mask),
            max=per_latent.max(),
        )

    low, high = bootstrap_mean(of_mean, effects, key=key)
    return dataclasses.replace(of_mean(effects.mean(axis=0)), low=low, high=high)
