"""The true causal effects of a structural causal model, exactly or by simulation."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from vaejax.data.scm import SCM

_MOST_STATES = 2**16


@flax.struct.dataclass
class Effects:
    """The effect of every variable on every other, in units of the range of the one affected.

    Attributes:
      value: `[K, K]` float32; row i, column j is the effect of i on j.
      low: The lower end of its 95% interval, `[K, K]`; the value itself if exact.
      high: The upper end.
      exact: Whether the values are expectations of the model, not estimates by simulation.
    """

    value: jax.Array
    low: jax.Array
    high: jax.Array
    exact: bool = flax.struct.field(pytree_node=False)


def exact_effects(scm: SCM, direct: bool) -> Effects | None:
    """Effects as expectations of the model, up to rounding; None if there is no way to them.

    An expectation passes through a mechanism that is linear. So only those variables are enumerated
    that some mechanism is not linear in (gates, and the parents of a Bernoulli): given their
    classes, the expected value of every other variable follows from those of its parents. This
    fails if a number between classes is among them, or if they have more than 2^16 joint classes.
    A linear model has none, and the result is the sum over paths of the products of weights.

    Args:
      scm: The model.
      direct: Whether all other variables are held, or follow by their mechanisms.
    """
    enumerated = _enumerated(scm)
    if enumerated is None:
        return None
    tops = [factor.size - 1 for factor in scm.factors]
    effects = np.zeros((len(tops), len(tops)))
    for i, top in enumerate(tops):
        if direct:
            weights, means = _means(scm, enumerated, {})
            means = np.stack([_response(scm, means, i, end) for end in (0, top)])
            low, high = np.einsum("m,emk->ek", weights, means)
        else:
            low, high = (
                np.einsum("m,mk->k", *_means(scm, enumerated, {i: end})) for end in (0, top)
            )
        effects[i] = (high - low) / np.maximum(tops, 1)
    value = jnp.asarray(effects, jnp.float32)
    return Effects(value, value, value, exact=True)


def simulated_effects(scm: SCM, direct: bool, key: jax.Array, n: int) -> Effects:
    """Means over `n` examples that differ in the intervention alone, +- 1.96 standard errors."""
    value, error = _simulate(scm, direct, key, n)
    return Effects(value, value - 1.96 * error, value + 1.96 * error, exact=False)


@functools.partial(jax.jit, static_argnames=("scm", "direct", "n"))
def _simulate(scm: SCM, direct: bool, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    noise = scm.sample_noise(key, n)
    observed = scm.solve(noise)
    tops = jnp.array([factor.size - 1 for factor in scm.factors], jnp.float32)

    def of(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        def at(end: jax.Array | float) -> jax.Array:
            if direct:
                return scm.respond(noise, jnp.where(jnp.arange(len(tops)) == i, end, observed))
            return scm.solve_with(noise, i, end)

        change = (at(tops[i]) - at(0.0)) / jnp.maximum(tops, 1)
        return change.mean(axis=0), change.std(axis=0) / jnp.sqrt(n)

    return jax.lax.map(of, jnp.arange(len(tops)))


def _enumerated(scm: SCM) -> tuple[int, ...] | None:
    """The variables whose classes must be gone through, in causal order, or None."""
    # All their ancestors are among them: they are roots, or Bernoullis, not linear in any parent.
    found = {scm.index(name) for mechanism in scm.mechanisms for name in mechanism.nonlinear_in}
    states = math.prod(scm.factors[j].size for j in found)
    if states > _MOST_STATES or not all(scm.mechanisms[j].discrete for j in found):
        return None
    return tuple(j for j in scm.order if j in found)


def _means(
    scm: SCM, enumerated: tuple[int, ...], do: Mapping[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """For each of the M joint classes its probability `[M]` and what is expected then `[M, K]`."""
    classes = [[do[j]] if j in do else range(scm.factors[j].size) for j in enumerated]
    grid = np.meshgrid(*map(np.asarray, classes), indexing="ij")
    states = {j: axis.ravel().astype(float) for j, axis in zip(enumerated, grid, strict=True)}
    weights = np.ones(math.prod(map(len, classes)))
    means = np.zeros((len(weights), len(scm.factors)))
    for j in scm.order:
        mechanism, parents = scm.mechanisms[j], [means[:, parent] for parent in scm.parents[j]]
        if j in do:
            means[:, j] = do[j]
        elif j in states:
            means[:, j] = states[j]
            weights = weights * mechanism.likelihood(states[j], parents)
        else:
            means[:, j] = mechanism.mean(parents)
    return weights, means


def _response(scm: SCM, means: np.ndarray, i: int, end: float) -> np.ndarray:
    """What is expected of each variable when i alone is set, `[M, K]`; 0 for what has no parent."""
    moved = means.copy()
    moved[:, i] = end
    out = np.zeros_like(means)
    for j in scm.order:
        if i in scm.parents[j]:
            out[:, j] = scm.mechanisms[j].mean([moved[:, parent] for parent in scm.parents[j]])
    return out
