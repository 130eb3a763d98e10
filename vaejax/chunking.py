"""Work on many indices a chunk at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def resolve_chunk(chunk: int | None) -> int:
    """The number of examples to run at once.

    By default 16 on a CPU, where that keeps a convolutional network's intermediates in cache, and
    512 on an accelerator, which wants hundreds.

    Raises:
      ValueError: `chunk` is below 1.
    """
    if chunk is None:
        return 16 if jax.default_backend() == "cpu" else 512
    if chunk < 1:
        raise ValueError(f"expected chunk >= 1, got {chunk}")
    return chunk


def even_chunk(chunk: int | None, total: int) -> int:
    """The size of chunks of at most `chunk` that fill up best with `total` examples."""
    num_chunks = -(-total // resolve_chunk(chunk))
    return -(-total // num_chunks)


def map_chunks(fn: Callable[[jax.Array], Any], total: int, chunk: int) -> Any:
    """`fn` of the indices `0 .. total - 1`, `chunk` at a time, its results stacked.

    `lax.map(batch_size=...)` would vmap `fn` over single indices, and trace and compile it again
    for the remainder. Here the last chunk repeats the last index instead.

    Args:
      fn: Maps indices `[chunk]` int32 to a pytree of arrays `[chunk, ...]`.
      total: Number of indices, at least 1.
      chunk: How many to give to `fn` at once; it is given exactly that many.

    Returns:
      The pytree with arrays `[total, ...]`.

    Example:
      >>> map_chunks(lambda i: i * i, total=5, chunk=2)
      Array([ 0,  1,  4,  9, 16], dtype=int32)
    """

    def one_chunk(start: jax.Array) -> Any:
        return fn(jnp.minimum(start + jnp.arange(chunk), total - 1))

    stacked = lax.map(one_chunk, jnp.arange(0, total, chunk))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:total], stacked)
