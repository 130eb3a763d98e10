"""What is to be seen in the redrawn MPI3D: the ring on the floor, the arm, the object, the camera.

A part is prepared once for an image and then drawn at the pixels `x`, `y`, which are counted from
the middle of the image to the right and upwards, and of which `x` is a row and `y` a column.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.sizes import CANVAS

# The numbers down to _LIGHT were fitted to the published frames. World coordinates: x to the
# right, y up, z to the viewer; the column stands on the y axis and the arm's joint is at y = 1.

# Per camera height: azimuth and elevation; and how far its target is to the right of the origin and
# above it, and the camera from its target.
_CAMERA_ANGLES = np.array([[0.2689, 0.9052], [0.0, 0.6768], [0.1128, 0.3892]], np.float32)
_CAMERA_SHIFTS = np.array(
    [[0.1606, 0.7466, 5.339], [-0.1087, 0.8412, 5.027], [0.1831, 1.0660, 4.810]], np.float32
)
_FOCAL = CANVAS / 0.8635  # distance of the image plane, in pixels

# Both axes take 180 degrees from the first class to the last; angles left free in the fit did not
# make its error smaller.
_STEP = np.pi / 39
_TURN = 2.839  # of the column at class 0

_FLOOR = -0.2593
_RING = (3.444, 4.291)  # inner and outer radius
_RING_CENTRE = (0.0219, 0.0, 0.099)
_RING_FADE = (0.0122, 0.0132)  # per unit^2 to the side, and of radius^2

# A disc on the floor, and capsules: half width and brightness. The column is no cylinder, but wider
# in the plane of the arm.
_BASE, _BASE_GREY = 0.336, 0.635
_COLUMN, _COLUMN_GREY = (0.1615, 0.1293), 0.322
_HOUSING, _HOUSING_GREY = 0.1377, 0.536
_SLEEVE, _SLEEVE_ENDS, _SLEEVE_GREY = 0.06, (-0.06, 0.326), 0.447
_ROD, _ROD_GREY = 0.04, 0.45
_WIDTHS = np.array([[0, _HOUSING, _ROD, _SLEEVE], [1, 0, 0, 0]], np.float32)
# Where the disc is, the top of the column, and the ends of the housing; x and z turn with them.
_STANDING = np.array(
    [[0, _FLOOR, 0], [0, 1.159, 0], [0.0274, 1.093, -0.0616], [0.0274, 1.253, -0.0616]], np.float32
)

_REACH = 1.4012  # from the joint to the object's centre
# From the joint along the arm: its ends, the sleeve's, and the object's centre; and how much of the
# object's half height is to be taken off.
_JOINT = np.array([0.0043, 1.0, -0.2153], np.float32)
_REACHES = np.array([[0, _REACH, *_SLEEVE_ENDS, _REACH], [0, 1, 0, 0, 0]], np.float32)
_HALF_WIDTH, _HALF_HEIGHT = 0.3076, 0.3124
_SMALL = 0.683
_LIGHT = (-0.0385, 0.8884, 0.4348)
_FIXED = np.array([_RING_CENTRE, _LIGHT], np.float32)

# Every shape is what lies within the planes n . p <= 1, of which the first two are y <= 1 and
# y >= -1, and where x^2 + z^2 <= q0 + q1 y + q2 y^2; a last entry of 1 means that there is no
# such limit. In units of its half width and half height, y along the arm.
_HEXAGON = np.pi / 3 * np.arange(6)
_PLANES = np.zeros((6, 8, 3), np.float32)
_PLANES[:, :2] = [[0, 1, 0], [0, -1, 0]]
_PLANES[1, 2:6] = [[1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]]
_PLANES[3, 2:] = np.stack([np.sin(_HEXAGON), 0 * _HEXAGON, np.cos(_HEXAGON)], axis=1)
_PLANES[4, 2:6] = [[2, 1, 0], [-2, 1, 0], [0, 1, 2], [0, 1, -2]]
_QUADRICS = np.array(
    [[0.25, -0.5, 0.25, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 0, -1, 0]],
    np.float32,
)
_SHAPES = np.concatenate([_PLANES.reshape(6, 24), _QUADRICS], axis=1)
_FAR = 1e4

_SAMPLES = np.array([[-1, 1, -1, 1], [-1, -1, 1, 1]], np.float32)[:, :, None, None] / 4


Plane = jax.Array | np.float32
"""`[H, W]`, or a number where all pixels are alike."""


class Layer(NamedTuple):
    """What is seen of something: its share of every pixel, and that times its brightness."""

    cover: Plane
    light: Plane

    def below(self, other: Layer) -> Layer:
        """Both, `other` in front."""
        return Layer(*(o + (1 - other.cover) * s for s, o in zip(self, other, strict=True)))


class Scene(NamedTuple):
    """How the camera, the column and the arm stand.

    Everything is given in the axes of the camera: to the right, upwards, and forwards.

    Attributes:
      position: The camera's, from the foot of the column, `[3]`.
      height: How far it is above the floor.
      pitch: From its level axes to its own, `[3, 3]`.
      ring: The ring's centre, in the camera's level axes, from the foot of the column `[3]`.
      light: Towards it, `[3]`.
      axes: The column's, in the plane of the arm, upwards and across, `[3, 3]`.
      lean: The arm's, across it in its plane, along it and across, in those of the column `[3, 3]`.
    """

    position: jax.Array
    height: jax.Array
    pitch: jax.Array
    ring: jax.Array
    light: jax.Array
    axes: jax.Array
    lean: jax.Array


# Rotations are sums of these times 1, cosine and sine: from the axes of the world, and from those
# of the column, to axes of the camera that are level; from these to the camera's own; from the
# arm's to the column's.
_ABOUT_Y = [
    [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    np.diag([1, 0, -1]),
    [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
]
_ABOUT_X = [np.diag([1, 0, 0]), np.diag([0, 1, 1]), [[0, 0, 0], [0, 0, -1], [0, 1, 0]]]
_ABOUT_Z = [np.diag([0, 0, 1]), np.diag([1, 1, 0]), [[0, -1, 0], [1, 0, 0], [0, 0, 0]]]
_TURNS = np.array([_ABOUT_Y, _ABOUT_Y, _ABOUT_X, _ABOUT_Z], np.float32).swapaxes(0, 1)
_AXES = np.eye(3, dtype=np.float32)
_BY_CAMERA = np.array([[-1, -1, 0, 0], [0, 0, 1, 0]], np.float32)
_AT_0 = np.array([0, _TURN, 0, -19.5 * _STEP], np.float32)
_BY_AXES = np.array([[0, 0, 0, _STEP], [0, -_STEP, 0, 0]], np.float32)


def set_up(height: jax.Array, axes: jax.Array) -> Scene:
    """The scene of a camera height and of the two axes `[2]`, all in classes."""
    weights = jnp.maximum(1 - jnp.abs(jnp.clip(height, 0, 2) - jnp.arange(3)), 0)
    axes = jnp.clip(axes, 0, 39)
    angles = (
        weights @ (_CAMERA_ANGLES @ _BY_CAMERA)
        + axes[0] * _BY_AXES[0]
        + axes[1] * _BY_AXES[1]
        + _AT_0
    )
    cos, sin = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    turns = _TURNS[0] + cos * _TURNS[1] + sin * _TURNS[2]
    pitch, lean = turns[2], turns[3]
    column = turns[1] @ pitch
    shift = weights @ _CAMERA_SHIFTS
    position = shift[0] * _AXES[0] + shift[1] * pitch[1] - shift[2] * _AXES[2]
    level = _FIXED @ turns[0]
    return Scene(
        position,
        shift[1] + shift[2] * pitch[2, 1] - _FLOOR,
        pitch,
        level[0],
        level[1] @ pitch,
        column,
        lean,
    )


def find_spots(scene: Scene, tall: jax.Array) -> jax.Array:
    """Where points are seen, from the middle of the image, and pixels per unit there, `[3, 9]`.

    The points are those of `_STANDING`, the ends of the rod and of the sleeve, and the object's
    centre: two for each of the four strips, and one more.
    """
    reach = _REACHES[0] - tall * _REACHES[1]
    arm = _JOINT + reach[:, None] * scene.lean[1]
    x, y, depth = (jnp.concatenate([jnp.asarray(_STANDING), arm]) @ scene.axes - scene.position).T
    scale = _FOCAL / depth
    return jnp.stack([x * scale, y * scale, scale])


class Ring(NamedTuple):
    """The floor and the ring on it, as the camera sees them: see `draw_ring`."""

    cos: jax.Array
    sin: jax.Array
    height: jax.Array
    aside: jax.Array
    ahead: jax.Array
    far_end: jax.Array


def ring_of(scene: Scene) -> Ring:
    """The ring, from the camera of a scene."""
    cos, sin = scene.pitch[1, 1], scene.pitch[2, 1]
    aside, _, ahead = scene.ring - scene.pitch @ scene.position
    far = ahead + _RING[1]
    far_end = _FOCAL * (far * sin - scene.height * cos) / (far * cos + scene.height * sin)
    return Ring(cos, sin, scene.height, aside, ahead, far_end)


def draw_ring(ring: Ring, x: jax.Array, y: jax.Array) -> Layer:
    """The ring, whose brightness is 1 at its inner edge straight ahead, and less elsewhere."""
    # The camera does not roll, so that a whole row of pixels meets the floor at one depth.
    cos, sin = ring.cos, ring.sin
    fall = sin * _FOCAL - cos * y
    below = fall > 0
    t = ring.height / jnp.where(below, fall, 1.0)
    across, away = t * x - ring.aside, t * (sin * y + cos * _FOCAL) - ring.ahead
    square = across * across + away * away

    # How fast radius^2 changes from row to row and from column to column makes edges a pixel wide.
    t_per_row = t * t * (cos / ring.height)
    by_row = across * (t_per_row * x) + away * (t_per_row * (sin * y + cos * _FOCAL) + t * sin)
    by_column = across * t
    per = 0.5 * jax.lax.rsqrt(by_row * by_row + by_column * by_column + 1e-6)
    inner, outer = _RING[0] ** 2, _RING[1] ** 2
    inside, outside = (outer - square) * per + 0.5, (square - inner) * per + 0.5
    # Towards the horizon a pixel holds more floor than that is good for.
    near = below & (square < 2 * outer)
    cover = jnp.where(near, jnp.clip(inside, 0, 1) * jnp.clip(outside, 0, 1), 0.0)
    fade = 1 - _RING_FADE[0] * across * across - _RING_FADE[1] * (square - inner)
    return Layer(cover, cover * fade)


class Strip(NamedTuple):
    """Capsules as they are seen, in pixels: start, way to the end, half width and what it gains."""

    x: jax.Array
    y: jax.Array
    dx: jax.Array
    dy: jax.Array
    per_length: jax.Array
    width: jax.Array
    gain: jax.Array


def strips_of(scene: Scene, spots: jax.Array) -> Strip:
    """The column, the housing on it, the rod and its sleeve: `[4]` each."""
    start, end = spots[:, 0:8:2], spots[:, 1:8:2]
    (x, y, scale), (dx, dy, more) = start, end - start
    column = jnp.hypot(_COLUMN[0] * scene.axes[0, 0], _COLUMN[1] * scene.axes[2, 0])
    widths = _WIDTHS[0] + column * _WIDTHS[1]
    return Strip(x, y, dx, dy, 1 / (dx * dx + dy * dy + 1e-6), widths * scale, widths * more)


def draw_arm(strips: Strip, x: jax.Array, y: jax.Array) -> Layer:
    """The column, the arm before it, and before both the housing of the joint."""

    def one(index: int, grey: float) -> Layer:
        strip = Strip(*(part[index] for part in strips))
        along, beside = x - strip.x, y - strip.y
        u = jnp.clip((along * strip.dx + beside * strip.dy) * strip.per_length, 0, 1)
        along, beside = along - u * strip.dx, beside - u * strip.dy
        beyond = jnp.sqrt(along * along + beside * beside + 1e-9) - (strip.width + strip.gain * u)
        cover = jnp.clip(0.5 - beyond, 0, 1)
        return Layer(cover, cover * grey)

    layer = one(0, _COLUMN_GREY).below(one(2, _ROD_GREY)).below(one(3, _SLEEVE_GREY))
    return layer.below(one(1, _HOUSING_GREY))


def disc_of(scene: Scene, spots: jax.Array) -> jax.Array:
    """The disc of the base: its centre, half width, and how much it is flattened, `[4]`."""
    x, y, scale = spots[:, 0]
    return jnp.stack([x, y, _BASE * scale, _FOCAL / (scale * scene.height)])


def draw_disc(disc: jax.Array, x: jax.Array, y: jax.Array) -> Layer:
    """The disc, an ellipse."""
    across, away = x - disc[0], (y - disc[1]) * disc[3]
    cover = jnp.clip((disc[2] - jnp.sqrt(across * across + away * away + 1e-9)) * 0.85 + 0.5, 0, 1)
    return Layer(cover, cover * _BASE_GREY)


class Thing(NamedTuple):
    """The object, in coordinates in which it reaches from -1 to 1.

    Attributes:
      front: Whether it is in front of the arm.
      tall: Its half height in the world.
      squares: 1 / half width^2 and 1 / half height^2.
      lamp: What a normal is multiplied with for the cosine to the light, `[3]`.
      origin: The camera, `[3]`.
      rays: Of the direction to a pixel: per x, per y, and constant, `[3, 3]`.
      slopes: The same of 1 / t at each plane, `[8, 3]`.
      behind: 0 for planes that face the camera, else a large number, `[8]`.
      lights: Brightness of each plane, `[8]`.
      quadric: `[4]`.
    """

    front: jax.Array
    tall: jax.Array
    squares: jax.Array
    lamp: jax.Array
    origin: jax.Array
    rays: jax.Array
    slopes: jax.Array
    behind: jax.Array
    lights: jax.Array
    quadric: jax.Array


def object_of(shape: jax.Array, size: jax.Array, scene: Scene) -> Thing:
    """The object of a shape, int32, and a size, both in classes."""
    grow = _SMALL + (1 - _SMALL) * jnp.clip(size, 0, 1)
    extent = grow * np.array([_HALF_WIDTH, _HALF_HEIGHT, _HALF_WIDTH], np.float32)
    turned = scene.lean / extent[:, None]
    axes = turned @ scene.axes
    origin = axes @ scene.position - turned @ (_JOINT + _REACH * scene.lean[1])
    rays = axes * np.array([1, 1, _FOCAL], np.float32)
    table = jnp.asarray(_SHAPES)[shape]
    planes, quadric = table[:24].reshape(8, 3), table[24:]
    away = 1 - planes @ origin
    squares, lamp = 1 / extent[:2] ** 2, axes @ scene.light
    # All of the arm is on the other side of the plane of the object's lower end, so that one is in
    # front of the other everywhere.
    return Thing(
        front=origin[1] > -1,
        tall=extent[1],
        squares=squares,
        lamp=lamp,
        origin=origin,
        rays=rays,
        slopes=(planes @ rays) / away[:, None],
        behind=jnp.where(away < 0, 0.0, _FAR),
        lights=_lit(planes.T, squares, lamp),
        quadric=quadric,
    )


def _lit(
    normal: jax.Array | tuple[jax.Array, ...], squares: jax.Array, lamp: jax.Array
) -> jax.Array:
    """Brightness under one light from far away; the root stands for gamma (0.48, if fitted)."""
    x, y, z = normal
    length = jax.lax.rsqrt((x * x + z * z) * squares[0] + y * y * squares[1] + 1e-12)
    return jnp.sqrt(jnp.clip((x * lamp[0] + y * lamp[1] + z * lamp[2]) * length, 0, 1))


def draw_object(thing: Thing, x: jax.Array, y: jax.Array) -> Layer:
    """Of four rays through every pixel.

    What rays cross is described by s = 1 / t. At a plane it is linear in the pixel's position, and
    at the quadric it solves an equation of which the camera's position alone gives the leading
    coefficient, so that no ray needs a division.
    """
    x, y = x + _SAMPLES[0], y + _SAMPLES[1]
    dx, dy, dz = (ray[0] * x + ray[1] * y + ray[2] for ray in thing.rays)
    (ox, oy, oz), (q0, q1, q2, flat) = thing.origin, thing.quadric

    # a + 2 b s + c s^2 <= 0 inside. From inside the cone's other half, c < 0, only the smaller root
    # is on the cone; the formula for the nearer root gives it as well.
    tangent = q1 / 2 + q2 * oy
    a = dx * dx + dz * dz - q2 * dy * dy
    b = ox * dx + oz * dz - tangent * dy
    c = ox * ox + oz * oz - q0 - (q1 + q2 * oy) * oy
    square, per = b * b - a * c, 1 / jnp.where(jnp.abs(c) < 1e-6, 1e-6, c)
    root = jnp.sqrt(jnp.maximum(square, 0))
    enter = jnp.where(square > 0, (root - b) * per, -_FAR)
    leave = jnp.where(c > 0, (-root - b) * per, 0.0)
    normal = (dx + ox * enter, -tangent * enter - q2 * dy, dz + oz * enter)
    light = _lit(normal, thing.squares, thing.lamp)
    enter = jnp.where(flat > 0, _FAR, enter)
    leave = jnp.where(flat > 0, 0.0, jnp.maximum(leave, 0))

    for slope, behind, lit in zip(thing.slopes, thing.behind, thing.lights, strict=True):
        s = slope[0] * x + slope[1] * y + slope[2]
        leave = jnp.maximum(leave, s + (behind - _FAR))
        s = s + behind
        light = jnp.where(s < enter, lit, light)
        enter = jnp.minimum(enter, s)
    hit = enter > leave
    return Layer(hit.astype(jnp.float32).mean(0), jnp.where(hit, light, 0.0).mean(0))
