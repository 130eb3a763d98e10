"""What every dataset offers: named factors, batches, and images drawn for any factor vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax


@dataclasses.dataclass(frozen=True)
class Factor:
    """One ground-truth factor of variation.

    Attributes:
      name: Its name, as in the published dataset (`"scale"`, `"x"`).
      size: Number of classes. Classes are the integers `0 .. size - 1`.
      categorical: True when values between two classes have no meaning (a shape), so that a
        continuous value is rounded to the nearest class.
    """

    name: str
    size: int
    categorical: bool = False


@runtime_checkable
class DataSource(Protocol):
    """Images with their ground-truth factors, drawn at random on the device.

    Sources are pytrees: pass them to jitted functions as arguments, so that the images they hold
    are inputs of the compiled program and not constants inside it.
    """

    @property
    def name(self) -> str:
        """The dataset, e.g. `"dsprites"`."""
        ...

    @property
    def origin(self) -> str:
        """`"genuine"` (the published images), `"redrawn"` (ours, drawn in JAX) or `"own"`."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        ...

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The K factors, in the published order."""
        ...

    def __len__(self) -> int:
        """Number of distinct factor combinations."""
        ...

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly: images `[n, H, W, C]` in [0, 1], factors `[n, K]` int32."""
        ...


@runtime_checkable
class Renderable(DataSource, Protocol):
    """A source that produces the image of any factor vector, hence of any `do(factor = value)`."""

    def render(self, factors: jax.Array) -> jax.Array:
        """The image `[H, W, C]` in [0, 1] of one factor vector `[K]` (float or integer classes)."""
        ...


@runtime_checkable
class Masked(Renderable, Protocol):
    """A source that knows where each object and part of an image is."""

    def masks(self, factors: jax.Array) -> Mapping[str, jax.Array]:
        """For each name the share of every pixel that it covers, `[H, W]` in [0, 1]."""
        ...
