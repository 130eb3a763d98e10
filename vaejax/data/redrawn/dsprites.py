"""dSprites, redrawn in JAX: white shapes on black, with five known factors.

The published dataset (google-deepmind/dsprites-dataset, Matthey et al. 2017) holds every
combination of shape, scale, orientation and position once, 737,280 images in all. The sixth
published factor, colour, has a single value and is left out here.

Here the same images come from a closed form. Against 320 genuine frames it is exact on all 64
squares, on 60 of 64 ellipses and on 180 of 192 hearts, with at most two pixels wrong in any frame.
`vaejax.data.genuine.dsprites` reads the published images themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vaejax.data.protocols import Factor
from vaejax.data.sizes import CANVAS

FACTORS = (
    Factor("shape", 3, categorical=True),
    Factor("scale", 6),
    Factor("orientation", 40),
    Factor("x", 32),
    Factor("y", 32),
)
"""The factors in the published order; the last one varies fastest."""

CHANNELS = 1

# Outlines at scale 1, in pixels: half side of the square, half axes of the ellipse, and for the
# heart (the curve of sin^3 t against 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) half width, height
# over 16 and vertical offset. Fitted to genuine frames.
_SQUARE = 9.5998
_ELLIPSE = (12.77, 7.215)
_HEART_WIDTH, _HEART_HEIGHT, _HEART_OFFSET = 9.595, 10.595 / 16, 1.435

# No shape reaches further than 13.6 pixels from its centre, half a diagonal of the square, so a
# window of 28 around the nearest pixel corner holds it; and it never leaves the canvas.
_WINDOW = 28


def draw(factors: jax.Array) -> jax.Array:
    """The image `[64, 64, 1]` of classes `[5]`: 0 or 1.

    Class `k` of each factor means, in pixels with the origin at the top left corner:

    *   `shape`: 0 square, 1 ellipse, 2 heart.
    *   `scale`: magnification `0.5 + 0.1 k`.
    *   `orientation`: angle `2 pi k / 39` counter-clockwise, with period 39. Index 39 therefore
        repeats index 0, in the published data as here.
    *   `x`, `y`: centre at `16 + 32 k / 31` from the left and from the top.

    >>> int(draw(jnp.array([2.0, 5.0, 0.0, 15.5, 15.5])).sum())
    222
    """
    shape, scale, orientation, x, y = factors
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
    return image[..., None]


def segment(factors: jax.Array) -> dict[str, jax.Array]:
    """Where the shape is, `{"object": [64, 64]}`."""
    return {"object": draw(factors)[..., 0] > 0}


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
