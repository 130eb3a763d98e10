"""The published dSprites images, held on the device as packed bits."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.data.dsprites import CANVAS, FACTORS, check_image_size, resize, sample_factors
from vaejax.data.dsprites_readers import find, read
from vaejax.data.protocols import Factor


@flax.struct.dataclass
class GenuineDSprites:
    """Genuine dSprites: the published images, looked up by factor vector.

    A pytree with one array leaf, 377 MB for the published 737,280 images. Pass it to jitted
    functions as an argument; closed over, the images would become a constant of the program.

    Attributes:
      bits: `[N, 512]` uint8, one packed 64x64 image a row (first pixel in the highest bit), in the
        order of the factors with the last one fastest.
      sizes: Number of classes of shape, scale, orientation, x and y; their product is `N`.
      image_size: Side of the images, 64 or 32. A 32x32 image is by definition the mean over 2x2
        blocks of the published 64x64 one.

    Raises:
      DataError: At construction, when `image_size` is neither 64 nor 32.

    Example:
      Two all-black images that differ in the shape factor alone:

      >>> bits = jnp.zeros((2, 512), jnp.uint8)
      >>> source = GenuineDSprites(bits, sizes=(2, 1, 1, 1, 1))
      >>> images, factors = jax.jit(lambda s, key: s.batch(key, 8))(source, jax.random.key(0))
      >>> images.shape, factors.shape
      ((8, 64, 64, 1), (8, 5))
    """

    bits: jax.Array
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)
    image_size: int = flax.struct.field(pytree_node=False, default=CANVAS)

    def __post_init__(self) -> None:
        check_image_size(self.image_size)

    @property
    def name(self) -> str:
        """`"dsprites"`."""
        return "dsprites"

    @property
    def origin(self) -> str:
        """`"genuine"`: these are the published images."""
        return "genuine"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(image_size, image_size, 1)`."""
        return (self.image_size, self.image_size, 1)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Shape, scale, orientation, x and y, with the sizes found in the file."""
        pairs = zip(FACTORS, self.sizes, strict=True)
        return tuple(dataclasses.replace(factor, size=size) for factor, size in pairs)

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def render(self, factors: jax.Array) -> jax.Array:
        """Looks up the image of the classes nearest to one factor vector.

        Args:
          factors: `[5]` classes in the order of `factors`, integer or float. Values are rounded to
            a class, and clipped to the range of the factor.

        Returns:
          `[H, W, 1]` float32: 0 or 1 at 64x64, multiples of 1/4 at 32x32.
        """
        classes = jnp.round(jnp.asarray(factors, jnp.float32)).astype(jnp.int32)
        index = jnp.ravel_multi_index(tuple(classes), self.sizes, mode="clip")
        image = jnp.unpackbits(self.bits[index]).reshape(CANVAS, CANVAS, 1)
        return resize(image.astype(jnp.float32), self.image_size)

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly; one key draws the factors that `DSprites` draws.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, 1]` float32 in [0, 1] and their factors `[n, 5]` int32.
        """
        factors = sample_factors(key, n, self.sizes)
        return jax.vmap(self.render)(factors), factors


def load_genuine(root: str | os.PathLike[str], image_size: int = CANVAS) -> GenuineDSprites:
    """Loads published dSprites data from disk.

    Args:
      root: A published `.npz` or `.hdf5` file, or a directory that holds one (directly or in
        `dsprites/`), or a directory of data prepared by tensorflow-datasets.
      image_size: 64 or 32.

    Returns:
      The source, with its images in the order of their factors whatever their order in the file.

    Raises:
      DataError: Nothing is found, the data are damaged or not in the published format, or
        `image_size` is neither 64 nor 32.

    Example:
      >>> load_genuine("no/such/directory")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      vaejax.data.errors.DataError: no/such/directory: no genuine dSprites found; ...
    """
    check_image_size(image_size)
    bits, sizes = read(find(Path(root).expanduser()))
    # device_put takes one copy fewer than jnp.asarray, of 377 MB.
    return GenuineDSprites(jax.device_put(bits), sizes, image_size)
