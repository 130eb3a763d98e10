"""What the causal metrics share: latents set to values, decoded in chunks, compared with before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.chunking import map_chunks, resolve_chunk


def check_latents(latents: Any) -> jax.Array:
    """`latents` as an array `[N, D]`, or a ValueError."""
    latents = jnp.asarray(latents)
    if latents.ndim != 2 or latents.size == 0:
        raise ValueError(f"expected latents [N, D], not empty, got shape {latents.shape}")
    if not jnp.issubdtype(latents.dtype, jnp.floating):
        raise ValueError(f"expected floating-point latents, got {latents.dtype}")
    return latents


def check_values(values: Any, latents: jax.Array) -> jax.Array:
    """`values` as an array `[D, V]` of the dtype of the latents `[N, D]`, or a ValueError."""
    values = jnp.asarray(values)
    num_latents = latents.shape[1]
    if values.ndim == 0 or values.size == 0 or values.shape[:-1] not in ((), (num_latents,)):
        raise ValueError(
            f"expected values [V] or [D, V] with D = {num_latents}, not empty, "
            f"got shape {values.shape}"
        )
    return jnp.broadcast_to(values.astype(latents.dtype), (num_latents, values.shape[-1]))


def check_active(active: Any, latents: jax.Array) -> jax.Array | None:
    """`active` as an array `[D]` of bool or None, or a ValueError."""
    if active is None:
        return None
    active, num_latents = jnp.asarray(active), latents.shape[1]
    if active.shape != (num_latents,) or active.dtype != jnp.bool_:
        raise ValueError(
            f"expected active of shape ({num_latents},) and dtype bool, "
            f"got {active.shape} and {active.dtype}"
        )
    return active


def check_batch(output: Any, batch: int) -> Any:
    """`output` if all of its arrays are `[batch, ...]`, or a ValueError."""
    for leaf in jax.tree.leaves(output):
        if leaf.shape[:1] != (batch,):
            raise ValueError(
                f"expected outputs [{batch}, ...] of {batch} latents, got {leaf.shape}"
            )
    return output


def even_chunk(chunk: int | None, total: int) -> int:
    """The size of chunks of at most `chunk` that fill up best with `total` examples."""
    num_chunks = -(-total // resolve_chunk(chunk))
    return -(-total // num_chunks)


def at_least_float32(array: jax.Array) -> jax.Array:
    """The array in a dtype to compute in: float64 if it is that, else float32."""
    return array.astype(jnp.float64 if array.dtype == jnp.float64 else jnp.float32)


def exact_change(before: Any, after: Any) -> Any:
    """`after - before` for pytrees of arrays, exactly 0 where they are equal; at least float32.

    XLA may fuse the subtraction into the last multiplication of what computes `after` and round
    once instead of twice, so that equal numbers differ. Equality is tested on the rounded ones.
    """

    def change(old: jax.Array, new: jax.Array) -> jax.Array:
        difference = at_least_float32(new) - at_least_float32(old)
        return jnp.where(new == old, jnp.zeros_like(difference), difference)

    return jax.tree.map(change, before, after)


def l2_norm(tree: Any) -> jax.Array:
    """The norm `[B]` of each example over all arrays `[B, ...]` of a pytree."""
    squares = [jnp.square(x).reshape(len(x), -1).sum(axis=1) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


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
