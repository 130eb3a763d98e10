"""A source of images that are computed from their factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.data.protocols import Factor
from vaejax.data.sizes import check_image_size, resize, sample_factors


@flax.struct.dataclass
class Redrawn:
    """A benchmark redrawn in JAX: the image of any factor vector, under `jit` and `vmap`.

    A pytree without arrays, so it may be a jit argument or be closed over alike.

    Attributes:
      name: The benchmark.
      factors: Its K factors, in the published order.
      draw: Maps classes `[K]` float32 to the image `[64, 64, C]` in [0, 1].
      segment: Maps the same to what is where: names of objects and parts, each with a bool
        `[64, 64]`. The names do not depend on the factors.
      channels: C.
      image_size: Side of the images, 64 or 32. A 32x32 image is by definition the mean over 2x2
        blocks of the 64x64 one.

    Raises:
      DataError: At construction, when `image_size` is neither 64 nor 32.

    Example:
      >>> from vaejax import data
      >>> source = data.source("dsprites", image_size=32)
      >>> images, factors = source.batch(jax.random.key(0), 8)
      >>> images.shape, factors.shape
      ((8, 32, 32, 1), (8, 5))
      >>> {name: mask.shape for name, mask in source.masks(factors[0]).items()}
      {'object': (32, 32)}
    """

    name: str = flax.struct.field(pytree_node=False)
    factors: tuple[Factor, ...] = flax.struct.field(pytree_node=False)
    draw: Callable[[jax.Array], jax.Array] = flax.struct.field(pytree_node=False)
    segment: Callable[[jax.Array], Mapping[str, jax.Array]] = flax.struct.field(pytree_node=False)
    channels: int = flax.struct.field(pytree_node=False)
    image_size: int = flax.struct.field(pytree_node=False, default=64)

    def __post_init__(self) -> None:
        check_image_size(self.name, self.image_size)

    @property
    def origin(self) -> str:
        """`"redrawn"`: these are not the published images."""
        return "redrawn"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(image_size, image_size, C)`."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def correlated(self) -> bool:
        """`False`: every combination of factors is as likely."""
        return False

    def __len__(self) -> int:
        return math.prod(factor.size for factor in self.factors)

    def render(self, factors: jax.Array) -> jax.Array:
        """Draws the image of one factor vector.

        Values between two classes are drawn as such, except that those of a categorical factor are
        rounded; values outside the range of a factor are clipped to it, unless it is periodic.

        Args:
          factors: `[K]` classes in the order of `factors`, integer or float.

        Returns:
          `[H, W, C]` float32 in [0, 1].
        """
        return resize(self.draw(jnp.asarray(factors, jnp.float32)), self.image_size)

    def masks(self, factors: jax.Array) -> dict[str, jax.Array]:
        """Where each object and part of an image is.

        Args:
          factors: `[K]`, as `render` takes it.

        Returns:
          For each name the share of every pixel that it covers, `[H, W]` float32: 0 or 1 at 64x64,
          multiples of 1/4 at 32x32. What is hidden is not covered, so masks do not overlap.
        """
        found = self.segment(jnp.asarray(factors, jnp.float32))
        return {
            name: resize(mask[..., None].astype(jnp.float32), self.image_size)[..., 0]
            for name, mask in found.items()
        }

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly over all factor combinations.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, C]` float32 in [0, 1] and their factors `[n, K]` int32.
        """
        factors = sample_factors(key, n, [factor.size for factor in self.factors])
        return jax.vmap(self.render)(factors), factors
