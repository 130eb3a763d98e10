"""A look-alike of SmallNORB, drawn in JAX: grey toys on a turntable under six lightings.

The published dataset (LeCun, Huang and Bottou 2004) holds photographs of fifty painted toys. These
are not those: they are toys of the same five categories, assembled from a few solids
(`vaejax.data.redrawn.toys`), in as many poses. What is found on them says nothing about the
published images, which `vaejax.data.genuine.smallnorb` reads.

The camera is orthographic. All rays then have one direction, and what decides where a ray meets a
solid is a polynomial in the pixel's position, whose coefficients are computed once an image.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.protocols import Factor
from vaejax.data.redrawn.parts import Toys, build
from vaejax.data.redrawn.raycast import Vec, lambert
from vaejax.data.redrawn.toys import CATEGORIES, LABELS
from vaejax.data.sizes import CANVAS

FACTORS = (
    Factor("category", 5, categorical=True),
    Factor("instance", 10, categorical=True),
    Factor("elevation", 9),
    Factor("azimuth", 18),
    Factor("lighting", 6, categorical=True),
)
"""The factors in the published order; the last one varies fastest."""

CHANNELS = 1

# World coordinates are pixels from the middle of the toy: x to the right, y up, z to the front.
# A toy is seen within 28 of the middle, so it needs no rays outside this margin.
_TOYS = build([parts for category in CATEGORIES.values() for parts in category], reach=28.0)
_MARGIN = 4

# Azimuth of the lamp from the front to the right and its elevation, in degrees; light from the
# lamp, and from everywhere; brightness of the backdrop.
_LIGHTINGS = np.array(
    [
        (-50, 45, 0.55, 0.34, 0.84),
        (40, 50, 0.45, 0.50, 0.92),
        (170, 55, 0.50, 0.34, 0.82),
        (100, 35, 0.60, 0.26, 0.78),
        (-110, 40, 0.45, 0.22, 0.70),
        (0, 75, 0.40, 0.60, 0.96),
    ],
    np.float32,
)
_ALBEDO = 0.62
_FROM_ABOVE = 0.14  # what a surface that faces up gets more, and one that faces down less
_NEAR_FLOOR = 0.65  # share of the light that reaches the foot of the toy
_NEAR = 8.0  # pixels above the floor where all of it does
_FALLOFF = 0.06 / 32  # of the backdrop with the distance from the lamp, per pixel

# The shadow of a part lies below it, softer the higher the part is. Its radius is that of the
# part's outline from above, widened by `_PENUMBRA + _SPREAD * height` and by a factor; it fades
# from the middle to the edge, and is called shadow where it takes more than `_VISIBLE`.
_DARKEST = 0.4
_PENUMBRA, _SPREAD = 2.0, 0.3
_WIDENED = 2.5  # squared
_VISIBLE = 0.08

_NOTHING = -1.0


class _Scene(NamedTuple):
    """What is seen: the turned toy, the camera's elevation, and the lighting."""

    toy: Toys
    cos: jax.Array
    sin: jax.Array
    lamp: Vec
    direct: jax.Array
    ambient: jax.Array
    backdrop: jax.Array
    zero: jax.Array


class _Pixels(NamedTuple):
    """Centres of pixels: `u` to the right `[1, W]`, `v` upwards `[H, 1]`, from the middle."""

    u: jax.Array
    v: jax.Array


class _Linear(NamedTuple):
    """`c + u pixels.u + v pixels.v`, with coefficients `[P]` or `[P, 3]`."""

    c: jax.Array
    u: jax.Array
    v: jax.Array

    def at(self, pixels: _Pixels, *index: int) -> jax.Array:
        return self.c[index] + self.u[index] * pixels.u + self.v[index] * pixels.v


class _Solids(NamedTuple):
    """Where a ray `[u, v, t]` of the camera meets each part.

    Attributes:
      centre: The `t` in the middle between entering and leaving the quadric.
      square: Half the distance between them, squared, with its coefficients of u^2, uv and v^2.
      slab: The `t` in the middle between two opposite faces of the box.
      half: Half the distance between them, `[P, 3]`.
      tone: Brightness of the face where the ray enters, `[P, 3]`.
    """

    centre: _Linear
    square: tuple[_Linear, jax.Array, jax.Array, jax.Array]
    slab: _Linear
    half: jax.Array
    tone: jax.Array


@jax.jit
def draw(factors: jax.Array) -> jax.Array:
    """The image `[64, 64, 1]` of classes `[5]`, in [0, 1].

    Class `k` of each factor means:

    *   `category`: 0 animal, 1 human, 2 plane, 3 truck, 4 car.
    *   `instance`: which toy of the category, in the order of `toys.CATEGORIES`.
    *   `elevation`: the camera's, `30 + 5 k` degrees.
    *   `azimuth`: the toy faces right at 0, and is turned counter-clockwise, seen from above, by
        `20 k` degrees, with period 18.
    *   `lighting`: one of six, each with its direction, strength and backdrop. It moves no shadow.

    >>> draw(jnp.array([3.0, 0.0, 1.5, 17.5, 0.0])).shape
    (64, 64, 1)
    """
    scene = _scene(factors)
    ground = _ground(scene, _pixels())
    pixels = _pixels(_MARGIN)
    depth, tone, _ = _trace(scene, pixels)
    height = scene.cos * pixels.v - scene.sin * depth - scene.toy.floor
    tone = tone * (_NEAR_FLOOR + (1 - _NEAR_FLOOR) * jnp.clip(height / _NEAR, 0, 1))
    window = jnp.where(tone > 0, tone, ground[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
    return jnp.clip(_place(scene, window, ground), 0, 1)[..., None]


@jax.jit
def segment(factors: jax.Array) -> dict[str, jax.Array]:
    """What is where: `background`, `shadow` and the parts `toys.LABELS`, each bool `[64, 64]`.

    Every pixel is in one of them. Lighting changes none.
    """
    scene = _scene(factors)
    nothing = jnp.full((CANVAS, CANVAS), _NOTHING)
    label = _place(scene, _trace(scene, _pixels(_MARGIN))[2], nothing)
    shadow = (label == _NOTHING) & (_shade(scene, _pixels()) > _VISIBLE)
    parts = {name: label == index for index, name in enumerate(LABELS)}
    return {"background": (label == _NOTHING) & ~shadow, "shadow": shadow, **parts}


def _scene(factors: jax.Array) -> _Scene:
    category, instance, elevation, azimuth, lighting = factors
    row = 10 * _class(category, 5) + _class(instance, 10)
    toy = Toys(*(jnp.asarray(field)[row] for field in _TOYS))
    turn = jnp.radians(20 * jnp.mod(azimuth, 18))
    toy = toy._replace(centre=_turned(toy.centre, turn), extent=_turned(toy.extent, turn))
    tilt = jnp.radians(30 + 5 * jnp.clip(elevation, 0, 8))
    around, above, direct, ambient, backdrop = jnp.asarray(_LIGHTINGS)[_class(lighting, 6)]
    around, above = jnp.radians(around), jnp.radians(above)
    lamp = Vec(jnp.sin(around) * jnp.cos(above), jnp.sin(above), jnp.cos(around) * jnp.cos(above))
    # Zero, but not so that a compiler knows.
    zero = jnp.minimum(row, 0)
    return _Scene(toy, jnp.cos(tilt), jnp.sin(tilt), lamp, direct, ambient, backdrop, zero)


def _class(value: jax.Array, size: int) -> jax.Array:
    return jnp.clip(jnp.round(value), 0, size - 1).astype(jnp.int32)


def _turned(points: jax.Array, angle: jax.Array) -> jax.Array:
    """Points `[..., 3]` turned counter-clockwise about y."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return jnp.stack([cos * x + sin * z, y, cos * z - sin * x], axis=-1)


def _pixels(margin: int = 0) -> _Pixels:
    along = jnp.arange(margin, CANVAS - margin) + 0.5 - CANVAS / 2
    return _Pixels(along[None, :], -along[:, None])


def _place(scene: _Scene, window: jax.Array, around: jax.Array) -> jax.Array:
    """Puts what was computed inside the margin into a whole image.

    It also keeps a compiler from fusing the drawing with what consumes it, which costs a CPU its
    vector instructions as soon as that is laid out in another way: flattened images were drawn five
    times slower. A corner that the compiler knew would not keep it from that.
    """
    corner = scene.zero + _MARGIN
    return jax.lax.dynamic_update_slice(around, window, (corner, corner))


def _seen(scene: _Scene, vector: Vec) -> Vec:
    """A vector by its components to the right, upwards and away from the camera."""
    x, y, z = vector
    return Vec(x, scene.cos * y - scene.sin * z, -scene.sin * y - scene.cos * z)


def _lit(scene: _Scene, normal: Vec) -> jax.Array:
    """Brightness of a surface by its normal, as the camera sees it, of length 1."""
    above = scene.cos * normal.y - scene.sin * normal.z
    lamp = lambert(normal, _seen(scene, scene.lamp))
    return _ALBEDO * (scene.ambient + _FROM_ABOVE * above + scene.direct * lamp)


def _solids(scene: _Scene) -> _Solids:
    """A ray's own coordinates in part `p` are `at + u right + v up + t away`, each `[P, 3]`."""
    toy = scene.toy
    inverse = toy.extent / (toy.extent**2).sum(-1, keepdims=True)
    right, up, away = _seen(scene, Vec(inverse[..., 0], inverse[..., 1], inverse[..., 2]))
    away = jnp.where(jnp.abs(away) < 1e-6, 1e-6, away)
    at = -(inverse * toy.centre[:, None]).sum(-1)

    # The quadric is `a t^2 + 2 b t + c <= 0`. That of a box has no bounds, but for what is added
    # to `a`: it reaches 3000 pixels far.
    terms = jnp.stack([at - toy.thickest, right, up, away])
    products = (toy.roundness * terms[:, None] * terms).sum(-1)
    a = products[3, 3] + 1e-7
    b, c = products[:3, 3] / a, products[:3, :3] / a
    square = b[:, None] * b - c
    linear = _Linear(square[0, 0] + 1 / a, 2 * square[0, 1], 2 * square[0, 2])

    scale = -jnp.sign(away) * jax.lax.rsqrt((inverse**2).sum(-1))
    return _Solids(
        centre=_Linear(*-b),
        square=(linear, square[1, 1], 2 * square[1, 2], square[2, 2]),
        slab=_Linear(-at / away, -right / away, -up / away),
        half=1 / jnp.abs(away),
        tone=_lit(scene, Vec(right * scale, up * scale, away * scale)),
    )


def _trace(scene: _Scene, pixels: _Pixels) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first part along each ray: its depth, its brightness (or 0) and its label, `[H, W]`."""
    toy, solids = scene.toy, _solids(scene)
    u, v = pixels
    depth = jnp.full((v.shape[0], u.shape[1]), 1e9)
    tone, label = jnp.zeros_like(depth), jnp.full_like(depth, _NOTHING)
    for part in range(len(toy.label)):
        linear, uu, uv, vv = solids.square[0], *(term[part] for term in solids.square[1:])
        square = linear.at(pixels, part) + u * (uu * u + uv * v) + vv * v * v
        half = jnp.sqrt(jnp.maximum(square, 0.0))
        centre = solids.centre.at(pixels, part)
        enter, leave = centre - half, centre + half
        # The gradient of `(t - centre)^2 - square` where the ray enters.
        normal = Vec(
            half * solids.centre.u[part] - 0.5 * linear.u[part] - uu * u - 0.5 * uv * v,
            half * solids.centre.v[part] - 0.5 * linear.v[part] - vv * v - 0.5 * uv * u,
            -half,
        )
        here = _lit(scene, normal.normalised())
        for axis in range(3):
            middle, to_face = solids.slab.at(pixels, part, axis), solids.half[part, axis]
            here = jnp.where(middle - to_face > enter, solids.tone[part, axis], here)
            enter = jnp.maximum(enter, middle - to_face)
            leave = jnp.minimum(leave, middle + to_face)
        first = (enter < leave) & (enter < depth)
        depth = jnp.where(first, enter, depth)
        tone = jnp.where(first, here, tone)
        label = jnp.where(first, toy.label[part].astype(jnp.float32), label)
    return depth, tone, label


def _ground(scene: _Scene, pixels: _Pixels) -> jax.Array:
    """Brightness of the backdrop, `[H, W]`."""
    towards = pixels.u * scene.lamp.x - pixels.v * scene.lamp.z
    return scene.backdrop * (1 + _FALLOFF * towards) * (1 - _shade(scene, pixels))


def _shade(scene: _Scene, pixels: _Pixels) -> jax.Array:
    """Share of the light that the toy keeps from the floor, `[H, W]`."""
    toy = scene.toy
    outline = jnp.stack([toy.extent[..., 0], toy.extent[..., 2]])
    (xx, xz), (_, zz) = (outline[:, None] * outline).sum(-1)
    wider = (_PENUMBRA + _SPREAD * (toy.centre[:, 1] - toy.floor)) ** 2
    sharp = xx * zz - xz * xz
    xx, zz = xx + wider, zz + wider
    spread = xx * zz - xz * xz
    # What is spread over twice the area is half as dark; the fourth root is the square root of
    # the ratio of areas, which is kinder to thin parts.
    dark = _DARKEST * jnp.sqrt(jnp.sqrt(sharp / spread))
    scale = 1 / (spread * _WIDENED)

    floor_z = (toy.floor * scene.cos - pixels.v) / scene.sin
    shade = jnp.zeros((pixels.v.shape[0], pixels.u.shape[1]))
    for part in range(len(toy.label)):
        dx, dz = pixels.u - toy.centre[part, 0], floor_z - toy.centre[part, 2]
        distance = dx * (zz[part] * dx - 2 * xz[part] * dz) + xx[part] * dz * dz
        fade = jnp.maximum(1 - scale[part] * distance, 0.0)
        shade = jnp.maximum(shade, dark[part] * fade * fade)
    return shade
