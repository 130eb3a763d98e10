"""What input manipulation does to latents, activations or outputs: factors by units.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.changes import at_least_float32, exact_change
from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions.inputs import Render, SetFactor, check_factors, do_factor, set_factor

Setting = tuple[jax.Array, jax.Array]


@struct.dataclass
class FactorEffects:
    """How far each factor moves each unit of something computed from images.

    Attributes:
      mean: Mean over examples with its 95% bootstrap interval; its `value`, `low` and `high` each
        have the structure of what `encode` returns, with arrays `[K, C]`.
      per_example: The same before the mean, arrays `[N, K, C]`.
    """

    mean: Estimate
    per_example: Any


def factor_effects(
    encode: Callable[[jax.Array], Any],
    render: Render,
    factors: jax.Array,
    values: Sequence[Any],
    *,
    set_factor: SetFactor = set_factor,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> FactorEffects:
    """The effect of every factor on every unit: latents, activations or outputs [R].

        E[k, c] = mean_n mean_{v != g_nk} pool |A_c(x_n | do(g_k = v)) - A_c(x_n)|

    `pool` is the mean over all axes between the first and the last, so that a unit of a feature map
    is a channel. An example's own value is no intervention and left out: otherwise a factor of few
    classes would seem to have less effect. A factor without any other value has effect 0, as has a
    value that gives the same image: exactly, not up to rounding.

    Pure JAX: works inside `jit`; wrap it in one with parameters and images as arguments. Images are
    drawn and encoded `chunk` at a time; memory holds the result `[N, K, C]` of each array and the
    outputs of two chunks. `encode` must treat the rows of its batch independently.

    Args:
      encode: Maps images `[chunk, H, W, C]` to a pytree of arrays `[chunk, ..., C]`.
      render: Maps a factor vector `[K]` to its image `[H, W, C]`.
      factors: `[N, K]` of the unchanged images.
      values: For each of the K factors a 1-d array of values to set it to, of any lengths.
      set_factor: How a factor is set; by default all others are held.
      chunk: Examples at once; by default 16 on a CPU and 512 on an accelerator.
      key: Draws the resamples of the intervals; `jax.random.key(0)` by default.

    Returns:
      A `FactorEffects`.

    Raises:
      ValueError: A shape is not the one above.

    Examples:
      >>> render = lambda g: g[None, None, :].astype(float)
      >>> effects = factor_effects(
      ...     lambda x: 3 * x, render, jnp.zeros((4, 2), int), ([0, 1, 2], [0])
      ... )
      >>> effects.mean.value
      Array([[4.5, 0. ],
             [0. , 0. ]], dtype=float32)
    """
    factors = check_factors(factors, len(values))
    values = [jnp.asarray(row) for row in values]
    if any(row.ndim != 1 or row.size == 0 for row in values):
        raise ValueError(
            f"expected values [V] for each factor, not empty, "
            f"got shapes {', '.join(str(row.shape) for row in values)}"
        )
    num_examples, num_factors = factors.shape
    chunk = even_chunk(chunk, num_examples)
    run = _runner(encode, render, set_factor, chunk)

    def one_chunk(rows: jax.Array) -> Any:
        own = factors[rows]

        def step(carry: tuple[Any, Any], setting: Setting) -> tuple[Any, None]:
            before, sums = carry
            k, _ = setting
            after = run(own, setting)
            before = jax.tree.map(lambda old, new: jnp.where(k < 0, new, old), before, after)
            change = jax.tree.map(_pooled_distance, before, after)
            # The first run adds its 0 to the last factor.
            return (before, jax.tree.map(lambda s, c: s.at[:, k].add(c), sums, change)), None

        settings = _settings(values)
        output = jax.eval_shape(run, own, jax.tree.map(lambda leaf: leaf[0], settings))
        before = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), output)
        sums = jax.tree.map(
            lambda leaf: jnp.zeros(
                (chunk, num_factors, leaf.shape[-1]), jnp.promote_types(leaf, jnp.float32)
            ),
            output,
        )
        (_, sums), _ = lax.scan(step, (before, sums), settings)
        others = [(own[:, k, None] != row).sum(axis=1) for k, row in enumerate(values)]
        count = jnp.maximum(jnp.stack(others, axis=1), 1)[..., None]
        return jax.tree.map(lambda leaf: leaf / count, sums)

    per_example = map_chunks(one_chunk, num_examples, chunk)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), per_example)
    interval = bootstrap_mean(lambda means: means, per_example, key=key)
    return FactorEffects(Estimate(mean, *interval), per_example)


def factor_changes(
    encode: Callable[[jax.Array], Any],
    render: Render,
    factors: jax.Array,
    values: Any,
    *,
    set_factor: SetFactor = set_factor,
    chunk: int | None = None,
) -> Any:
    """Every signed change, `A(x_n | do(g_k = v)) - A(x_n)`: exactly 0 where images are the same.

    For what `factor_effects` is too short for, such as `metrics.encoder_modularity`. Nothing is
    pooled, so it takes N * K * V outputs of memory.

    Args:
      encode: Maps images `[chunk, H, W, C]` to a pytree of arrays `[chunk, ...]`.
      render: Maps a factor vector `[K]` to its image `[H, W, C]`.
      factors: `[N, K]` of the unchanged images.
      values: `[K, V]`, as many for each factor.
      set_factor: How a factor is set; by default all others are held.
      chunk: Examples at once, see `factor_effects`.

    Returns:
      The structure of what `encode` returns, with arrays `[N, K, V, ...]`.

    Raises:
      ValueError: A shape is not the one above.

    Examples:
      >>> render = lambda g: g[None, None, :].astype(float)
      >>> changes = factor_changes(
      ...     lambda x: -x[:, 0, 0], render, jnp.zeros((4, 2), int), jnp.array([[1, 2], [5, 0]])
      ... )
      >>> changes[0].tolist()
      [[[-1.0, 0.0], [-2.0, 0.0]], [[0.0, -5.0], [0.0, 0.0]]]
    """
    values = jnp.asarray(values)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected values [K, V], not empty, got shape {values.shape}")
    factors = check_factors(factors, len(values))
    chunk = even_chunk(chunk, len(factors))
    run = _runner(encode, render, set_factor, chunk)

    def one_chunk(rows: jax.Array) -> Any:
        def change(runs: jax.Array) -> jax.Array:
            runs = at_least_float32(runs)
            changes = (runs[1:] - runs[0]).reshape(*values.shape, *runs.shape[1:])
            return jnp.moveaxis(changes, 2, 0)

        return jax.tree.map(change, lax.map(lambda s: run(factors[rows], s), _settings(values)))

    return map_chunks(one_chunk, len(factors), chunk)


def _settings(values: Sequence[jax.Array]) -> Setting:
    """Which factor to set to which value, one run after another.

    The first changes nothing (k = -1): what the others are compared with comes out of the same
    loop as they do, so that equal images are encoded to equal numbers.
    """
    targets = np.repeat(np.arange(-1, len(values)), [1, *(len(row) for row in values)])
    return jnp.asarray(targets), jnp.concatenate([values[0][:1], *values])


def _runner(
    encode: Callable[[jax.Array], Any], render: Render, set_factor: SetFactor, chunk: int
) -> Callable[[jax.Array, Setting], Any]:
    """From factors `[chunk, K]` and one setting to the encoded images."""

    def run(factors: jax.Array, setting: Setting) -> Any:
        output = encode(do_factor(render, factors, *setting, set_factor=set_factor))
        for leaf in jax.tree.leaves(output):
            if leaf.ndim < 2 or leaf.shape[0] != chunk:
                raise ValueError(f"expected encode to return [{chunk}, ..., C], got {leaf.shape}")
        return output

    return run


def _pooled_distance(before: jax.Array, after: jax.Array) -> jax.Array:
    """`|after - before|` `[B, ..., C]`, averaged to `[B, C]`."""
    distance = jnp.abs(exact_change(before, after))
    return distance.mean(axis=range(1, distance.ndim - 1))
