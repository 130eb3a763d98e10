"""Sets of images that share one factor: drawn, encoded, and each reduced to one number per latent.

Images are rendered, encoded and measured on the device; which ones make up a set is drawn on the
host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from vaejax.chunking import even_chunk, map_chunks, map_items
from vaejax.data.protocols import DataSource

Encode = Callable[[Any, jax.Array], jax.Array]
Measure = Callable[[jax.Array], jax.Array]  # sets [V, M, D] to [V, ..., D]

_POPULATION = 10_000  # images that tell how much a latent varies at all
_MEMBERS = 2_048  # of sets that are measured at once


def measure_sets(
    encode: Encode,
    variables: Any,
    source: DataSource,
    key: jax.Array,
    anchors: NDArray[np.intp],
    measure: Measure,
    total: int,
    pool: int | None,
    discrete: bool,
    wants_population: bool,
) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.intp], NDArray[np.float64]]:
    """Draws sets that share a factor, and measures the latents of each.

    Returns:
      Latents `[N, D]` of images that share nothing (N = 0 unless wanted or there is a pool); which
      factors vary, `[K]` bool; for each set the factor it shares, an index among those, and its
      measure `[total, D]`.
    """
    images_key, sets_key = jax.random.split(key)
    # Indices are drawn on the host: XLA would compile the draws for longer than they take.
    rng = np.random.default_rng(np.asarray(jax.random.bits(sets_key, (4,))))
    population: Any = np.zeros((0, 0))
    if pool is None:
        sizes = np.array([factor.size for factor in source.factors])
        varying = sizes > 1
        if wants_population:
            _, vectors = draw_vectors(rng, sizes, np.zeros(1, np.intp), _POPULATION)
            population = _measure_new(
                encode, variables, source, vectors, measure=_themselves, discrete=discrete
            )
            population = np.asarray(population)[:, 0]
        shared, vectors = draw_vectors(rng, sizes, anchors, total)
        measured = _measure_new(
            encode, variables, source, vectors, measure=measure, discrete=discrete
        )
    else:
        pooled = encode_pool(encode, variables, source, images_key, n=pool, discrete=discrete)
        population, classes = jax.device_get(pooled)
        varying = (classes != classes[0]).any(axis=0)
        shared, members = draw_members(rng, classes, anchors, total)
        measured = _measure_pooled(pooled[0], members, measure=measure)
    measures = np.asarray(measured, np.float64)
    if not discrete and (np.isnan(measures).any() or not np.isfinite(population).all()):
        raise ValueError("expected encode to give finite latents, got some that are not")
    return population, varying, shared, measures


def draw_vectors(
    rng: np.random.Generator, sizes: NDArray[np.intp], anchors: NDArray[np.intp], total: int
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Sets of factor vectors, uniform but that all members share a factor with their anchor.

    Args:
      rng: Draws.
      sizes: Of the factors, `[K]`.
      anchors: `[M]`, for each member of a set the one that it shares the factor's value with.
      total: Number of sets.

    Returns:
      For each set the shared factor `[total]`, an index among those that vary, and its factor
      vectors `[total, M, K]`.
    """
    # Nothing is drawn for factors of one value, so that they change no score.
    choices = _choices(sizes > 1)
    shared = rng.integers(len(choices), size=total)
    vectors = np.zeros((total, len(anchors), len(sizes)), np.int32)
    vectors[:, :, choices] = rng.integers(sizes[choices], size=(total, len(anchors), len(choices)))
    sets, columns = np.arange(total)[:, None], choices[shared][:, None]
    vectors[sets, np.arange(len(anchors)), columns] = vectors[sets, anchors, columns]
    return shared, vectors


def draw_members(
    rng: np.random.Generator, classes: NDArray[np.integer], anchors: NDArray[np.intp], total: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Sets of examples that all share a factor with their anchor, with replacement.

    Args:
      rng: Draws.
      classes: `[N, K]` of the examples.
      anchors: `[M]`, as in `draw_vectors`.
      total: Number of sets.

    Returns:
      For each set the shared factor `[total]`, an index among those that vary, and its examples
      `[total, M]`.
    """
    choices = _choices((classes != classes[0]).any(axis=0))
    shared = rng.integers(len(choices), size=total)
    givers = rng.integers(len(classes), size=(total, len(anchors)))[:, anchors]
    picks = rng.random((total, len(anchors)))
    members = np.zeros((total, len(anchors)), np.intp)
    for index, factor in enumerate(classes[:, choices].T):
        order, sets = np.argsort(factor, kind="stable"), shared == index
        values, ordered = factor[givers[sets]], factor[order]
        first = np.searchsorted(ordered, values)
        last = np.searchsorted(ordered, values, side="right")
        members[sets] = order[first + (picks[sets] * (last - first)).astype(np.intp)]
    return shared, members


@functools.partial(jax.jit, static_argnames=("encode", "measure", "discrete"))
def _measure_new(
    encode: Encode,
    variables: Any,
    source: Any,
    vectors: jax.Array,
    *,
    measure: Measure,
    discrete: bool,
) -> jax.Array:
    """Measures `[V, ..., D]` of the latents of sets of factor vectors `[V, M, K]`."""
    total, size, num_factors = vectors.shape

    def one_chunk(indices: jax.Array) -> jax.Array:
        flat = vectors[indices].reshape(-1, num_factors)

        def one_batch(index: jax.Array) -> jax.Array:
            images = jax.vmap(source.render)(flat[index])
            return _encoded(encode, variables, images, discrete)

        latents = map_chunks(one_batch, len(flat), even_chunk(None, len(flat)))
        return measure(latents.reshape(len(indices), size, -1))

    return map_chunks(one_chunk, total, _sets_at_once(size, total))


@functools.partial(jax.jit, static_argnames=("encode", "n", "discrete"))
def encode_pool(
    encode: Encode, variables: Any, source: Any, key: jax.Array, *, n: int, discrete: bool
) -> tuple[jax.Array, jax.Array]:
    """Latents `[n, D]` and factors `[n, K]` of images that the source draws."""
    chunk = even_chunk(None, n, devices=1)  # it decides which images are drawn

    def one_chunk(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, factors = source.batch(key, chunk)
        return _encoded(encode, variables, images, discrete), factors

    latents, factors = map_items(one_chunk, jax.random.split(key, -(-n // chunk)))
    return latents.reshape(-1, latents.shape[-1])[:n], factors.reshape(-1, factors.shape[-1])[:n]


@functools.partial(jax.jit, static_argnames="measure")
def _measure_pooled(latents: jax.Array, members: jax.Array, *, measure: Measure) -> jax.Array:
    """Measures `[V, ..., D]` of sets given by their `members` `[V, M]` in `latents` `[N, D]`."""
    total, size = members.shape

    def one_chunk(indices: jax.Array) -> jax.Array:
        return measure(latents[members[indices]])

    return map_chunks(one_chunk, total, _sets_at_once(size, total))


def _encoded(encode: Encode, variables: Any, images: jax.Array, discrete: bool) -> jax.Array:
    """Latents `[n, D]` of images `[n, H, W, C]`, or a ValueError."""
    latents = jnp.asarray(encode(variables, images))
    if latents.ndim != 2 or len(latents) != len(images) or latents.size == 0:
        raise ValueError(
            f"expected encode to give latents [n, D], n = {len(images)}, got {latents.shape}"
        )
    if discrete and jnp.issubdtype(latents.dtype, jnp.inexact):
        raise ValueError(
            f"expected encode to give integers, as latents are discrete, got {latents.dtype}"
        )
    return latents if discrete else latents.astype(jnp.promote_types(latents.dtype, jnp.float32))


def _themselves(sets: jax.Array) -> jax.Array:
    return sets


def variance(sets: jax.Array) -> jax.Array:
    """Variance `[V, D]` of sets `[V, M, D]`, unbiased."""
    # Relative to the first member, a set of equal numbers has variance 0 and not a rounding error.
    apart = sets - sets[:, :1]
    centred = apart - apart.mean(axis=1, keepdims=True)
    return (centred * centred).sum(axis=1) / (sets.shape[1] - 1)


def disagreement(sets: jax.Array) -> jax.Array:
    """Share `[V, D]` of the pairs of examples in sets `[V, M, D]` whose codes differ."""
    size = sets.shape[1]
    differ = (sets[:, :, None] != sets[:, None]).sum(axis=(1, 2))
    return differ / (size * (size - 1))


def distance(sets: jax.Array) -> jax.Array:
    """Mean distance `[V, D]` of the pairs in sets `[V, 2 S, D]`, the first S with the last S."""
    first, second = jnp.split(sets, 2, axis=1)
    return jnp.abs(first - second).mean(axis=1)


def mismatch(sets: jax.Array) -> jax.Array:
    """Share `[V, D]` of the pairs in sets `[V, 2 S, D]`, as in `distance`, whose codes differ."""
    first, second = jnp.split(sets, 2, axis=1)
    return (first != second).mean(axis=1)


def _choices(varying: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The factors that sets may share: those that vary, or all if none does."""
    return np.flatnonzero(varying | ~varying.any())


def _sets_at_once(size: int, total: int) -> int:
    return even_chunk(max(1, _MEMBERS // size), total)
