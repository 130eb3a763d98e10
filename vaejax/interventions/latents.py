"""Latent perturbation: `z~ = z | do(z_i = v)` and what pairs of latents do that neither does alone.

Marks as in `vaejax.metrics`: [P] stated by the papers' abstracts or by a published review of them,
[R] our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from vaejax.changes import at_least_float32
from vaejax.checks import check_batch, check_index, check_latents, check_values
from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import Estimate, bootstrap_mean


def do(z: jax.Array, i: jax.Array | int, value: jax.Array | float) -> jax.Array:
    """Sets one latent of each example to a value, and leaves the others [P].

    Args:
      z: `[B, D]`.
      i: Which latent: a number, traced or not, or one for each example, `[B]`. A traced one out of
        range changes nothing.
      value: A number, or one for each example, `[B]`; converted to the dtype of `z`.

    Returns:
      `[B, D]`, of the dtype of `z`.

    Raises:
      ValueError: `z`, `i` or `value` has another shape, or `i` is not traced and out of range.

    Examples:
      >>> do(jnp.zeros((2, 3)), 1, jnp.array([5.0, 7.0]))
      Array([[0., 5., 0.],
             [0., 7., 0.]], dtype=float32)
    """
    z, target = _target(z, i)
    return jnp.where(target, _column("value", value, z), z)


def shift(z: jax.Array, i: jax.Array | int, delta: jax.Array | float) -> jax.Array:
    """Adds to one latent of each example, and leaves the others [P]; arguments as `do`.

    Examples:
      >>> shift(jnp.ones((2, 2)), jnp.array([0, 1]), 0.5)
      Array([[1.5, 1. ],
             [1. , 1.5]], dtype=float32)
    """
    z, target = _target(z, i)
    return jnp.where(target, z + _column("delta", delta, z), z)


def quantile_grid(samples: jax.Array, quantiles: Any) -> jax.Array:
    """Values to set each latent to: the quantiles of its aggregate posterior [R].

    Args:
      samples: `[M, D]` draws `z ~ q(z|x)`, x over the data.
      quantiles: `[V]` in [0, 1].

    Returns:
      `[D, V]`, interpolated linearly between draws.

    Raises:
      ValueError: A shape is not the one above.

    Examples:
      >>> quantile_grid(jnp.arange(101.0)[:, None], (0.25, 0.5, 0.75))
      Array([[25., 50., 75.]], dtype=float32)
    """
    samples, quantiles = jnp.asarray(samples), jnp.asarray(quantiles)
    if samples.ndim != 2 or samples.size == 0 or quantiles.ndim != 1:
        raise ValueError(
            f"expected samples [M, D], not empty, and quantiles [V], "
            f"got shapes {samples.shape} and {quantiles.shape}"
        )
    samples = at_least_float32(samples)
    values = jnp.quantile(samples, quantiles.astype(samples.dtype), axis=0)
    # Interpolating between equal numbers rounds; a constant's quantiles must be that constant.
    return jnp.clip(values, samples.min(axis=0), samples.max(axis=0)).T


@struct.dataclass
class Interactions:
    """What pairs of latents do together. All matrices are symmetric, their diagonal NaN.

    Attributes:
      effect: `[D, D]` mean L2 norm of the interaction.
      joint: `[D, D]` mean L2 norm of the joint effect, of setting both latents.
      share: `[D, D]` `effect / joint`: 0 for a pair that adds up; NaN for two dead latents. It has
        no upper bound, since single effects may cancel each other.
    """

    effect: Estimate
    joint: Estimate
    share: Estimate


def interactions(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    values: jax.Array,
    *,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Interactions:
    """How far the effects of two latents are from adding up, for every pair [R].

        effect_ij = mean_n mean_v || D(z | do i, j) - D(z | do i) - D(z | do j) + D(z) ||_2
        joint_ij  = mean_n mean_v || D(z | do i, j) - D(z) ||_2

    with `do i` short for `do(z_i = values[i, v])`: the two latents take their v-th values together.
    The effect is 0 when `D(z) = f(z_i) + g(z_j)` in all outputs: exactly if either latent is dead,
    else up to the rounding of four outputs (in float32 some `1e-6` of their norm).

    Pure JAX, as `ces`: works inside `jit`, and `decode` must treat the rows of its batch
    independently. All `1 + D + D (D - 1) / 2` outputs of a chunk are in memory together.

    Args:
      decode: Maps latents `[chunk, D]` to decoded means `[chunk, ...]`.
      latents: `[N, D]` floating point, usually posterior means.
      values: `[V]` for all latents alike, or `[D, V]` with a row for each, see `quantile_grid`.
      chunk: Examples decoded at once; by default 16 on a CPU and 512 on an accelerator.
      key: Draws the resamples of the 95% intervals; `jax.random.key(0)` by default.

    Returns:
      An `Interactions`, with bootstrap intervals over examples.

    Raises:
      ValueError: A shape or dtype is not the one above, or D is 1.

    Examples:
      A product of two latents, plus a third: `(1 - 0) * (1 - 0)` is all interaction.

      >>> result = interactions(
      ...     lambda z: z[:, :1] * z[:, 1:2] + z[:, 2:], jnp.zeros((4, 3)), jnp.array([1.0])
      ... )
      >>> result.effect.value
      Array([[nan,  1.,  0.],
             [ 1., nan,  0.],
             [ 0.,  0., nan]], dtype=float32)
    """
    latents = check_latents(latents)
    values = check_values(values, latents)
    n, d = latents.shape
    if d < 2:
        raise ValueError("expected at least 2 latents to interact, got 1")
    chunk = even_chunk(chunk, n)
    first, second = jnp.triu_indices(d, 1)
    alone = jnp.eye(d, dtype=bool)
    # Which latents each run sets: none, each, each pair. One loop runs them all, so that runs that
    # should agree do so to the last bit.
    runs = jnp.concatenate([jnp.zeros((1, d), bool), alone, alone[first] | alone[second]])

    def measure(z: jax.Array, settings: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = lax.map(lambda run: check_batch(decode(jnp.where(run, settings, z)), chunk), runs)
        outputs = at_least_float32(outputs).reshape(len(runs), chunk, -1)
        clean, single, joint = outputs[0], outputs[1 : d + 1], outputs[d + 1 :]
        interaction = (joint - single[first]) - (single[second] - clean)
        return jnp.linalg.norm(interaction, axis=-1), jnp.linalg.norm(joint - clean, axis=-1)

    def one_chunk(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        norms = lax.map(lambda settings: measure(latents[rows], settings), values.T)
        return jax.tree.map(lambda norm: norm.mean(axis=0).T, norms)  # [V, P, chunk]

    per_example = map_chunks(one_chunk, n, chunk)

    def summarise(means: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        effect, joint = means
        numbers = {"effect": effect, "joint": joint, "share": effect / joint}
        empty = jnp.full((d, d), jnp.nan, effect.dtype)
        return {
            name: empty.at[first, second].set(pairs).at[second, first].set(pairs)
            for name, pairs in numbers.items()
        }

    value = summarise(jax.tree.map(lambda norm: norm.mean(axis=0), per_example))
    low, high = bootstrap_mean(summarise, per_example, key=key)
    return Interactions(**{name: Estimate(value[name], low[name], high[name]) for name in value})


def _target(z: jax.Array, i: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """`z` as an array, and where it is latent `i`: `[B, D]` or `[1, D]`."""
    z = jnp.asarray(z)
    if z.ndim != 2:
        raise ValueError(f"expected z [B, D], got shape {z.shape}")
    check_index("i", i, z.shape[1])
    return z, jnp.arange(z.shape[1]) == _column("i", i, z, dtype=jnp.int32)


def _column(name: str, given: Any, z: jax.Array, dtype: Any = None) -> jax.Array:
    """A number or `[B]` as a column to broadcast over `z`."""
    column = jnp.asarray(given, z.dtype if dtype is None else dtype)
    if column.shape not in ((), z.shape[:1]):
        raise ValueError(
            f"expected {name} to be a number or [B] with B = {len(z)}, got shape {column.shape}"
        )
    return column[..., None]
