"""Estimates with their uncertainty: bootstrap intervals and permutation p-values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import flatten_util, lax

from vaejax.chunking import map_chunks

LEVEL = 0.95
"""The coverage that every interval aims at."""

RESAMPLES = 1000
"""Resamples of a bootstrap, and draws from a null."""

_FEW = 256  # examples, whose resamples are small enough to be constants, 1 MB
_COLUMNS_AT_ONCE = 1024  # means whose intervals are computed at once
_AT_ONCE = 2**22  # numbers that the means of resamples may take up at once, 16 MiB in float32


@struct.dataclass
class Estimate:
    """A number, or an array of them, with the ends of its interval.

    Attributes:
      value: The estimate, of any shape.
      low: The lower end of its 95% interval, same shape.
      high: The upper end, same shape.
    """

    value: jax.Array
    low: jax.Array
    high: jax.Array


def bootstrap(
    statistic: Callable[[Any], Any], examples: Any, *, key: jax.Array | None = None
) -> tuple[Any, Any]:
    """The percentile bootstrap: the interval of a statistic when examples are drawn anew.

    `RESAMPLES` times, as many examples as there are get drawn with replacement and the statistic is
    computed of them; the interval holds the central `LEVEL` of the values. Resamples of which the
    statistic is NaN are left out. With few examples it is too narrow, as every bootstrap is: for a
    mean it is about 1.96 sqrt((n - 1) / n) / t of Student's interval, 0.63 of it for n = 5.

    Args:
      statistic: Maps a pytree of arrays `[N, ...]` to a pytree of floating-point arrays.
      examples: The pytree that it is computed of, the same N in all of its arrays.
      key: Draws the resamples; `jax.random.key(0)` by default, so that equal data have equal
        intervals.

    Returns:
      The lower and the upper end, each with the structure of the statistic.

    Example:
      >>> low, high = bootstrap(lambda x: x.mean(), jnp.arange(100.0))
      >>> bool(43 < low < 45), bool(54 < high < 56)  # 49.5 -+ 1.96 * 28.9 / 10
      (True, True)

    References:
      Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    examples, n = _arrays(examples)

    def of_resample(rows: jax.Array) -> Any:
        return statistic(jax.tree.map(lambda leaf: leaf[rows], examples))

    return central_interval(lax.map(of_resample, _resamples(key, n)))


def bootstrap_mean(
    statistic: Callable[[Any], Any], means_of: Any, *, key: jax.Array | None = None
) -> tuple[Any, Any]:
    """`bootstrap` for a statistic of means over examples: the same interval, sooner.

    The means of all resamples are one matrix product, of how often each example was drawn with the
    examples; nothing of the size of the examples is copied.

    Args:
      statistic: Maps the means over examples, a pytree of arrays `[...]`, to a pytree of
        floating-point arrays.
      means_of: The pytree of floating-point arrays `[N, ...]` whose means it takes.
      key: As in `bootstrap`; the resamples are the same.

    Returns:
      The lower and the upper end, each with the structure of the statistic.

    Example:
      >>> low, high = bootstrap_mean(jnp.sqrt, jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 9.0]]))
      >>> low, high
      (Array([2., 0.], dtype=float32), Array([2., 3.], dtype=float32))
    """
    means_of, n = _arrays(means_of)
    counts = _resamples(key, n, _counts)
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(means_of))

    def of_resamples(index: jax.Array) -> Any:
        def means(leaf: jax.Array) -> jax.Array:
            # In full precision: accelerators would round the factors of a product.
            weights = counts[index].astype(leaf.dtype)
            return jnp.tensordot(weights, leaf, 1, precision=lax.Precision.HIGHEST) / n

        return jax.vmap(statistic)(jax.tree.map(means, means_of))

    at_once = min(RESAMPLES, max(1, _AT_ONCE // max(size, n)))
    return central_interval(map_chunks(of_resamples, RESAMPLES, at_once))


def estimate(
    statistic: Callable[[Any], jax.Array], examples: Any, *, key: jax.Array | None = None
) -> Estimate:
    """A statistic of the examples, with its bootstrap interval; arguments as `bootstrap`.

    Example:
      >>> result = estimate(lambda x: x.mean(), jnp.array([1.0, 1.0, 1.0]))
      >>> float(result.value), float(result.low), float(result.high)
      (1.0, 1.0, 1.0)
    """
    return Estimate(statistic(examples), *bootstrap(statistic, examples, key=key))


@jax.jit
def estimate_mean(values: jax.Array, key: jax.Array | None = None) -> Estimate:
    """The mean over examples with its bootstrap interval, without those that were skipped.

    Args:
      values: `[N, ...]`, NaN for what was skipped.
      key: As in `bootstrap`.

    Example:
      >>> float(estimate_mean(jnp.array([1.0, jnp.nan, 2.0, 3.0])).value)
      2.0
    """
    there = ~jnp.isnan(values)
    sums = jnp.where(there, values, 0), there.astype(values.dtype)
    return Estimate(jnp.nanmean(values, axis=0), *bootstrap_mean(ratio, sums, key=key))


@jax.jit
def estimate_means(
    values: Mapping[Any, jax.Array], key: jax.Array | None = None
) -> dict[Any, Estimate]:
    """`estimate_mean` of each of many arrays `[N, ...]` of the same N, in one loop for all.

    Example:
      >>> found = estimate_means({"a": jnp.ones((4, 2)), "b": jnp.zeros((4, 3, 5))})
      >>> found["b"].value.shape
      (3, 5)
    """
    together = jnp.concatenate([array.reshape(len(array), -1) for array in values.values()], 1)
    padding = -together.shape[1] % _COLUMNS_AT_ONCE
    blocks = jnp.pad(together, ((0, 0), (0, padding))).reshape(len(together), -1, _COLUMNS_AT_ONCE)
    means = lax.map(lambda block: estimate_mean(block, key), jnp.moveaxis(blocks, 1, 0))
    found, start = {}, 0
    for name, array in values.items():
        end = start + math.prod(array.shape[1:])
        found[name] = jax.tree.map(
            lambda leaf, start=start, end=end, shape=array.shape[1:]: leaf.reshape(-1)[
                start:end
            ].reshape(shape),
            means,
        )
        start = end
    return found


def ratio(means: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The statistic of `bootstrap_mean` that is the first mean by the second."""
    return means[0] / means[1]


def central_interval(draws: Any) -> tuple[Any, Any]:
    """The ends of the interval that holds the central `LEVEL` of the draws, NaN left out.

    Args:
      draws: A pytree of floating-point arrays `[R, ...]`.

    Returns:
      The lower and the upper end, each a pytree of arrays `[...]`.

    Example:
      >>> central_interval(jnp.arange(41.0))
      (Array(1., dtype=float32), Array(39., dtype=float32))
    """
    # All in one array, for one sort: to compile it takes long.
    rows = jax.vmap(lambda draw: flatten_util.ravel_pytree(draw)[0])(draws)
    unravel = flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[0], draws))[1]
    low, high = _ends(rows)
    return unravel(low), unravel(high)


def p_value(observed: jax.Array, null: jax.Array) -> jax.Array:
    """One-sided permutation p-value: how often the null is at least as large as the observed.

        p = (1 + #{null >= observed}) / (1 + R)

    Args:
      observed: `[...]`.
      null: R values under the null hypothesis, `[R, ...]`.

    Returns:
      `[...]`; at least `1 / (1 + R)`, and NaN where the observed value is.

    Example:
      >>> p_value(jnp.array(2.0), jnp.array([0.0, 1.0, 3.0]))
      Array(0.5, dtype=float32)

    References:
      Phipson and Smyth, "Permutation p-values should never be zero", 2010.
    """
    p = (1 + jnp.sum(null >= observed, axis=0)) / (1 + len(null))
    return jnp.where(jnp.isnan(observed), jnp.nan, p)


# Compiled by themselves: outside of `jit` they would be compiled again for every statistic.
@jax.jit
def _ends(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The quantiles of the columns of `[R, C]` that `LEVEL` lies between, without NaN."""
    return _lower_end(rows), -_lower_end(-rows)


def _lower_end(rows: jax.Array) -> jax.Array:
    # A quantile this far out needs only the few smallest numbers: sorting all takes 20 times as
    # long.
    share, most = (1 - LEVEL) / 2, len(rows) - 1
    there = ~jnp.isnan(rows)
    negative, _ = lax.top_k(
        jnp.where(there, -rows, -jnp.inf).T, min(most, int(share * most) + 1) + 1
    )
    last = there.sum(axis=0) - 1
    position = share * last.astype(rows.dtype)
    below = jnp.floor(position).astype(jnp.int32)
    above = jnp.minimum(below + 1, last)
    pair = -jnp.take_along_axis(negative, jnp.stack([below, above], 1), axis=1)
    # Written so that between equal numbers, infinite ones too, it is that number.
    step = jnp.where(pair[:, 0] == pair[:, 1], 0, pair[:, 1] - pair[:, 0])
    return jnp.where(last < 0, jnp.nan, pair[:, 0] + (position - jnp.floor(position)) * step)


@functools.partial(jax.jit, static_argnames="n")
def _draw(key: jax.Array, n: int) -> jax.Array:
    return jax.random.randint(key, (RESAMPLES, n), 0, n)


@jax.jit
def _counts(drawn: jax.Array) -> jax.Array:
    """How often each resample draws each example, `[RESAMPLES, N]`."""
    return jax.vmap(lambda rows: jnp.bincount(rows, length=len(rows)))(drawn)


def _resamples(
    key: jax.Array | None, n: int, of_drawn: Callable[[jax.Array], jax.Array] = lambda drawn: drawn
) -> jax.Array:
    """Which examples each resample draws, `[RESAMPLES, N]`, or what is made of that."""
    if key is None and n <= _FEW:
        # Constants of the program: to compile the draws takes longer than all else of an estimate.
        with jax.ensure_compile_time_eval():
            return of_drawn(_draw(jax.random.key(0), n))
    return of_drawn(_draw(jax.random.key(0) if key is None else key, n))


def _arrays(examples: Any) -> tuple[Any, int]:
    """A pytree with arrays for leaves, which tracers can index, and the number of examples."""
    examples = jax.tree.map(jnp.asarray, examples)
    return examples, len(jax.tree.leaves(examples)[0])
