"""Input manipulation: `x~ = x | do(g_k = v)`, one factor changed and all others held [P].

Knows no dataset, only a `render` function from one factor vector `[K]` to its image `[H, W, C]`;
`lookup` makes one of any dataset that holds every combination of its factors.

Marks as in `vaejax.metrics`: [P] stated by the papers' abstracts or by a published review of them,
[R] our reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.interventions.latents import do

Render = Callable[[jax.Array], jax.Array]
SetFactor = Callable[[jax.Array, Any, Any], jax.Array]


def set_factor(factors: Any, k: jax.Array | int, value: Any) -> jax.Array:
    """Factors with one of them set and all others held, `x | do(g_k = v)` [P].

    What `do_factor` and the analyses made of it do by default. On data drawn from a structural
    causal model, give them `SCMSource.set_factor` instead, by which what depends on it follows.

    Args:
      factors: `[N, K]`.
      k: Which factor, traced or not; below 0 changes nothing if it is traced.
      value: A number, or one for each example, `[N]`; may lie between two integer classes.

    Returns:
      `[N, K]`, float if the value is.

    Examples:
      >>> set_factor(jnp.array([[0, 1], [2, 1]]), 1, 0.5).tolist()
      [[0.0, 0.5], [2.0, 0.5]]
    """
    factors, value = jnp.asarray(factors), jnp.asarray(value)
    return do(factors.astype(jnp.promote_types(factors.dtype, value.dtype)), k, value)


def do_factor(
    render: Render,
    factors: jax.Array,
    k: jax.Array | int,
    value: jax.Array | float,
    *,
    set_factor: SetFactor = set_factor,
) -> jax.Array:
    """The images of examples with one factor set to a value.

    Args:
      render: Maps a factor vector `[K]` to its image `[H, W, C]`.
      factors: `[N, K]`.
      k: Which factor, traced or not.
      value: A number, or one for each example, `[N]`. Need not be a class, if `render` can draw
        what lies between classes.
      set_factor: How; by default all others are held.

    Returns:
      `[N, H, W, C]`.

    Raises:
      ValueError: `factors` or `value` has another shape, or `k` is not traced and out of range.

    Examples:
      >>> bar = lambda g: jnp.zeros((3, 3, 1)).at[:, g[0].astype(int)].set(g[1])
      >>> do_factor(bar, jnp.array([[0, 1], [2, 1]]), 1, 0.5)[:, 0, :, 0]
      Array([[0.5, 0. , 0. ],
             [0. , 0. , 0.5]], dtype=float32)
    """
    return jax.vmap(render)(set_factor(factors, k, value))


@struct.dataclass
class Pairs:
    """Images and the same with one factor changed, whether or not that shows in the image.

    Attributes:
      clean: `[N, H, W, C]`.
      corrupted: `[N, H, W, C]`.
      clean_factors: `[N, K]` int32.
      corrupted_factors: `[N, K]` int32; differ in one factor, and in what follows it if that is how
        it was set (then float).
    """

    clean: jax.Array
    corrupted: jax.Array
    clean_factors: jax.Array
    corrupted_factors: jax.Array


def factor_pairs(
    key: jax.Array,
    render: Render,
    factors: jax.Array,
    sizes: Sequence[int],
    k: int,
    *,
    set_factor: SetFactor = set_factor,
) -> Pairs:
    """Pairs that differ in factor k only, its other class drawn uniformly among all other classes.

    Different classes can look the same: dSprites' last orientation repeats its first, and a square
    looks the same after a quarter of a turn. Such a pair has no total effect to mediate, and
    analyses that skip total effects below a threshold skip and count it.

    Args:
      key: Draws the other classes.
      render: Maps a factor vector `[K]` to its image `[H, W, C]`.
      factors: `[N, K]` integer classes of the clean images.
      sizes: Number of classes of each factor.
      k: Which factor, static.
      set_factor: How it is set; by default all others are held.

    Returns:
      N pairs.

    Raises:
      ValueError: Factor k has a single class, or an argument is not as above.

    Examples:
      >>> bar = lambda g: jnp.zeros((3, 3, 1)).at[:, g[0]].set(1.0)
      >>> pairs = factor_pairs(jax.random.key(0), bar, jnp.zeros((20, 2), int), (3, 5), k=0)
      >>> sorted(set(pairs.corrupted_factors[:, 0].tolist()))
      [1, 2]
    """
    factors = check_factors(factors, len(sizes))
    if not jnp.issubdtype(factors.dtype, jnp.integer):
        raise ValueError(f"expected factors of integer classes, got {factors.dtype}")
    if not 0 <= k < len(sizes):
        raise ValueError(f"expected k from 0 to {len(sizes) - 1}, got {k}")
    if sizes[k] < 2:
        raise ValueError(f"expected factor {k} to have another class, got {sizes[k]} in all")
    factors = factors.astype(jnp.int32)
    steps = jax.random.randint(key, factors.shape[:1], 1, sizes[k])
    corrupted = set_factor(factors, k, (factors[:, k] + steps) % sizes[k])
    return Pairs(jax.vmap(render)(factors), jax.vmap(render)(corrupted), factors, corrupted)


@struct.dataclass
class Lookup:
    """A `render` function over the images of a dataset; pass it to jitted functions as an argument.

    Attributes:
      images: `[M, H, W, C]`, in any order.
      rows: `[M]` int32, the row of each combination of classes, the last factor fastest.
      sizes: Number of classes of each factor; their product is M.
    """

    images: jax.Array
    rows: jax.Array
    sizes: tuple[int, ...] = struct.field(pytree_node=False)

    def __call__(self, factors: jax.Array) -> jax.Array:
        """The image `[H, W, C]` of the classes nearest to `[K]`, clipped to their range."""
        classes = jnp.round(factors).astype(jnp.int32)
        return self.images[self.rows[jnp.ravel_multi_index(tuple(classes), self.sizes, "clip")]]


def lookup(images: Any, factors: Any, sizes: Sequence[int] | None = None) -> Lookup:
    """A `render` function for a dataset that holds every combination of its factors once.

    Not for use inside `jit`.

    Args:
      images: `[M, H, W, C]`; kept as they are, so bring them to [0, 1] first.
      factors: `[M, K]` integer classes of each image.
      sizes: Number of classes of each factor; by default as many as occur.

    Returns:
      The function, from classes `[K]` to an image.

    Raises:
      ValueError: A combination is missing or occurs twice, or an argument is not as above; the
        message names the first such combination.

    Examples:
      >>> render = lookup(jnp.arange(4.0).reshape(4, 1, 1, 1), [[0, 0], [0, 1], [1, 0], [1, 1]])
      >>> render(jnp.array([0.9, 0.2])).item()
      2.0
      >>> lookup(jnp.zeros((3, 1, 1, 1)), [[0, 0], [0, 1], [1, 1]])
      Traceback (most recent call last):
      ValueError: expected every combination of 2 x 2 classes once, (1, 0) is missing
    """
    images, factors = jnp.asarray(images), np.asarray(factors)
    if factors.ndim != 2 or not factors.size or factors.shape[:1] != images.shape[:1]:
        raise ValueError(
            f"expected images [M, H, W, C] and factors [M, K], not empty, "
            f"got shapes {images.shape} and {factors.shape}"
        )
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"expected factors of integer classes, got {factors.dtype}")
    sizes = tuple(map(int, factors.max(axis=0) + 1 if sizes is None else sizes))
    if len(sizes) != factors.shape[1] or (factors < 0).any() or (factors >= sizes).any():
        raise ValueError(
            f"expected classes from 0 to below sizes {sizes}, "
            f"got {factors.min(axis=0).tolist()} to {factors.max(axis=0).tolist()}"
        )
    combinations = np.ravel_multi_index(tuple(factors.T), sizes)
    there, counts = np.unique(combinations, return_counts=True)
    gaps = np.flatnonzero(np.append(there, -1) != np.arange(len(there) + 1))
    problem = None
    if (counts > 1).any():
        problem, wrong = "occurs more than once", there[counts > 1][0]
    elif len(there) < math.prod(sizes):
        problem, wrong = "is missing", gaps[0]
    if problem is not None:
        combination = tuple(int(number) for number in np.unravel_index(wrong, sizes))
        raise ValueError(
            f"expected every combination of {' x '.join(map(str, sizes))} classes once, "
            f"{combination} {problem}"
        )
    return Lookup(images, jnp.asarray(np.argsort(combinations), jnp.int32), sizes)


def check_factors(factors: Any, num_factors: int) -> jax.Array:
    """`factors` as an array `[N, K]`, or a ValueError."""
    factors = jnp.asarray(factors)
    if factors.ndim != 2 or factors.size == 0 or factors.shape[1] != num_factors:
        raise ValueError(
            f"expected factors [N, K] with K = {num_factors}, not empty, got shape {factors.shape}"
        )
    return factors
