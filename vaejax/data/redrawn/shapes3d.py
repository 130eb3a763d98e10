"""A look-alike of 3D Shapes: one solid on the floor of a room, with six known factors.

The published dataset (google-deepmind/3d-shapes, Burgess and Kim 2018) holds every combination of
three hues, scale, shape and orientation once, 480,000 images in all.

Here a similar scene is ray-cast. Its room, camera, lights and objects were fitted to the 50
thumbnails in the authors' notebook, which come without labels (these were fitted too) and were
resampled from the images. What remains, over these 50: a mean absolute difference of 0.013, of
values in [0, 1], and 4.3% of pixels with a channel that is off by more than 0.1, nearly all of
them on outlines. Left out are the faint patterns on walls and floor, and antialiasing, so that
masks are exact; two by two samples a pixel would lower the difference by 0.002.

The mean colour over uniform factors is 0.502, 0.575, 0.595; that of the published images is 0.503,
0.579, 0.603.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vaejax.data.protocols import Factor
from vaejax.data.redrawn.raycast import Hit, Rays, Vec, camera, is_hit, project, upright
from vaejax.data.sizes import CANVAS

FACTORS = (
    Factor("floor_hue", 10),
    Factor("wall_hue", 10),
    Factor("object_hue", 10),
    Factor("scale", 8),
    Factor("shape", 4, categorical=True),
    Factor("orientation", 15),
)
"""The factors in the published order; the last one varies fastest."""

CHANNELS = 3

# All numbers below were fitted to the thumbnails, except the radius of the orbit, which sets the
# unit of length. The object stands on the floor, y = 0, above the origin; z points to the viewer.

# The camera goes around the object and looks at a point above the origin.
_ORBIT, _EYE, _TARGET = 4.0, 1.133, 1.048
_FIELD = 2 * 0.401

# The walls begin a little above the floor.
_BACK, _SIDE = 3.88, 3.916
_FOOT, _TOP = 0.122, 2.455

# Radius (of the cube: half its width) and half height of cube, cylinder, ball and capsule at scale
# 1; the half height of the capsule is without its ends.
_RADII = (0.492, 0.521, 0.590, 0.449)
_HALVES = (0.505, 0.541, 0.0, 0.475)

# Three lights: one from everywhere; one from the camera, level, without a shadow; and a lamp to the
# upper left behind the object, whose light is a pool on the floor, and which makes what faces it
# paler by a constant.
_AMBIENT, _HEADLIGHT, _LAMP, _GLOSS = 0.361, 0.588, 0.580, 0.114
_TO_LAMP = Vec(-0.2413, 0.9606, -0.1381)
_FLOOR_AMBIENT, _POOL, _POOL_X, _POOL_Z, _POOL_SIZE = 0.336, 0.953, -2.19, -0.57, 23.2
# Brightness of the left, back and right wall: where the headlight does not reach, what it adds
# when it shines straight at the wall, and the slope along the wall (z, x and z).
_WALLS = ((0.546, 0.611, 0.036), (0.528, 0.502, -0.023), (0.406, 0.593, 0.008))

_SKY_COLOUR = (153 / 255, 226 / 255, 249 / 255)

# What a pixel shows. While a picture is made a pixel is one number, `2 * kind + brightness`, as no
# brightness reaches 2.
_SKY, _LEFT, _BACK_WALL, _RIGHT, _FLOOR, _SHADOW, _OBJECT, _PALE = range(8)

# Rows and columns of the windows that hold the shadow and the object, for all factors. Columns are
# multiples of 8, for vector instructions: 44 and 38 would do, but slow a picture down by 1.4.
_SHADOW_WINDOW, _OBJECT_WINDOW = (18, 48), (50, 40)


class _Scene(NamedTuple):
    """The camera and the object of one factor vector.

    Attributes:
      sin: Of the camera's angle around the object, counter-clockwise from above.
      cos: Likewise.
      box: Whether the object is the cube.
      rounded: Whether it is the ball or the capsule.
      radius: Of the object; of the cube, half its width.
      half: Half its height, rounded ends left out.
      middle: Height of its middle.
    """

    sin: jax.Array
    cos: jax.Array
    box: jax.Array
    rounded: jax.Array
    radius: jax.Array
    half: jax.Array
    middle: jax.Array


def draw(factors: jax.Array) -> jax.Array:
    """The image `[64, 64, 3]` of classes `[6]`.

    Class `k` of each factor means:

    *   `floor_hue`, `wall_hue`, `object_hue`: hue `k / 10` at full saturation and value.
    *   `scale`: magnification `0.75 + k / 14`.
    *   `shape`: 0 cube, 1 cylinder, 2 ball, 3 capsule.
    *   `orientation`: of the camera around the object, `-30 + 30 k / 7` degrees.

    >>> jax.jit(draw)(jnp.array([0.0, 2.0, 4.0, 7.0, 3.0, 7.0])).shape
    (64, 64, 3)
    """
    picture = _picture(factors)[..., None]
    floor, wall, thing = (_hue(k) for k in factors[:3])
    kind = jnp.floor(picture / 2)
    brightness = picture - 2 * kind
    colour = jnp.where(kind >= _OBJECT, thing, jnp.where(kind >= _FLOOR, floor, wall))
    colour = brightness * colour + jnp.where(kind == _PALE, _GLOSS, 0.0)
    return jnp.where(kind == _SKY, jnp.array(_SKY_COLOUR), jnp.minimum(colour, 1.0))


def segment(factors: jax.Array) -> dict[str, jax.Array]:
    """Where what is: `sky`, `walls`, `floor`, `shadow` and `object`, each bool `[64, 64]`."""
    kind = jnp.floor(_picture(factors) / 2)
    return {
        "sky": kind == _SKY,
        "walls": (kind > _SKY) & (kind < _FLOOR),
        "floor": kind == _FLOOR,
        "shadow": kind == _SHADOW,
        "object": kind >= _OBJECT,
    }


def _picture(factors: jax.Array) -> jax.Array:
    """Kind and brightness of all pixels: the room, then the shadow, then the object over them.

    The object and its shadow are drawn in windows that follow them. That is less work, and stops
    the compiler from fusing the drawing into what consumes it, to be repeated for each use.
    """
    scene = _scene(*factors[3:])
    picture = _room(scene, _rays(scene))
    middle = Vec(0.0, scene.middle, 0.0)
    its_shadow = middle.plus(_TO_LAMP, -scene.middle / _TO_LAMP.y)
    picture = _overlay(picture, scene, its_shadow, _SHADOW_WINDOW, _shadow)
    return _overlay(picture, scene, middle, _OBJECT_WINDOW, _object)


def _scene(scale: jax.Array, shape: jax.Array, orientation: jax.Array) -> _Scene:
    angle = jnp.pi / 180 * (60 / 14 * jnp.clip(orientation, 0, 14) - 30)
    size = 0.75 + 0.5 / 7 * jnp.clip(scale, 0, 7)
    shape = jnp.clip(jnp.round(shape), 0, 3).astype(jnp.int32)
    radius, half = size * jnp.array(_RADII)[shape], size * jnp.array(_HALVES)[shape]
    rounded = shape >= 2
    middle = half + jnp.where(rounded, radius, 0.0)
    return _Scene(jnp.sin(angle), jnp.cos(angle), shape == 0, rounded, radius, half, middle)


def _camera(scene: _Scene) -> tuple[Vec, Vec, float]:
    """Position, target and field of view."""
    return Vec(_ORBIT * scene.sin, _EYE, _ORBIT * scene.cos), Vec(0.0, _TARGET, 0.0), _FIELD


def _rays(scene: _Scene, rows: jax.Array | None = None, columns: jax.Array | None = None) -> Rays:
    return camera(*_camera(scene), rows=rows, columns=columns)


def _room(scene: _Scene, rays: Rays) -> jax.Array:
    (eye_x, _, eye_z), (x, up, z) = rays
    # The inverse of t where a ray meets each wall's plane; it is largest at the first one.
    left, back, right = x / (-_SIDE - eye_x), z / (-_BACK - eye_z), x / (_SIDE - eye_x)
    aside = jnp.maximum(left, right)
    near = jnp.maximum(back, aside)
    on_floor = up < (_FOOT - _EYE) * near
    t = 1 / jnp.where(on_floor, -up / _EYE, near)
    x, z = eye_x + t * x, eye_z + t * z

    away = ((x - _POOL_X) ** 2 + (z - _POOL_Z) ** 2) / _POOL_SIZE
    floor = _FLOOR_AMBIENT + _POOL * jnp.exp(-away)
    facing = (scene.sin, scene.cos, -scene.sin)
    on_left, on_back, on_right = (
        dark + light * cosine + slope * along
        for (dark, light, slope), cosine, along in zip(_WALLS, facing, (z, x, z), strict=True)
    )

    side = jnp.where(right > left, 2 * _RIGHT + on_right, 2 * _LEFT + on_left)
    wall = jnp.where(back > aside, 2 * _BACK_WALL + on_back, side)
    wall = jnp.where(up > (_TOP - _EYE) * near, 2.0 * _SKY, wall)
    return jnp.where(on_floor, 2 * _FLOOR + floor, wall)


def _overlay(
    picture: jax.Array,
    scene: _Scene,
    middle: Vec,
    window: tuple[int, int],
    drawing: Callable[[_Scene, Rays], tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """Draws where and what `drawing` says, in a window around the projection of a point."""
    seen, _ = project(middle, *_camera(scene))
    corner = [
        jnp.clip(jnp.round(centre) - n // 2, 0, CANVAS - n).astype(jnp.int32)
        for centre, n in zip((seen.y, seen.x), window, strict=True)
    ]
    rows, columns = (start + jnp.arange(n) for start, n in zip(corner, window, strict=True))
    there, paint = drawing(scene, _rays(scene, rows, columns))
    before = jax.lax.dynamic_slice(picture, corner, window)
    return jax.lax.dynamic_update_slice(picture, jnp.where(there, paint, before), corner)


def _shadow(scene: _Scene, rays: Rays) -> tuple[jax.Array, jax.Array]:
    # The window shows nothing but floor: from each of its points a ray goes to the lamp.
    (eye_x, _, eye_z), (x, up, z) = rays
    t = -_EYE / up
    floor = Vec(eye_x + t * x, -scene.middle, eye_z + t * z)
    return is_hit(_meet(scene, Rays(floor, _TO_LAMP))), jnp.float32(2 * _SHADOW + _FLOOR_AMBIENT)


def _object(scene: _Scene, rays: Rays) -> tuple[jax.Array, jax.Array]:
    origin = rays.origin.plus(Vec(0.0, -scene.middle, 0.0))
    hit = _meet(scene, Rays(origin, rays.direction))
    normal = hit.normal.normalised()
    facing = jnp.maximum(normal.x * scene.sin + normal.z * scene.cos, 0.0)
    lamp = normal.dot(_TO_LAMP)
    brightness = _AMBIENT + _HEADLIGHT * facing + _LAMP * jnp.maximum(lamp, 0.0)
    return is_hit(hit), 2 * jnp.where(lamp > 0, _PALE, _OBJECT) + brightness


def _meet(scene: _Scene, rays: Rays) -> Hit:
    return upright(rays, scene.box, scene.rounded, scene.radius, scene.half)


def _hue(k: jax.Array) -> jax.Array:
    """The colour `[3]` of a hue class."""
    # The compiler keeps the result of `mod`, which it counts as dear. What a comparison gives it
    # works out again for every pixel, which halves the speed at 32x32.
    sixths = jnp.mod(6 / 10 * jnp.clip(k, 0, 9) + jnp.array([0.0, 4.0, 2.0]), 6)
    return jnp.clip(jnp.abs(sixths - 3) - 1, 0, 1)
