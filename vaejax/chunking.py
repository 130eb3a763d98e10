"""Work on many indices a chunk at a time, so that memory does not grow with their number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vaejax.devices import count, divide, on_each


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


def even_chunk(chunk: int | None, total: int, *, devices: int | None = None) -> int:
    """The size of chunks of at most `chunk` that fill up best with `total` examples.

    Args:
      chunk: As for `resolve_chunk`.
      total: Number of examples.
      devices: Over how many the chunks will be divided; by default over all those of the mesh in
        force, as `map_chunks` does.
    """
    share = -(-total // (count() if devices is None else devices))
    num_chunks = -(-share // resolve_chunk(chunk))
    return -(-share // num_chunks)


def map_chunks(fn: Callable[[jax.Array], Any], total: int, chunk: int) -> Any:
    """`fn` of the indices `0 .. total - 1`, `chunk` at a time, its results stacked.

    `lax.map(batch_size=...)` would vmap `fn` over single indices, and trace and compile it again
    for the remainder. Here the last chunk repeats the last index instead. Under a mesh of devices
    each works through chunks of its own, see `map_items`.

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

    stacked = map_items(one_chunk, jnp.arange(0, total, chunk))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:total], stacked)


def map_items(fn: Callable[[Any], Any], items: Any) -> Any:
    """`lax.map(fn, items)`, divided over the devices of the mesh in force (`vaejax.devices`).

    Each device works through a share of the items, in step with the others where a loop in `fn` has
    no fixed length, and at the end all have all results.

    Args:
      fn: Maps one item to a pytree of arrays `[...]`.
      items: A pytree of arrays `[N, ...]`.

    Returns:
      The pytree with arrays `[N, ...]`.

    Example:
      >>> map_items(lambda x: 2 * x, jnp.arange(3))
      Array([0, 2, 4], dtype=int32)
    """
    total = len(jax.tree.leaves(items)[0])
    if count() == 1 or total == 1:
        return lax.map(fn, items)
    share = -(-total // count())
    # The last shares are filled up with the last item.
    rows = jnp.minimum(jnp.arange(count() * share), total - 1).reshape(count(), share)
    shares = jax.tree.map(lambda leaf: leaf[rows], items)
    results = on_each(functools.partial(lax.map, fn), shares)
    return divide(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:total], results))
