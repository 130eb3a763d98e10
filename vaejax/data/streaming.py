"""Feeding training from the host, for images that do not fit on the device.

The rows of every step follow from the run's key alone, so they can be gathered before the step is
reached: while a program trains on one window of steps, a thread gathers the next and sends it to
the device. The images are those that `source.batch` would draw, to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.protocols import DataSource
from vaejax.data.storage import OnHost

WINDOW_BYTES = 64 << 20
"""Size of a window. Three exist at most: in use, ready, and being gathered."""


class Streamed(DataSource, Protocol):
    """A source whose images stay on the host."""

    @property
    def images(self) -> OnHost:
        """The images as they are stored."""
        ...

    def draw_rows(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """The examples that `batch` draws: indices `[n]` of images, and their factors `[n, K]`."""
        ...

    def decode(self, stored: jax.Array) -> jax.Array:
        """One stored image as `batch` gives it."""
        ...


class Window(NamedTuple):
    """Consecutive steps of training and what they are fed.

    Attributes:
      first: The first step.
      stop: The step after the last.
      stored: Images as they are stored, `[R, stop - first, n, ...]`; None if the source draws its
        batches on the device.
    """

    first: int
    stop: int
    stored: jax.Array | None


def is_streamed(source: DataSource) -> TypeGuard[Streamed]:
    """Whether training on this source is fed from the host."""
    return isinstance(getattr(source, "images", None), OnHost)


def windows(
    source: DataSource, keys: jax.Array, n: int, *, start: int, steps: int, chunk: int
) -> Iterator[Window]:
    """Divides training into windows, none of which reaches over the end of a chunk.

    Args:
      source: Where images are drawn.
      keys: Of the runs, `[R]`; step t draws with `step_keys(key, t)[0]`.
      n: Images of one step.
      start: The first step.
      steps: The step to stop at.
      chunk: Steps of a chunk, counted from `start`.

    Yields:
      The windows in their order: one for each chunk if the source draws on the device, else as
      many as keep within `WINDOW_BYTES`, of which one is prepared ahead.
    """
    longest = chunk
    if is_streamed(source):
        bytes_per_step = len(keys) * n * int(np.prod(source.images.shape[1:]))
        longest = max(1, WINDOW_BYTES // (bytes_per_step * source.images.dtype.itemsize))
    spans = [
        span
        for first in range(start, steps, chunk)
        for span in _divided(first, min(first + chunk, steps), longest)
    ]
    if not is_streamed(source):
        yield from (Window(first, stop, None) for first, stop in spans)
        return

    def gather(span: tuple[int, int]) -> Window:
        first, stop = span
        rows = np.asarray(_rows(source, keys, first, stop - first, n))
        return Window(first, stop, jax.device_put(source.images.array[rows]))

    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(gather, span) for span in spans[:1]]
        for span in [*spans[1:], None]:
            ready = ahead.pop().result()
            if span is not None:
                ahead.append(pool.submit(gather, span))
            yield ready


def _divided(first: int, stop: int, longest: int) -> list[tuple[int, int]]:
    """A range in as few parts as possible, of equal length but for the last."""
    parts = -(-(stop - first) // longest)
    length = -(-(stop - first) // parts)
    return [(begin, min(begin + length, stop)) for begin in range(first, stop, length)]


@functools.partial(jax.jit, static_argnames=("steps", "n"))
def _rows(source: Any, keys: jax.Array, first: jax.Array, steps: int, n: int) -> jax.Array:
    """Indices `[R, steps, n]` of what each run draws at each step."""

    def of_step(key: jax.Array, step: jax.Array) -> jax.Array:
        return source.draw_rows(step_keys(key, step)[0], n)[0]

    of_steps = jax.vmap(of_step, (None, 0))
    return jax.vmap(of_steps, (0, None))(keys, first + jnp.arange(steps))


def step_keys(key: jax.Array, step: jax.Array) -> jax.Array:
    """The two keys of one step of a run: what draws its images, and what its loss draws with."""
    return jax.random.split(jax.random.fold_in(key, step))
