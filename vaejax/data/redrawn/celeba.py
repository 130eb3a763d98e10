"""Faces in the manner of CelebA, drawn in JAX, with sixteen of its attributes as known factors.

The published dataset (Liu et al. 2015) is photographs of people, each labelled with 40 binary
attributes. These are drawings of one parametric face: attributes have the published names, order
and number of classes, and that is all they share with it. Two factors of pose, which CelebA does
not label, come after them.

What the attributes draw when they are 1:

*   `Bald`: no hair on the head.
*   `Bangs`: hair down to the eyebrows, also from under a hat.
*   `Black_Hair`, `Blond_Hair`, `Gray_Hair`: the colour of hair, eyebrows, mustache and beard. It is
    brown if none of them is 1, and the mean colour if several are: eight colours.
*   `Bushy_Eyebrows`: thick ones.
*   `Eyeglasses`: dark rims.
*   `Male`: a wide jaw, neck and shoulders, and short hair; otherwise it is long, over the ears.
*   `Mouth_Slightly_Open`: lips apart and teeth between them.
*   `Mustache`: hair on the upper lip.
*   `No_Beard`: no hair along the jaw and on the chin.
*   `Pale_Skin`: light skin.
*   `Smiling`: a wide mouth with raised corners.
*   `Wearing_Hat`: a hat down to the middle of the forehead.
*   `Wearing_Lipstick`: red lips.
*   `Young`: no lines on the forehead, under the eyes and from nose to mouth.

Each changes the image whatever the others are, but for `Bangs` of the bald, and only the parts
that `PARTS_OF` names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.data.protocols import Factor
from vaejax.data.sizes import CANVAS

CHANNELS = 3

PARTS = (
    *("background", "hair", "neck", "clothes", "face", "ears", "nose"),
    *("mustache", "beard", "mouth", "eyes", "eyebrows", "eyeglasses", "hat"),
)
"""What `segment` tells apart."""

_HAIR_COLOUR = ("hair", "eyebrows", "mustache", "beard")
PARTS_OF = {
    "Bald": ("hair",),
    "Bangs": ("hair",),
    "Black_Hair": _HAIR_COLOUR,
    "Blond_Hair": _HAIR_COLOUR,
    "Bushy_Eyebrows": ("eyebrows",),
    "Eyeglasses": ("eyeglasses",),
    "Gray_Hair": _HAIR_COLOUR,
    "Male": ("hair", "face", "neck", "clothes", "beard"),
    "Mouth_Slightly_Open": ("mouth",),
    "Mustache": ("mustache",),
    "No_Beard": ("beard",),
    "Pale_Skin": ("face", "ears", "neck", "nose", "mouth"),
    "Smiling": ("mouth",),
    "Wearing_Hat": ("hat",),
    "Wearing_Lipstick": ("mouth",),
    "Young": ("face",),
}
"""The parts that each attribute changes. No pixel changes that such a part covers neither with the
attribute nor without it; of all change, over random faces, less than 1 % lies further than one
pixel from where `segment` says that they are."""

FACTORS = (
    *(Factor(attribute, 2, categorical=True) for attribute in PARTS_OF),
    Factor("yaw", 15),
    Factor("light", 9),
)
"""Sixteen of CelebA's 40 attributes in the published order, then two of pose."""


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32)[:, None, None]


_BACKGROUND = _rgb(0.62, 0.56, 0.51)
_SKIN, _PALE = _rgb(0.84, 0.58, 0.44), _rgb(0.97, 0.84, 0.76)
_BROWN, _BLACK = _rgb(0.36, 0.21, 0.12), _rgb(0.08, 0.07, 0.08)
_BLOND, _GRAY = _rgb(0.93, 0.74, 0.38), _rgb(0.70, 0.71, 0.74)
_LIPS, _LIPSTICK = _rgb(0.68, 0.28, 0.28), _rgb(0.80, 0.06, 0.16)
_MOUTH, _TEETH = _rgb(0.22, 0.05, 0.05), _rgb(0.96, 0.94, 0.90)
_WHITE, _IRIS, _LASH = _rgb(0.95, 0.94, 0.92), _rgb(0.20, 0.13, 0.09), _rgb(0.16, 0.10, 0.08)
_CLOTHES, _HAT, _RIM = _rgb(0.30, 0.36, 0.46), _rgb(0.20, 0.38, 0.42), _rgb(0.10, 0.09, 0.10)

# Pixels, from the top left corner. Depths are in front of the axis that the head turns about.
_AXIS = 32.0
_DEPTH = 13.0
_EYE, _EYE_APART, _BROW = 31.5, 6.7, 26.4
_MOUTH_Y, _CHIN = 46.3, 54.0

_HIDDEN = 1e3
"""What is taken from the distances of a shape that is absent."""


class Face(NamedTuple):
    """One face: attributes as 0 or 1, pose, and what follows from them.

    Attributes:
      on: Attribute name to 0 or 1.
      sin: Of the yaw, positive when the face looks to the right of the image.
      cos: Of the yaw.
      light: How much more light comes from the right than from the left.
      skin: Its colour, `[3, 1, 1]`.
      hair: Likewise.
    """

    on: dict[str, jax.Array]
    sin: jax.Array
    cos: jax.Array
    light: jax.Array
    skin: jax.Array
    hair: jax.Array


class Layer(NamedTuple):
    """A shape and its paint, on a band of `[h, 64]` pixels.

    Attributes:
      part: One of `PARTS`.
      cover: Share of each pixel that it covers.
      colour: Its paint, `[3, 1, 1]`.
      shade: What multiplies the paint.
    """

    part: str
    cover: jax.Array
    colour: jax.Array | np.ndarray
    shade: jax.Array | float = 1.0


class Band(NamedTuple):
    """Some whole rows of a face, and what several layers need of them.

    Attributes:
      face: Whose.
      x: `[64]` centres of pixels, from the axis of the head.
      y: `[h, 1]` centres of pixels, from the top of the image.
      eye: `[64]` distance from the nearer eye, in pixels of an unturned face, positive outwards.
      shade: `[h, 64]` light on the head.
      skull: `[h, 64]` signed distance to the outline of the head without ears.
      mane: `[h, 64]` signed distance to the outline of hair, as if no face interrupted it.
    """

    face: Face
    x: jax.Array
    y: jax.Array
    eye: jax.Array
    shade: jax.Array
    skull: jax.Array
    mane: jax.Array

    def across(self, half_width: float | jax.Array, depth: float = _DEPTH) -> jax.Array:
        """`[64]` place across a feature in the middle of the face: -1 and 1 at its ends.

        The division by a traced number is what makes XLA compute this once a column: cheaper
        operations would be fused into their uses and repeated in every row and channel.
        """
        return (self.x - depth * self.face.sin) / (half_width * self.face.cos)


def _describe(factors: jax.Array) -> Face:
    """The face of classes `[18]`."""
    values = dict(zip((factor.name for factor in FACTORS), factors, strict=True))
    yaw, light = values.pop("yaw"), values.pop("light")
    on = {name: (value > 0.5).astype(jnp.float32) for name, value in values.items()}
    angle = jnp.deg2rad(30.0) * (jnp.clip(yaw, 0, 14) / 7 - 1)
    side = jnp.deg2rad(60.0) * (jnp.clip(light, 0, 8) / 4 - 1)

    chosen = on["Black_Hair"] * _BLACK + on["Blond_Hair"] * _BLOND + on["Gray_Hair"] * _GRAY
    count = on["Black_Hair"] + on["Blond_Hair"] + on["Gray_Hair"]
    hair = jnp.where(count == 0, _BROWN, chosen / jnp.maximum(count, 1))
    skin = jnp.where(on["Pale_Skin"] > 0, _PALE, _SKIN)
    return Face(on, jnp.sin(angle), jnp.cos(angle), 0.45 * jnp.sin(side), skin, hair)


def _cover(distance: jax.Array) -> jax.Array:
    """Share of a pixel inside a shape, from the signed distance of its centre to the outline."""
    t = jnp.clip(distance + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _square(x: jax.Array) -> jax.Array:
    return x * x


def _beyond(x: jax.Array, line: float) -> jax.Array:
    return jnp.maximum(x - line, 0)


def _band(face: Face, top: int, bottom: int) -> Band:
    x = jnp.arange(CANVAS) + 0.5 - _AXIS
    y = (jnp.arange(top, bottom) + 0.5)[:, None]
    # Light from the front and above on an ellipsoid, and from one side.
    down = (y - 31) / 25
    front = jnp.sqrt(jnp.maximum(1 - _square(x / 19) - _square(down), 0.02))
    shade = 0.58 + 0.44 * front - 0.12 * down + face.light * (x / 19)
    return Band(face, x, y, _eye(face, x), shade, _skull(face, x, y), _mane(face, x, y))


def _eye(face: Face, x: jax.Array) -> jax.Array:
    # Turning moves the eyes around the head, where they are seen at another width each.
    depth = 0.9 * _DEPTH
    middle, apart = depth * face.sin, _EYE_APART * face.cos
    slant = _EYE_APART / depth * face.sin
    side = jnp.where(x < middle, -1, 1)
    return (side * (x - middle) - apart) / (face.cos - side * slant)


def _skull(face: Face, x: jax.Array, y: jax.Array) -> jax.Array:
    male = face.on["Male"]
    # The head is longer than wide.
    back = (x + 4 * face.sin) / (16.3 + 4 * _square(face.sin))
    cranium = 1 - _square((y - 26) / 17.5) - back * back
    # The jaw narrows towards the chin, a man's less.
    down = (y - 31) / (_CHIN - 31)
    lower = _square(jnp.maximum(down, 0))
    width = (14.4 + 0.9 * male) * (1 - (0.24 - 0.12 * male) * lower)
    rounding = _square(down) - 0.3 * male * lower * (1 - lower)
    jaw = 1 - rounding - _square((x - 6.5 * face.sin) / face.cos) * (_square(face.cos / width))
    return 8.5 * jnp.maximum(cranium, jaw)


def _mane(face: Face, x: jax.Array, y: jax.Array) -> jax.Array:
    bald, male = face.on["Bald"], face.on["Male"]
    down = _beyond(y, 25)
    width = 18.2 + (1 - male) * 0.0032 * down * (46 - down)
    ends = down * (male / 11 + (1 - male) / 37)
    height = _square(_beyond(-y, -25) / 19.5) + _square(_square(ends))
    side = (x + 2.5 * face.sin) / (1 + 0.35 * _square(face.sin))
    return 9 * (1 - height - side * side / _square(width)) - _HIDDEN * bald


def _background(b: Band) -> Iterator[Layer]:
    yield Layer("background", jnp.ones_like(b.shade), _BACKGROUND, 1.12 - 0.006 * b.y)


def _hair_behind(b: Band) -> Iterator[Layer]:
    behind = jnp.minimum(b.mane, b.y - 30 - _HIDDEN * b.face.on["Male"])
    yield Layer("hair", _cover(behind), 0.55 * b.face.hair, b.shade)


def _body(b: Band) -> Iterator[Layer]:
    male, beside = b.face.on["Male"], jnp.abs(b.x)
    shoulder = b.y - 56.4 - 0.013 * _square(_beyond(beside, 8)) - 1.2 * (1 - male)
    yield Layer("clothes", _cover(shoulder), _CLOTHES, 0.75 + 0.3 * b.shade)
    neck = jnp.minimum(jnp.minimum(7.4 + 2 * male - beside, b.y - 42), 62 - b.y - 0.5 * beside)
    yield Layer("neck", _cover(neck), b.face.skin, 0.14 + 0.62 * b.shade)


def _head(b: Band) -> Iterator[Layer]:
    out = (jnp.abs(b.x) - 16.6 * b.face.cos) / (2.7 * b.face.cos)
    ear = 2.2 * (1 - _square((b.y - 33) / 4.6) - out * out)
    yield Layer("ears", _cover(ear), 0.9 * b.face.skin, b.shade)
    yield Layer("face", _cover(b.skull), b.face.skin, b.shade)


def _wrinkle(b: Band, distance: jax.Array) -> Layer:
    cover = _cover(distance - _HIDDEN * b.face.on["Young"])
    return Layer("face", cover, 0.62 * b.face.skin, b.shade)


def _forehead_lines(b: Band) -> Iterator[Layer]:
    x = b.across(8.5)
    arch = b.y - 22.2 + 0.7 * x * x
    yield _wrinkle(b, jnp.minimum(0.3 - jnp.abs(jnp.abs(arch) - 1.4), 6 - 6 * x * x))


def _eye_bags(b: Band) -> Iterator[Layer]:
    x = b.eye / 4.2
    yield _wrinkle(b, 0.75 - 0.7 * x * x - jnp.abs(b.y - 35.4 + 1.3 * x * x))


def _folds(b: Band) -> Iterator[Layer]:
    x = jnp.abs(b.across(4.6)) * 4.6
    aside = 0.45 - jnp.abs(x - 4.6 - 0.42 * (b.y - 40))
    yield _wrinkle(b, jnp.minimum(aside, 4.2 - jnp.abs(b.y - 44.2)))


def _nose(b: Band) -> Iterator[Layer]:
    down = jnp.clip((b.y - 28) / 12, 0, 1)
    x = b.across(1.0) - 4 * b.face.sin * down
    width = 1.4 + 2.3 * down * down
    inside = width - jnp.abs(x)
    lit = (0.5 * b.face.light - 0.1 * b.face.sin) / width
    shade = b.shade + lit * x + 0.05 * inside - 0.03
    nose = jnp.minimum(inside, jnp.minimum(b.y - 28, 41.2 - b.y))
    yield Layer("nose", _cover(nose), b.face.skin, shade)
    x = (jnp.abs(b.across(1.9, _DEPTH + 4)) - 1) * (1.9 / 1.5)
    hole = 1 - _square((b.y - 40.9) / 1.1) - x * x
    yield Layer("nose", _cover(hole), 0.5 * b.face.skin, b.shade)


def _beard(b: Band) -> Iterator[Layer]:
    x = b.across(13.0, 0.8 * _DEPTH)
    above = 7 - 7 * _square((b.y - 36.5) / 13.4) + _HIDDEN * b.face.on["No_Beard"]
    beard = jnp.minimum(jnp.minimum(b.skull + 0.6, 7 * x * x - above), b.y - 34)
    yield Layer("beard", _cover(beard), 0.8 * b.face.hair, b.shade)


def _mouth(b: Band) -> Iterator[Layer]:
    names = ("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick")
    smile, gap, red = (b.face.on[name] for name in names)
    x = b.across(5.9 + 1.5 * smile)
    lens = 1 - x * x
    height = jnp.abs(b.y - _MOUTH_Y - 0.5 * (smile + gap) + (2.7 * smile - 0.4) * x * x)
    colour = jnp.where(red > 0, _LIPSTICK, (b.face.skin + _LIPS) / 2)
    lips = (2.3 + 1.0 * gap) * lens - height
    yield Layer("mouth", _cover(lips), colour, 0.25 + 0.75 * b.shade)
    inside = (0.55 + 1.35 * gap) * lens - height
    yield Layer("mouth", _cover(inside), _MOUTH)
    teeth = (1.1 + _HIDDEN) * gap - _HIDDEN - 1.1 * x * x - height
    yield Layer("mouth", _cover(teeth), _TEETH)


def _mustache(b: Band) -> Iterator[Layer]:
    x = b.across(7.2)
    hidden = _HIDDEN * (1 - b.face.on["Mustache"])
    hair = 1.7 - hidden - 1.7 * x * x - jnp.abs(b.y - 43.2 - 2.2 * x * x)
    yield Layer("mustache", _cover(hair), 0.75 * b.face.hair, b.shade)


def _eyes_and_eyebrows(b: Band) -> Iterator[Layer]:
    y, around = b.y - _EYE, b.eye * b.eye
    lens = 2.1 - 2.1 / 16 * around
    white = lens - jnp.abs(y)
    yield Layer("eyes", _cover(white), _WHITE, 0.3 + 0.7 * b.shade)
    iris = 1 - y * y / 3.6 - around / 3.6
    yield Layer("eyes", _cover(jnp.minimum(iris, white)), _IRIS)
    lash = jnp.minimum(0.5 - jnp.abs(y + lens), 1 + lens)
    yield Layer("eyes", _cover(lash), _LASH)
    thick = 0.8 + 1.3 * b.face.on["Bushy_Eyebrows"]
    x = b.eye / 4.9
    hair = thick - thick * _square(x * x) - jnp.abs(b.y - _BROW - 1.3 * x * x)
    yield Layer("eyebrows", _cover(hair), 0.62 * b.face.hair, b.shade)


def _hair(b: Band) -> Iterator[Layer]:
    x = (b.x - 6.5 * b.face.sin) / b.face.cos
    width = 14.2 - 0.25 * _beyond(b.y, 44)
    opening = 7 - 7 * _square(_beyond(-b.y, -35) / 18.5)
    opening = opening - 7 * x * x * _square(b.face.cos / width)
    fringe = b.y - 23.2 + _HIDDEN * (1 - b.face.on["Bangs"]) + 0.012 * x * x
    hair = jnp.minimum(b.mane, -jnp.minimum(opening, fringe))
    sheen = 0.2 * jnp.maximum(1 - _square((b.y - 13 - 0.02 * b.x * b.x) / 4), 0)
    yield Layer("hair", _cover(hair), b.face.hair, b.shade + sheen)


def _eyeglasses(b: Band) -> Iterator[Layer]:
    y = b.y - _EYE
    wide = _square(b.eye / 5.4)
    rim = 0.8 - 1.35 * jnp.abs(wide * wide + (_square(_square((y - 0.3) / 4.3)) - 1))
    ends = jnp.minimum(jnp.abs(b.eye) - 5.2, 16.5 - jnp.abs(b.x))
    bar = jnp.minimum(0.7 - jnp.abs(y + 1), ends)
    rims = jnp.maximum(rim, bar) - _HIDDEN * (1 - b.face.on["Eyeglasses"])
    yield Layer("eyeglasses", _cover(rims), _RIM)


def _hat(b: Band) -> Iterator[Layer]:
    crown = 9 * (1 - _square(b.x / 19) - _square((b.y - 19) / 17))
    brim = 2.6 * (1 - _square(b.x / 24) - _square((b.y - 18.4) / 2.6))
    shape = jnp.maximum(jnp.minimum(crown, 19 - b.y), brim)
    ribbon = 1 - 0.45 * _cover(1.5 - jnp.abs(b.y - 14.2 + 0.003 * b.x * b.x))
    yield Layer("hat", _cover(shape) * b.face.on["Wearing_Hat"], _HAT, b.shade * ribbon)


_LAYERS: tuple[tuple[int, int, Callable[[Band], Iterator[Layer]]], ...] = (
    (0, 64, _background),
    (29, 64, _hair_behind),
    (41, 64, _body),
    (7, 56, _head),
    (19, 25, _forehead_lines),
    (33, 38, _eye_bags),
    (38, 50, _folds),
    (27, 43, _nose),
    (33, 57, _beard),
    (41, 52, _mouth),
    (40, 48, _mustache),
    (23, 36, _eyes_and_eyebrows),
    (0, 64, _hair),
    (25, 38, _eyeglasses),
    (0, 23, _hat),
)
"""First row, row after the last, and painter of what is there; from the back to the front."""

_BANDS = (0, 23, 38, 52, 64)
"""Rows where bands begin and end. In each, only layers that reach it are computed."""


def _layers(face: Face, top: int, bottom: int) -> list[Layer]:
    band = _band(face, top, bottom)
    return [
        layer
        for first, last, paint in _LAYERS
        if first < bottom and top < last
        for layer in paint(band)
    ]


def draw(factors: jax.Array) -> jax.Array:
    """The image `[64, 64, 3]` of classes `[18]`, in [0, 1].

    Class `k` of an attribute means that it is there (1) or not (0); values in between are rounded.
    Class `k` of the pose means, for values between classes too:

    *   `yaw`: the head turned by `30 (k / 7 - 1)` degrees to the right of the image.
    *   `light`: more light from the left (0) to more light from the right (8).

    The face is symmetric: `(yaw, light)` gives the mirror image of `(14 - yaw, 8 - light)`.

    >>> jax.eval_shape(draw, jax.ShapeDtypeStruct((18,), jnp.float32)).shape
    (64, 64, 3)
    """
    face = _describe(factors)
    bands = [_layers(face, top, bottom) for top, bottom in itertools.pairwise(_BANDS)]
    planes = jnp.concatenate([_blend(layers) for layers in bands], axis=1)
    return jnp.stack(list(planes), axis=-1)


def _blend(layers: list[Layer]) -> jax.Array:
    """The planes `[3, h, 64]` of what is seen of layers from back to front."""
    planes: jax.Array | float = 0.0
    for layer in layers:
        planes = planes + layer.cover * (layer.colour * layer.shade - planes)
    return jnp.clip(planes, 0, 1)


def segment(factors: jax.Array) -> dict[str, jax.Array]:
    """Where each of `PARTS` is seen, bool `[64, 64]`: every pixel is of exactly one part.

    A pixel belongs to the foremost part that covers more than half of it.
    """
    face = _describe(factors)
    bands = []
    for top, bottom in itertools.pairwise(_BANDS):
        label = jnp.zeros((bottom - top, CANVAS), jnp.int32)
        for layer in _layers(face, top, bottom):
            label = jnp.where(layer.cover > 0.5, PARTS.index(layer.part), label)
        bands.append(label)
    labels = jnp.concatenate(bands)
    return {part: labels == index for index, part in enumerate(PARTS)}
