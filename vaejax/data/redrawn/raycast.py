"""Ray-casting for the renderers: vectors, a camera, and the upright solids of 3D Shapes.

Vectors are triples of planes rather than arrays `[H, W, 3]`: every operation then runs over whole
rows of pixels, which a CPU vectorises. There is one ray through each pixel's centre.

World coordinates: x to the right, y up, z towards the viewer of an unturned camera.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vaejax.data.sizes import CANVAS

Number = jax.Array | float

FAR = 1e9
"""The `t` of a ray that misses. Finite, so that what is computed from it is finite too."""


class Vec(NamedTuple):
    """Three coordinates, numbers or planes `[H, W]`."""

    x: Number
    y: Number
    z: Number

    def plus(self, other: Vec, scale: Number = 1.0) -> Vec:
        """`self + scale * other`."""
        return Vec(*(a + scale * b for a, b in zip(self, other, strict=True)))

    def dot(self, other: Vec) -> jax.Array:
        """Inner product."""
        return jnp.asarray(self.x * other.x + self.y * other.y + self.z * other.z)

    def times(self, scale: Number) -> Vec:
        """`scale * self`."""
        return Vec(*(scale * a for a in self))

    def normalised(self) -> Vec:
        """Of length 1."""
        return self.times(jax.lax.rsqrt(jnp.asarray(self.dot(self) + 1e-20)))

    def cross(self, other: Vec) -> Vec:
        """Vector product."""
        (a, b, c), (u, v, w) = self, other
        return Vec(b * w - c * v, c * u - a * w, a * v - b * u)


class Rays(NamedTuple):
    """Points `origin + t * direction`; directions are not of length 1."""

    origin: Vec
    direction: Vec

    def at(self, t: Number) -> Vec:
        """The points."""
        return self.origin.plus(self.direction, t)


class Hit(NamedTuple):
    """Where rays enter a solid.

    Attributes:
      t: `[H, W]` along the ray; 1e9 where it misses.
      normal: Outwards, in the coordinates of the solid, not of length 1.
    """

    t: jax.Array
    normal: Vec


def camera(
    position: Vec,
    target: Vec,
    height: Number,
    *,
    columns: Number | None = None,
    rows: Number | None = None,
) -> Rays:
    """The rays of a pinhole camera through the centres of pixels.

    Args:
      position: Where it is.
      target: What the middle of the image shows.
      height: Of the field of view at distance 1, `2 tan(angle / 2)`.
      columns: Which pixels of the 64 in a row, `[W]`; traced or not, all by default.
      rows: Likewise `[H]`, counted from the top.

    Returns:
      Rays whose directions are `[H, W]` planes, of depth 1 along the camera's axis.
    """
    columns = jnp.arange(CANVAS) if columns is None else columns
    rows = jnp.arange(CANVAS) if rows is None else rows
    forward = target.plus(position, -1.0).normalised()
    right = forward.cross(Vec(0.0, 1.0, 0.0)).normalised()
    up = right.cross(forward)
    across = ((jnp.asarray(columns, jnp.float32) + 0.5) / CANVAS - 0.5) * height
    above = (0.5 - (jnp.asarray(rows, jnp.float32) + 0.5) / CANVAS) * height
    direction = forward.plus(right, across[None, :]).plus(up, above[:, None])
    return Rays(position, Vec(*(jnp.asarray(part) for part in direction)))


def project(point: Vec, position: Vec, target: Vec, height: Number) -> tuple[Vec, jax.Array]:
    """Where the camera sees a point: its column and row in pixels (as x and y), and its depth."""
    forward = target.plus(position, -1.0).normalised()
    right = forward.cross(Vec(0.0, 1.0, 0.0)).normalised()
    up = right.cross(forward)
    seen = point.plus(position, -1.0)
    depth = seen.dot(forward)
    column = (seen.dot(right) / (depth * height) + 0.5) * CANVAS
    row = (0.5 - seen.dot(up) / (depth * height)) * CANVAS
    return Vec(column, row, 0.0), depth


def upright(rays: Rays, box: jax.Array, rounded: jax.Array, radius: Number, half: Number) -> Hit:
    """A box, cylinder, ball or capsule, which one being decided by values rather than by code.

    This takes little longer than the dearest of the four alone, and half as long as selecting among
    four finished hits. In world units and about `y = 0`, standing along y:

    *   `box`: `max(|x|, |z|) <= radius` and `|y| <= half`.
    *   neither `box` nor `rounded`: `x^2 + z^2 <= radius^2` and `|y| <= half`, a cylinder.
    *   `rounded`: all within `radius` of the segment from `y = -half` to `y = half`, a capsule, or
        a ball where `half` is 0.

    Args:
      rays: Directions may be planes or numbers, and origins too.
      box: Bool.
      rounded: Bool; not both.
      radius: Positive.
      half: At least 0; positive unless `rounded`.
    """
    (ox, oy, oz), (dx, dy, dz) = rays
    wx, wy, wz = (1 / jnp.where(jnp.abs(d) < 1e-9, 1e-9, d) for d in (dx, dy, dz))

    # Where rays are over the base: an interval of t each for the square and for the disc.
    middle_x, reach_x = -ox * wx, jnp.abs(radius * wx)
    middle_z, reach_z = -oz * wz, jnp.abs(radius * wz)
    a, b = dx * dx + dz * dz + 1e-12, ox * dx + oz * dz
    c = ox * ox + oz * oz - radius * radius
    root = b * b - a * c
    width = jnp.sqrt(jnp.maximum(root, 0.0))
    middle = -b / a
    from_x = middle_x - reach_x > middle_z - reach_z
    square_in = jnp.where(from_x, middle_x - reach_x, middle_z - reach_z)
    square_out = jnp.minimum(middle_x + reach_x, middle_z + reach_z)
    side_in = jnp.where(box, square_in, middle - width / a)
    side_out = jnp.where(box, square_out, middle + width / a)
    over = box | (root > 0)

    # Flat ends: a second interval, and where the two meet.
    ends, reach_y = -oy * wy, jnp.abs(half * wy)
    end_first = ends - reach_y > side_in
    flat = jnp.where(end_first, ends - reach_y, side_in)
    meets_flat = over & (flat < jnp.minimum(side_out, ends + reach_y))

    # Rounded ends: what misses the side meets the ball at the nearer end, if anything.
    y = oy + side_in * dy
    on_side = over & (jnp.abs(y) <= half)
    lift = oy - jnp.where(y > 0, half, -half)
    a, b, c = a + dy * dy, b + lift * dy, c + lift * lift
    root = b * b - a * c
    ball_in = (-b - jnp.sqrt(jnp.maximum(root, 0.0))) / a
    meets_round = on_side | (root > 0)

    t = jnp.where(rounded, jnp.where(on_side, side_in, ball_in), flat)
    meets = jnp.where(rounded, meets_round, meets_flat) & (t > 0)
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    on_end = ~rounded & end_first
    on_face = box & ~end_first
    normal = Vec(
        jnp.where(on_end, 0.0, jnp.where(on_face, jnp.where(from_x, -jnp.sign(dx), 0.0), x)),
        jnp.where(rounded, y - jnp.clip(y, -half, half), jnp.where(on_end, -jnp.sign(dy), 0.0)),
        jnp.where(on_end, 0.0, jnp.where(on_face, jnp.where(from_x, 0.0, -jnp.sign(dz)), z)),
    )
    return Hit(jnp.where(meets, t, FAR), normal)


def is_hit(hit: Hit) -> jax.Array:
    """Where rays meet the solid, bool `[H, W]`."""
    return hit.t < FAR / 2


def lambert(normal: Vec, light: Vec) -> jax.Array:
    """The cosine between a normal and the direction to the light, both of length 1; at least 0."""
    return jnp.maximum(normal.dot(light), 0.0)
