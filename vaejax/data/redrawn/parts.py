"""Toys made of parts, as arrays of one form, so that one program draws any of them.

A part is a box cut by a quadric. In coordinates where the box is `max(|x|, |y|, |z|) <= 1`, the
part is where `a (x - p)^2 + b (y - q)^2 + c (z - r)^2 <= 1` too. Its roundness `(a, b, c)` makes it
a ball (1, 1, 1), a cylinder along z (1, 1, 0), a box (0, 0, 0) or anything between. Where it is
thickest, `(p, q, r)`, makes domes, cones of a kind and tapered wings.

A toy faces x; y is up and z to its right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Point = Iterable[float]
Array = Any
"""NumPy's or JAX's."""

PARTS = 10
"""Of each toy, at most."""

BOX = (0.0, 0.0, 0.0)
BALL = (1.0, 1.0, 1.0)
LIMB = (0.35, 1.0, 1.0)
"""A rod along x, thinner towards both ends."""


class Part(NamedTuple):
    """One part of a toy.

    Attributes:
      label: What it is called, as an index.
      centre: Of its box.
      size: Half extents of the box along its own x, y and z.
      roundness: Of the quadric.
      thickest: Centre of the quadric, in the coordinates of the box.
      along: Its own x; its own z is horizontal.
    """

    label: int
    centre: Point
    size: Point
    roundness: Point = BOX
    thickest: Point = (0.0, 0.0, 0.0)
    along: Point = (1.0, 0.0, 0.0)


def limb(
    label: int,
    start: Point,
    end: Point,
    thick: float,
    wide: float = 0.0,
    roundness: Point = LIMB,
    thickest: float = 0.0,
) -> Part:
    """A part from one point to another, of half thickness `thick` and half width `wide`."""
    a, b = np.array(start, float), np.array(end, float)
    length = float(np.linalg.norm(b - a))
    size = (length / 2, thick, wide or thick)
    return Part(label, (a + b) / 2, size, roundness, (thickest, 0.0, 0.0), (b - a) / length)


class Toys(NamedTuple):
    """The parts of a toy as arrays, or of N toys with a leading axis N.

    Attributes:
      label: `[P]` int32.
      centre: `[P, 3]`, from the middle of the toy.
      extent: `[P, 3, 3]`: row `i` is a part's own axis `i` times its half extent.
      roundness: `[P, 3]`.
      thickest: `[P, 3]`.
      floor: `[]`, the height of the floor.
    """

    label: Array
    centre: Array
    extent: Array
    roundness: Array
    thickest: Array
    floor: Array


def build(toys: Sequence[Sequence[Part]], reach: float) -> Toys:
    """Toys, each scaled so that it is seen to reach `reach` from its middle and no further.

    That is: by an orthographic camera at any azimuth, and at elevations of 30 to 70 degrees.

    >>> build([[Part(0, (0, 0, 0), (1, 1, 1), BALL)]], reach=28).floor.round(2)
    array([-28.], dtype=float32)
    """
    return Toys(*(np.stack(field) for field in zip(*(_toy(t, reach) for t in toys), strict=True)))


_CUBE = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 3), axis=-1).reshape(-1, 3)


def _toy(parts: Sequence[Part], reach: float) -> Toys:
    # Toys of fewer parts repeat their first one, which changes nothing.
    parts = [*parts, *[parts[0]] * (PARTS - len(parts))]
    centre, size, roundness, thickest, along = (
        np.array([np.array(part[i], float) for part in parts]) for i in range(1, 6)
    )
    extent = _axes(along) * size[..., None]

    # Points on the surface: those of the box, drawn towards the centre of the quadric.
    from_thickest = _CUBE - thickest[:, None]
    beyond = np.sqrt((roundness[:, None] * from_thickest**2).sum(-1, keepdims=True))
    surface = thickest[:, None] + from_thickest / np.maximum(beyond, 1)
    points = (centre[:, None] + surface @ extent).reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    points -= middle
    radius = np.hypot(points[:, 0], points[:, 2])
    tilt = np.radians(np.linspace(30, 70, 9))[:, None]
    above = np.abs(points[:, 1]) * np.cos(tilt) + radius * np.sin(tilt)
    scale = reach / max(radius.max(), above.max())
    return Toys(
        np.array([part.label for part in parts], np.int32),
        ((centre - middle) * scale).astype(np.float32),
        (extent * scale).astype(np.float32),
        roundness.astype(np.float32),
        thickest.astype(np.float32),
        np.float32((low[1] - middle[1]) * scale),
    )


def _axes(along: np.ndarray) -> np.ndarray:
    """Own axes `[P, 3, 3]` of parts by their own x `[P, 3]`."""
    x = along / np.linalg.norm(along, axis=-1, keepdims=True)
    # An upright part takes its z from the x of the toy.
    upright = np.abs(x[:, 1:2]) > 0.9
    z = np.cross(x, np.where(upright, [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=1)
