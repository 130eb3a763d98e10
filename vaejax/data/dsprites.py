"""dSprites, redrawn in JAX: white shapes on black, with five known factors.

The published dataset (google-deepmind/dsprites-dataset, Matthey et al. 2017) holds every
combination of shape, scale, orientation and position once, 737,280 images in all. The sixth
published factor, colour, has a single value and is left out here.

`DSprites` draws the same images from a closed form, on the device. Against 320 genuine frames it is
exact on all 64 squares, on 60 of 64 ellipses and on 180 of 192 hearts, with at most two pixels
wrong in any frame. `vaejax.data.dsprites_genuine` holds the published images themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.data.errors import DataError
from vaejax.data.protocols import Factor

FACTORS = (
    Factor("shape", 3, categorical=True),
    Factor("scale", 6),
    Factor("orientation", 40),
    Factor("x", 32),
    Factor("y", 32),
)
"""The factors in the published order; the last one varies fastest."""

CANVAS = 64
"""Side of the published images, in pixels."""

IMAGE_SIZES = (64, 32)
"""Sides offered. 32 is defined as the mean over 2x2 blocks of the 64x64 image."""

# Outlines at scale 1, in pixels: half side of the square, half axes of the ellipse, and for the
# heart (the curve of sin^3 t against 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) half width, height
# over 16 and vertical offset. Fitted to genuine frames.
_SQUARE = 9.5998
_ELLIPSE = (12.77, 7.215)
_HEART_WIDTH, _HEART_HEIGHT, _HEART_OFFSET = 9.595, 10.595 / 16, 1.435

# No shape reaches further than 13.6 pixels from its centre, half a diagonal of the square, so a
# window of 28 around the nearest pixel corner holds it; and it never leaves the canvas.
_WINDOW = 28


def check_image_size(image_size: int) -> None:
    """Refuses an image size that dSprites does not come in.

    Raises:
      DataError: `image_size` is neither 64 nor 32.
    """
    if image_size not in IMAGE_SIZES:
        raise DataError(f"dsprites: image_size is {image_size!r}, but must be 64 or 32")


def resize(image: jax.Array, image_size: int) -> jax.Array:
    """The `[64, 64, 1]` image at a side of 64 (itself) or 32 (the mean over 2x2 blocks)."""
    if image_size == CANVAS:
        return image
    # Four strided slices vectorise on a CPU; a mean over the reshaped blocks is ten times slower.
    return (image[::2, ::2] + image[::2, 1::2] + image[1::2, ::2] + image[1::2, 1::2]) / 4


def sample_factors(key: jax.Array, n: int, sizes: Sequence[int]) -> jax.Array:
    """Draws `n` factor vectors, each class equally likely: `[n, len(sizes)]` int32.

    The redrawn and the genuine source share this draw, so that one key gives both the same factors.

    >>> sample_factors(jax.random.key(0), 4, (3, 6, 40, 32, 32)).shape
    (4, 5)
    """
    return jax.random.randint(key, (n, len(sizes)), 0, jnp.asarray(sizes, jnp.int32))


@flax.struct.dataclass
class DSprites:
    """Redrawn dSprites: the image of any factor vector, computed from a closed form.

    A pytree without arrays, so it may be a jit argument or be closed over alike. Class `k` of each
    factor means, in pixels of the 64x64 canvas with the origin at its top left corner:

    *   `shape`: 0 square, 1 ellipse, 2 heart.
    *   `scale`: magnification `0.5 + 0.1 k`.
    *   `orientation`: angle `2 pi k / 39` counter-clockwise. Index 39 therefore repeats index 0, in
        the published data as here.
    *   `x`, `y`: centre at `16 + 32 k / 31` from the left and from the top.

    Attributes:
      image_size: Side of the images, 64 or 32. A 32x32 image is by definition the mean over 2x2
        blocks of the 64x64 one.

    Raises:
      DataError: At construction, when `image_size` is neither 64 nor 32.

    Example:
      >>> source = DSprites(image_size=32)
      >>> images, factors = source.batch(jax.random.key(0), 8)
      >>> images.shape, factors.shape
      ((8, 32, 32, 1), (8, 5))
    """

    image_size: int = flax.struct.field(pytree_node=False, default=64)

    def __post_init__(self) -> None:
        check_image_size(self.image_size)

    @property
    def name(self) -> str:
        """`"dsprites"`."""
        return "dsprites"

    @property
    def origin(self) -> str:
        """`"redrawn"`: these are not the published images."""
        return "redrawn"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(image_size, image_size, 1)`."""
        return (self.image_size, self.image_size, 1)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Shape, scale, orientation, x and y."""
        return FACTORS

    def __len__(self) -> int:
        return math.prod(factor.size for factor in FACTORS)

    def render(self, factors: jax.Array) -> jax.Array:
        """Draws the image of one factor vector.

        Values between two classes are drawn as such, except that the shape is rounded. Values
        outside the range of scale, x or y are clipped to it, and orientation has period 39.

        Args:
          factors: `[5]` classes in the order of `factors`, integer or float.

        Returns:
          `[H, W, 1]` float32: 0 or 1 at 64x64, multiples of 1/4 at 32x32.

        Example:
          >>> heart = DSprites().render(jnp.array([2.0, 5.0, 0.0, 15.5, 15.5]))
          >>> int(heart.sum())
          222
        """
        shape, scale, orientation, x, y = jnp.asarray(factors, jnp.float32)
        size = 0.5 + 0.1 * jnp.clip(scale, 0, 5)
        angle = 2 * jnp.pi / 39 * jnp.mod(orientation, 39)
        cos, sin = jnp.cos(angle) / size, jnp.sin(angle) / size
        centre = 16 + 32 / 31 * jnp.clip(jnp.stack([x, y]), 0, 31)

        # Computing only the pixels around the centre is a fifth of the work, and stops the compiler
        # from fusing the drawing into what consumes it, to be repeated for each use.
        corner = jnp.round(centre).astype(jnp.int32) - _WINDOW // 2
        across, down = corner[:, None] + jnp.arange(_WINDOW) + 0.5 - centre[:, None]
        across, down = across[None, :], down[:, None]
        window = _inside(shape, cos * across - sin * down, sin * across + cos * down)

        canvas = jnp.zeros((CANVAS, CANVAS), jnp.float32)
        left, top = corner
        image = jax.lax.dynamic_update_slice(canvas, window.astype(jnp.float32), (top, left))
        return resize(image[..., None], self.image_size)

    def batch(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Draws `n` examples uniformly over all factor combinations.

        Args:
          key: PRNG key.
          n: Number of examples, static under jit.

        Returns:
          Images `[n, H, W, 1]` float32 in [0, 1] and their factors `[n, 5]` int32.
        """
        factors = sample_factors(key, n, [factor.size for factor in FACTORS])
        return jax.vmap(self.render)(factors), factors


def _inside(shape: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """Whether points lie inside a shape: `u` to its right and `v` downwards, at scale 1."""
    square = jnp.maximum(jnp.abs(u), jnp.abs(v)) <= _SQUARE
    ellipse = (u / _ELLIPSE[0]) ** 2 + (v / _ELLIPSE[1]) ** 2 <= 1

    # With p = sin^2 t, hence p^3 = (u / width)^2, the curve's height at a given |u| is
    # even(p) +- odd(p), where odd^2 = (1 - p)(11 + 8 p)^2. The cube root is taken by exp and log,
    # which vectorise where cbrt and pow do not; log 0 = -inf gives the right root, 0.
    p = jnp.exp(2 / 3 * jnp.log(jnp.abs(u) / _HEART_WIDTH))
    height = -(v + _HEART_OFFSET) / _HEART_HEIGHT
    even = -6 + p * (18 - 8 * p)
    heart = (p <= 1) & ((height - even) ** 2 <= (1 - p) * (11 + 8 * p) ** 2)

    return jnp.where(shape < 0.5, square, jnp.where(shape < 1.5, ellipse, heart))
