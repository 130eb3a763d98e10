"""Solids met by rays one at a time: what the renderers' faster forms are compared with.

A solid is described in coordinates of its own, in which it is a unit cube, ball, cylinder or cone;
a `Frame` puts it into the world. Rays keep their parameter `t` through that, so hits of different
solids compare directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.redrawn.raycast import FAR, Hit, Number, Rays, Vec, is_hit


class Frame(NamedTuple):
    """Where a solid stands: a point of its own is `centre + sum_i axis_i * size_i * coordinate_i`.

    Attributes:
      centre: In world coordinates.
      axes: Three orthonormal vectors, the solid's own x, y and z.
      size: Along each of them.
    """

    centre: Vec
    axes: tuple[Vec, Vec, Vec] = (Vec(1.0, 0.0, 0.0), Vec(0.0, 1.0, 0.0), Vec(0.0, 0.0, 1.0))
    size: Vec = Vec(1.0, 1.0, 1.0)

    def local(self, rays: Rays) -> Rays:
        """The rays in the solid's own coordinates."""
        from_centre = rays.origin.plus(self.centre, -1.0)
        origin, direction = (
            Vec(*(axis.dot(v) / size for axis, size in zip(self.axes, self.size, strict=True)))
            for v in (from_centre, rays.direction)
        )
        return Rays(origin, direction)

    def world_normal(self, normal: Vec) -> Vec:
        """A normal of the solid in world coordinates, of length 1."""
        scaled = [n / size for n, size in zip(normal, self.size, strict=True)]
        out = Vec(0.0, 0.0, 0.0)
        for axis, amount in zip(self.axes, scaled, strict=True):
            out = out.plus(axis, amount)
        return out.normalised()


def rotation(angle: Number, about: str) -> tuple[Vec, Vec, Vec]:
    """Axes of a frame that is turned counter-clockwise about one of x, y and z, in radians."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    if about == "x":
        return Vec(1.0, 0.0, 0.0), Vec(0.0, c, s), Vec(0.0, -s, c)
    if about == "y":
        return Vec(c, 0.0, -s), Vec(0.0, 1.0, 0.0), Vec(s, 0.0, c)
    return Vec(c, s, 0.0), Vec(-s, c, 0.0), Vec(0.0, 0.0, 1.0)


def convex(rays: Rays, normals: np.ndarray, offsets: np.ndarray) -> Hit:
    """A convex solid `{p: normals[i] . p <= offsets[i] for all i}`, normals `[M, 3]`."""
    enter, leave = jnp.float32(0.0), jnp.float32(FAR)
    normal = Vec(0.0, 0.0, 0.0)
    for row, offset in zip(normals, offsets, strict=True):
        face = Vec(*map(float, row))
        slope = face.dot(rays.direction)
        # A ray along the face never crosses it: taken as entering it, it does so long before or
        # long after everything else.
        slope = jnp.where(jnp.abs(slope) < 1e-9, jnp.float32(-1e-9), slope)
        t = (float(offset) - face.dot(rays.origin)) / slope
        entering = slope < 0
        later = entering & (t > enter)
        enter = jnp.where(later, t, enter)
        normal = Vec(*(jnp.where(later, new, old) for new, old in zip(face, normal, strict=True)))
        leave = jnp.where(~entering & (t < leave), t, leave)
    return Hit(jnp.where((enter < leave) & (enter > 0), enter, FAR), normal)


_CUBE = np.concatenate([np.eye(3), -np.eye(3)])


def cube(rays: Rays) -> Hit:
    """`max(|x|, |y|, |z|) <= 1`."""
    return convex(rays, _CUBE, np.ones(6))


def prism(rays: Rays, sides: int) -> Hit:
    """An upright prism over a regular polygon of inradius 1, `|y| <= 1`."""
    angles = 2 * np.pi * np.arange(sides) / sides
    around = np.stack([np.sin(angles), np.zeros(sides), np.cos(angles)], axis=1)
    return convex(rays, np.concatenate([around, [[0, 1, 0], [0, -1, 0]]]), np.ones(sides + 2))


def pyramid(rays: Rays) -> Hit:
    """A square base, `max(|x|, |z|) <= 1` at `y = -1`, and its apex at `y = 1`."""
    around = np.array([[2, 1, 0], [-2, 1, 0], [0, 1, 2], [0, 1, -2]], float)
    return convex(rays, np.concatenate([around, [[0, -1, 0]]]), np.ones(5))


def ball(rays: Rays) -> Hit:
    """`x^2 + y^2 + z^2 <= 1`."""
    a = rays.direction.dot(rays.direction)
    b = rays.origin.dot(rays.direction)
    c = rays.origin.dot(rays.origin) - 1
    return _entering(rays, a, b, c)


def _entering(rays: Rays, a: jax.Array, b: jax.Array, c: jax.Array) -> Hit:
    """Where `a t^2 + 2 b t + c` becomes negative; the normal is that of a ball."""
    root = b * b - a * c
    t = (-b - jnp.sqrt(jnp.maximum(root, 0.0))) / a
    t = jnp.where((root > 0) & (t > 0), t, FAR)
    return Hit(t, rays.at(t))


def cylinder(rays: Rays) -> Hit:
    """`x^2 + z^2 <= 1` and `|y| <= 1`."""
    (ox, oy, oz), (dx, dy, dz) = rays
    a = dx * dx + dz * dz + 1e-12
    b = ox * dx + oz * dz
    root = b * b - a * (ox * ox + oz * oz - 1)
    half = jnp.sqrt(jnp.maximum(root, 0.0))
    side_in, side_out = (-b - half) / a, (-b + half) / a
    dy = jnp.where(jnp.abs(dy) < 1e-9, jnp.float32(1e-9), dy)
    low, high = (-1 - oy) / dy, (1 - oy) / dy
    cap_in, cap_out = jnp.minimum(low, high), jnp.maximum(low, high)
    t = jnp.maximum(side_in, cap_in)
    hit = (root > 0) & (t < jnp.minimum(side_out, cap_out)) & (t > 0)
    t = jnp.where(hit, t, FAR)
    point, capped = rays.at(t), cap_in > side_in
    normal = Vec(
        jnp.where(capped, 0.0, point.x),
        jnp.where(capped, -jnp.sign(dy), 0.0),
        jnp.where(capped, 0.0, point.z),
    )
    return Hit(t, normal)


def cone(rays: Rays) -> Hit:
    """Apex at `y = 1`, a base of radius 1 at `y = -1`."""
    (ox, oy, oz), (dx, dy, dz) = rays
    # The surface is x^2 + z^2 = r^2 with r = (1 - y) / 2 >= 0.
    r, slope = (1 - oy) / 2, -dy / 2
    a = dx * dx + dz * dz - slope * slope
    a = jnp.where(jnp.abs(a) < 1e-9, jnp.float32(1e-9), a)
    b = ox * dx + oz * dz - r * slope
    root = b * b - a * (ox * ox + oz * oz - r * r)
    half = jnp.sqrt(jnp.maximum(root, 0.0))
    t = jnp.full(jnp.shape(half), FAR)
    for candidate in ((-b - half) / a, (-b + half) / a):
        y = oy + candidate * dy
        there = (root > 0) & (candidate > 0) & (jnp.abs(y) <= 1) & (candidate < t)
        t = jnp.where(there, candidate, t)
    base = (-1 - oy) / jnp.where(jnp.abs(dy) < 1e-9, jnp.float32(1e-9), dy)
    x, z = ox + base * dx, oz + base * dz
    based = (base > 0) & (base < t) & (x * x + z * z <= 1)
    t = jnp.where(jnp.asarray(based), jnp.asarray(base), t)
    point = rays.at(t)
    normal = Vec(
        jnp.where(based, 0.0, point.x),
        jnp.where(based, -1.0, (1 - point.y) / 4),
        jnp.where(based, 0.0, point.z),
    )
    return Hit(t, normal)


def capsule(rays: Rays, half_length: Number) -> Hit:
    """All within 1 of the segment from `y = -half_length` to `y = half_length`."""
    (ox, oy, oz), (dx, dy, dz) = rays
    a = dx * dx + dz * dz + 1e-12
    b = ox * dx + oz * dz
    root = b * b - a * (ox * ox + oz * oz - 1)
    side = (-b - jnp.sqrt(jnp.maximum(root, 0.0))) / a
    y = oy + side * dy
    on_side = (root > 0) & (side > 0) & (jnp.abs(y) <= half_length)
    t = jnp.where(on_side, side, FAR)
    # What misses the side meets the nearer end, if anything.
    end = jnp.where(y > 0, half_length, -half_length)
    lifted = Rays(Vec(ox, oy - end, oz), rays.direction)
    t = jnp.where(on_side, t, ball(lifted).t)
    point = rays.at(t)
    above = point.y - jnp.clip(point.y, -half_length, half_length)
    return Hit(t, Vec(point.x, above, point.z))


def nearest(hits: Sequence[Hit]) -> tuple[Hit, jax.Array]:
    """The first of several solids that rays meet, and which it is: int32 `[H, W]`, -1 for none.

    Normals must all be in one system of coordinates.
    """
    best, which = hits[0], jnp.where(is_hit(hits[0]), 0, -1)
    for index, hit in enumerate(hits[1:], 1):
        closer = hit.t < best.t
        which = jnp.where(closer, index, which)
        normal = Vec(
            *(jnp.where(closer, new, old) for new, old in zip(hit.normal, best.normal, strict=True))
        )
        best = Hit(jnp.where(closer, hit.t, best.t), normal)
    return best, which
