"""The engine of the causal metrics: latents set to values, decoded, compared with before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.changes import exact_change
from vaejax.checks import check_batch
from vaejax.chunking import even_chunk, map_chunks


def map_interventions(
    decode: Callable[[jax.Array], Any],
    latents: jax.Array,
    values: jax.Array,
    measure: Callable[[Any], tuple[Any, Any]],
    chunk: int | None,
) -> tuple[Any, Any, Any]:
    """Measures how `decode` changes under every `do(z_i = v)`, N * D * V of them.

    A chunk of examples is decoded as it is and then under each intervention, by the same loop:
    `decode` is compiled once, and a latent that it ignores gives the very same numbers.

    Args:
      decode: Maps latents `[chunk, D]` to a pytree of arrays `[chunk, ...]`.
      latents: `[N, D]`.
      values: `[D, V]`.
      measure: Maps the `exact_change` of the output, arrays `[chunk, ...]`, to two pytrees of such
        arrays: what to average over values, and what to keep of every intervention. No change must
        measure 0.
      chunk: Examples decoded at once, at most.

    Returns:
      The first measure `[N, D, ...]`, averaged over values; the second `[N, D, V, ...]`; and the
      shape and dtype of the output for one chunk.
    """
    (num_examples, num_latents), num_values = latents.shape, values.shape[1]
    chunk = even_chunk(chunk, num_examples)

    def checked(z: jax.Array) -> tuple[Any, Any]:
        output = check_batch(decode(z), chunk)
        return output, measure(exact_change(output, output))[0]

    output, averaged = jax.eval_shape(checked, latents[:chunk])

    def one_chunk(n: jax.Array) -> tuple[Any, Any]:
        z = latents[n]

        def step(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Any]:
            before, total = carry
            first = index == 0  # no intervention: i = -1
            i, v = (index - 1) // num_values, (index - 1) % num_values
            after = decode(jnp.where(jnp.arange(num_latents) == i, values[i, v], z))
            before = jax.tree.map(lambda new, old: jnp.where(first, new, old), after, before)
            average, each = measure(exact_change(before, after))
            # The first step adds its 0 to the last latent.
            total = jax.tree.map(lambda leaf, new: leaf.at[i].add(new), total, average)
            return (before, total), each

        before = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), output)
        total = jax.tree.map(
            lambda leaf: jnp.zeros((num_latents, *leaf.shape), leaf.dtype), averaged
        )
        steps = jnp.arange(1 + num_latents * num_values)
        (_, total), each = lax.scan(step, (before, total), steps)
        return (
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0) / num_values, total),
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf[1:], 1, 0), each),
        )

    average, each = map_chunks(one_chunk, num_examples, chunk)
    each = jax.tree.map(
        lambda leaf: leaf.reshape(num_examples, num_latents, num_values, *leaf.shape[2:]), each
    )
    return average, each, output
