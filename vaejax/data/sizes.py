"""What all sources share: the sizes of images, and how factors are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vaejax.data.errors import DataError

CANVAS = 64
"""Side of the images as they are drawn and published (or brought to), in pixels."""


def check_image_size(name: str, image_size: int) -> None:
    """Refuses an image size that datasets do not come in.

    Raises:
      DataError: `image_size` is neither 64 nor 32.
    """
    if image_size not in (64, 32):
        raise DataError(f"{name}: image_size is {image_size!r}, but must be 64 or 32")


def resize(image: jax.Array, image_size: int) -> jax.Array:
    """The `[64, 64, C]` image at a side of 64 (itself) or 32 (the mean over 2x2 blocks)."""
    if image_size == CANVAS:
        return image
    # Four strided slices vectorise on a CPU; a mean over the reshaped blocks is ten times slower.
    return (image[::2, ::2] + image[::2, 1::2] + image[1::2, ::2] + image[1::2, 1::2]) / 4


def sample_factors(key: jax.Array, n: int, sizes: Sequence[int]) -> jax.Array:
    """Draws `n` factor vectors, each class equally likely: `[n, len(sizes)]` int32.

    Redrawn and genuine sources share this draw, so that one key gives both the same factors.

    >>> sample_factors(jax.random.key(0), 4, (3, 6, 40, 32, 32)).shape
    (4, 5)
    """
    return jax.random.randint(key, (n, len(sizes)), 0, jnp.asarray(sizes, jnp.int32))
