"""A source of images that were taken of every combination of their factors."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.data.protocols import Factor
from vaejax.data.sizes import CANVAS, check_image_size, resize, sample_factors
from vaejax.data.storage import Storage


@flax.struct.dataclass
class GridSource:
    """Images looked up by factor vector: those of a published dataset that is a complete grid.

    A pytree: pass it to jitted functions as an argument; closed over, images on the device would
    become a constant of the program.

    Attributes:
      images: The N images in the order of the factors, the last one fastest: `[N, 64, 64, C]`
        uint8, or `[N, 512]` uint8 of packed bits (the first pixel in the highest bit) if they are
        black and white.
      name: The dataset.
      factors: The K factors; the product of their sizes is N.
      image_size: Side of the images, 64 or 32. A 32x32 image is by definition the mean over 2x2
        blocks of the stored one.

    Raises:
      DataError: At construction, when `image_size` is neither 64 nor 32.

    Example:
      Two all-black images that differ in the shape factor alone:

      >>> from vaejax.data.storage import OnDevice
      >>> bits = OnDevice(jnp.zeros((2, 512), jnp.uint8))
      >>> source = GridSource(bits, "squares", (Factor("shape", 2),))
      >>> images, factors = jax.jit(lambda s, key: s.batch(key, 8))(source, jax.random.key(0))
      >>> images.shape, factors.shape
      ((8, 64, 64, 1), (8, 1))
    """

    images: Storage
    name: str = flax.struct.field(pytree_node=False)
    factors: tuple[Factor, ...] = flax.struct.field(pytree_node=False)
    image_size: int = flax.struct.field(pytree_node=False, default=CANVAS)

    def __post_init__(self) -> None:
        check_image_size(self.name, self.image_size)

    @property
    def origin(self) -> str:
        """`"genuine"`: these are the published images."""
        return "genuine"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(image_size, image_size, C)`."""
        channels = 1 if len(self.images.shape) == 2 else self.images.shape[3]
        return (self.image_size, self.image_size, channels)

    @property
    def correlated(self) -> bool:
        """`False`: every combination of factors is as likely."""
        return False

    def __len__(self) -> int:
        return math.prod(factor.size for factor in self.factors)

    def decode(self, stored: jax.Array) -> jax.Array:
        """One image as it is stored, `[64, 64, C]` or `[512]` uint8, as `render` returns it."""
        if stored.ndim == 1:
            image = jnp.unpackbits(stored).reshape(CANVAS, CANVAS, 1).astype(jnp.float32)
        else:
            image = stored.astype(jnp.float32) / 255
        return resize(image, self.image_size)

    def rows(self, factors: jax.Array) -> jax.Array:
        """The index of the image of the classes nearest to `[..., K]`, `[...]` int32."""
        classes = jnp.round(jnp.asarray(factors, jnp.float32)).astype(jnp.int32)
        sizes = tuple(factor.size for factor in self.factors)
        return jnp.ravel_multi_index(tuple(jnp.moveaxis(classes, -1, 0)), sizes, mode="clip")

    def render(self, factors: jax.Array) -> jax.Array:
        """Looks up the image of the classes nearest to one factor vector.

        Args:
          factors: `[K]` classes in the order of `factors`, integer or float. Values are rounded to
            a class, and clipped to the range of the factor.

        Returns:
          `[H, W, C]` float32 in [0, 1].
        """
        return self.decode(self.images.take(self.rows(factors)))

    def draw_rows(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """The examples that `batch` draws: indices `[n]` of images, and their factors `[n, K]`."""
        factors = sample_factors(key, n, [factor.size for factor in self.factors])
        return self.rows(factors), factors

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly; one key draws the factors that the redrawn source draws.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, C]` float32 in [0, 1] and their factors `[n, K]` int32.
        """
        rows, factors = self.draw_rows(key, n)
        return jax.vmap(self.decode)(self.images.take(rows)), factors
