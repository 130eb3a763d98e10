"""MPI3D (toy look), redrawn in JAX: an object at the tip of a robot arm, with seven known factors.

The published dataset (rr-learning/disentanglement_dataset, Gondal et al. 2019) holds every
combination of its factors once, 1,036,800 images in all. These are look-alikes, not its images:
positions, sizes, colours and the light were fitted to the 140 frames of the published animation of
the toy images, in which each factor in turn runs through its classes.

Over these frames the mean absolute error is .0048 in units of [0, 1], over the 14% of their pixels
that are not plain backdrop in both .0253, and 1.27% of the pixels are off by more than 0.1 in some
channel: three in five of them on the arm and its base, which are drawn as a disc and four plain
capsules, and one in four along the object's outline. Left out are also the dithering and, at the
left end of the ring, the start of its next colour, three pixels. Over uniform factors the channel
means are .2230 .2202 .2246, the published ones .2244 .2214 .2263.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.protocols import Factor
from vaejax.data.redrawn.mpi3d_parts import (
    Layer,
    Plane,
    disc_of,
    draw_arm,
    draw_disc,
    draw_object,
    draw_ring,
    find_spots,
    object_of,
    ring_of,
    set_up,
    strips_of,
)
from vaejax.data.sizes import CANVAS

FACTORS = (
    Factor("object_color", 6, categorical=True),
    Factor("object_shape", 6, categorical=True),
    Factor("object_size", 2),
    Factor("camera_height", 3),
    Factor("background_color", 3, categorical=True),
    Factor("horizontal_axis", 40),
    Factor("vertical_axis", 40),
)
"""The factors in the published order; the last one varies fastest."""

CHANNELS = 3

# Fitted, as are the numbers in mpi3d_parts.
_RING_COLORS = np.array(
    [[0.403, 0.303, 0.575], [0.2865, 0.396, 0.379], [0.4335, 0.308, 0.344]], np.float32
)
_COLORS = np.array(
    [
        [0.949, 0.950, 0.948],
        [0.167, 0.648, 0.164],
        [0.886, 0.0, 0.0],
        [0.170, 0.444, 0.882],
        [0.345, 0.2145, 0.143],
        [0.5105, 0.5045, 0.210],
    ],
    np.float32,
)

_BACKDROP = 0.2045

# Rows and columns of the windows that hold the ring, the arm with its base, and the object.
_RING_WINDOW = (28, CANVAS)
_ARM_WINDOW = (48, 32)
_OBJECT_WINDOW = (24, 24)
_PARTS = ("background", "arc", "base", "arm", "object")


_NOTHING = Layer(np.float32(0), np.float32(0))


class Layers(NamedTuple):
    """All that there is in front of the backdrop, and whether the thing is in front of the arm."""

    ring: Layer
    base: Layer
    arm: Layer
    thing: Layer
    front: jax.Array


@jax.jit
def draw(factors: jax.Array) -> jax.Array:
    """The image `[64, 64, 3]` of classes `[7]`, in [0, 1].

    *   `object_color`: white, green, red, blue, brown, olive.
    *   `object_shape`: cone, cube, cylinder, hexagonal prism, pyramid, sphere.
    *   `object_size`: magnification 0.683 and 1, about the object's centre.
    *   `camera_height`: looks down by 52, 39 and 22 degrees, from a little to either side.
    *   `background_color`: of the ring on the floor; purple, sea green, salmon.
    *   `horizontal_axis`: tilt of the arm from -90 to 90 degrees against the vertical.
    *   `vertical_axis`: turn of the column and all on it by 180 degrees, clockwise from above.

    >>> image = draw(jnp.array([3.0, 4.0, 1.0, 1.0, 1.0, 22.0, 21.0]))
    >>> [round(float(value), 2) for value in image[10, 32]]
    [0.16, 0.41, 0.82]
    """

    def planes(seen: Layers) -> tuple[Plane, ...]:
        robot, thing = seen.base.below(seen.arm), seen.thing
        over = jnp.where(seen.front, 1 - thing.cover, 1.0)
        under = jnp.where(seen.front, 1.0, 1 - robot.cover)
        rest = (1 - thing.cover) * (1 - robot.cover)
        grey = _BACKDROP * (1 - seen.ring.cover) * rest + robot.light * over
        return grey, seen.ring.light * rest, thing.light * under

    grey, ring, thing = _painted(factors, planes, (_BACKDROP, 0.0, 0.0))
    ring_color = jnp.asarray(_RING_COLORS)[_category(factors, 4)]
    color = jnp.asarray(_COLORS)[_category(factors, 0)]
    return grey[..., None] + ring[..., None] * ring_color + thing[..., None] * color


@jax.jit
def segment(factors: jax.Array) -> dict[str, jax.Array]:
    """Where the background, the arc, the base, the arm and the object are, bool `[64, 64]` each.

    Every pixel belongs to exactly one: to the foremost that covers more than half of it. The arc is
    the ring on the floor, and the arm includes the column that carries it.
    """

    def planes(seen: Layers) -> tuple[Plane, ...]:
        ring, base, arm, thing = (
            jnp.where(layer.cover > 0.5, name, 0.0) for name, layer in enumerate(seen[:4], 1)
        )
        robot = jnp.where(arm > 0, arm, base)
        first, second = (jnp.where(seen.front, *two) for two in ((thing, robot), (robot, thing)))
        return (jnp.where(first > 0, first, jnp.where(second > 0, second, ring)),)

    (label,) = _painted(factors, planes, (0.0,))
    return {name: label == index for index, name in enumerate(_PARTS)}


def _painted(
    factors: jax.Array,
    planes: Callable[[Layers], tuple[Plane, ...]],
    empty: tuple[float, ...],
) -> jax.Array:
    """Planes `[n, 64, 64]`: `empty`, but for three windows.

    A later window paints over the earlier ones, and therefore draws what lies behind it anew. That
    costs less than whole images of every part, which a CPU would have to write and read again.

    Args:
      factors: `[7]`.
      planes: What the `n` planes show of all that there is. A scalar stands for an empty plane.
      empty: What they hold where there is only backdrop.
    """
    scene = set_up(factors[3], factors[5:])
    ring, thing = ring_of(scene), object_of(_category(factors, 1), factors[2], scene)
    spots = find_spots(scene, thing.tall)
    disc, strips = disc_of(scene, spots), strips_of(scene, spots)
    canvas = jnp.array(empty, jnp.float32)[:, None, None] * jnp.ones((CANVAS, CANVAS))

    def paint(
        canvas: jax.Array, size: tuple[int, int], column: jax.Array, row: jax.Array, detail: int
    ) -> jax.Array:
        left, top = (
            jnp.clip(jnp.round(at).astype(jnp.int32), 0, CANVAS - side)
            for at, side in zip((column, row), size[::-1], strict=True)
        )
        x = left + (0.5 - CANVAS / 2) + jnp.arange(size[1])
        y = (CANVAS / 2 - 0.5) - top - jnp.arange(size[0])[:, None]
        seen = Layers(
            draw_ring(ring, x, y),
            draw_disc(disc, x, y) if detail > 0 else _NOTHING,
            draw_arm(strips, x, y) if detail > 0 else _NOTHING,
            draw_object(thing, x, y) if detail > 1 else _NOTHING,
            thing.front,
        )
        shown = [jnp.asarray(plane) for plane in planes(seen) if plane.ndim == 2]
        # Planes that were stacked would be computed one number at a time.
        which = jnp.arange(len(shown))[:, None, None]
        window = shown[0][None]
        for index, plane in enumerate(shown[1:], 1):
            window = jnp.where(which < index, window, plane)
        return jax.lax.dynamic_update_slice(canvas, window, (0, top, left))

    zero, half = jnp.float32(0), CANVAS / 2
    canvas = paint(canvas, _RING_WINDOW, zero, half - 3 - ring.far_end, 0)
    # Six pixels hold half the base, and half the width of the column.
    x, y, _ = spots[:, :8]
    canvas = paint(canvas, _ARM_WINDOW, half - 6 + x.min(), half - 6 - y.max(), 1)
    x, y, _ = spots[:, 8]
    rows, columns = _OBJECT_WINDOW
    return paint(canvas, _OBJECT_WINDOW, half + x - columns / 2, half - y - rows / 2, 2)


def _category(factors: jax.Array, index: int) -> jax.Array:
    return jnp.clip(jnp.round(factors[index]), 0, FACTORS[index].size - 1).astype(jnp.int32)
