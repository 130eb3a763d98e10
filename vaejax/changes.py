"""How far an output is from another, exactly zero where they are equal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


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
