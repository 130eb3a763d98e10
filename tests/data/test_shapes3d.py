import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solids import Frame, ball, capsule, cube, cylinder

from vaejax.data.protocols import Masked
from vaejax.data.redrawn import shapes3d
from vaejax.data.redrawn.raycast import Rays, Vec, camera, is_hit
from vaejax.data.redrawn.source import Redrawn
from vaejax.data.sizes import sample_factors

SIZES = [factor.size for factor in shapes3d.FACTORS]
FLOOR_HUE, WALL_HUE, OBJECT_HUE, SCALE, SHAPE, ORIENTATION = range(6)
CUBE, CYLINDER, BALL, CAPSULE = range(4)
SKY = np.float32([153, 226, 249]) / 255


@jax.jit
@jax.vmap
def _draw_and_segment(factors):
    return shapes3d.draw(factors), shapes3d.segment(factors)


def pictures(factors):
    """Images and masks of any number of factor vectors, by one compiled program."""
    factors = np.asarray(factors, np.float32)
    images, masks = [], []
    for start in range(0, len(factors), 64):
        part = factors[start : start + 64]
        padded = np.concatenate([part, np.repeat(part[-1:], 64 - len(part), axis=0)])
        image, mask = jax.tree.map(np.asarray, _draw_and_segment(padded))
        images.append(image[: len(part)])
        masks.append({name: m[: len(part)] for name, m in mask.items()})
    return np.concatenate(images), {n: np.concatenate([m[n] for m in masks]) for n in masks[0]}


def some_factors(n=64, seed=3):
    return np.array(sample_factors(jax.random.key(seed), n, SIZES), np.float32)


def source(image_size=64):
    return Redrawn(
        "shapes3d", shapes3d.FACTORS, shapes3d.draw, shapes3d.segment, 3, image_size=image_size
    )


def grid(scales, shapes, orientations):
    rows = list(itertools.product(scales, shapes, orientations))
    return np.array([[0, 3, 6, *row] for row in rows], np.float32)


def test_metadata():
    data = source()
    assert isinstance(data, Masked)
    assert [factor.name for factor in data.factors] == [
        "floor_hue",
        "wall_hue",
        "object_hue",
        "scale",
        "shape",
        "orientation",
    ]
    assert [factor.name for factor in data.factors if factor.categorical] == ["shape"]
    assert len(data) == 480_000
    assert data.image_shape == (64, 64, 3)


def test_images_are_finite_in_the_unit_interval_and_masks_part_the_picture():
    images, masks = pictures(some_factors(256))
    assert images.shape == (256, 64, 64, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() == 1
    assert list(masks) == ["floor", "object", "shadow", "sky", "walls"]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)
    assert all(mask.any((1, 2)).all() for mask in masks.values())


def test_mean_colour_is_near_that_of_the_published_images():
    images, _ = pictures(some_factors(1024))
    np.testing.assert_allclose(images.mean((0, 1, 2)), [0.5026, 0.5788, 0.6034], atol=0.015)


@pytest.mark.parametrize(
    ("factor", "names"),
    [(FLOOR_HUE, {"floor", "shadow"}), (WALL_HUE, {"walls"}), (OBJECT_HUE, {"object"})],
)
def test_a_hue_colours_its_own_pixels_only(factor, names):
    before = some_factors()
    after = before.copy()
    after[:, factor] = (before[:, factor] + 5) % 10
    (first, masks), (second, moved) = pictures(before), pictures(after)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, moved[name])
        changed = (first != second).any(-1)[mask]
        assert changed.all() if name in names else not changed.any()


def test_colours_are_hues_times_a_brightness():
    factors = some_factors()
    images, masks = pictures(factors)
    np.testing.assert_array_equal(
        images[masks["sky"]], np.broadcast_to(SKY, (masks["sky"].sum(), 3))
    )
    pure = np.array([colorsys.hsv_to_rgb(k / 10, 1, 1) for k in range(10)])
    for name, column in [("floor", FLOOR_HUE), ("shadow", FLOOR_HUE), ("walls", WALL_HUE)]:
        for image, mask, k in zip(images, masks[name], factors[:, column], strict=True):
            colours, hue = image[mask], pure[int(k)]
            brightness = colours.max(1, keepdims=True)
            assert brightness.min() > 0.3
            dim = brightness[:, 0] < 1
            np.testing.assert_allclose(colours[dim], (brightness * hue)[dim], atol=1e-6)
            # Light beyond full brightness goes into the weaker channels, but never a missing one.
            assert (colours >= brightness * hue - 1e-6).all()
            assert (colours[:, hue < 1e-6] < 1e-6).all()


def test_shadows_are_dark_and_fall_to_the_right():
    images, masks = pictures(grid([0, 7], range(4), [0, 7, 14]))
    columns = np.arange(64)
    for image, shadow, thing, floor in zip(
        images, masks["shadow"], masks["object"], masks["floor"], strict=True
    ):
        assert image[shadow].max() < 0.5 * image[floor].max()
        assert (shadow.sum(0) @ columns) / shadow.sum() > (thing.sum(0) @ columns) / thing.sum() + 1


@pytest.fixture(scope="module")
def cast():
    """Objects and shadows over the whole canvas, by the solids one by one, and as drawn."""
    factors = grid([0, 3.5, 7], range(4), [0, 3, 7, 10.5, 14])
    lamp = shapes3d._TO_LAMP

    @jax.jit
    @jax.vmap
    def reference(row):
        angle = jnp.radians(-30 + 60 * row[ORIENTATION] / 14)
        size = 0.75 + 0.5 * row[SCALE] / 7
        eye = Vec(4 * jnp.sin(angle), shapes3d._EYE, 4 * jnp.cos(angle))
        rays = camera(eye, Vec(0.0, shapes3d._TARGET, 0.0), shapes3d._FIELD)
        floor = rays.at(-shapes3d._EYE / jnp.minimum(rays.direction.y, -1e-3))
        lit = Rays(floor, lamp)
        found = []
        for kind in range(4):
            radius, half = size * shapes3d._RADII[kind], size * shapes3d._HALVES[kind]
            middle = Vec(0.0, half + (radius if kind >= BALL else 0.0), 0.0)
            solid = [
                cube,
                cylinder,
                ball,
                lambda r: capsule(r, shapes3d._HALVES[CAPSULE] / shapes3d._RADII[CAPSULE]),
            ][kind]
            frame = Frame(middle, size=Vec(radius, half if kind < BALL else radius, radius))
            found.append(jnp.stack([is_hit(solid(frame.local(r))) for r in (rays, lit)]))
        return jnp.stack(found)[row[SHAPE].astype(jnp.int32)]

    return factors, np.asarray(reference(factors)), pictures(factors)[1]


def test_objects_are_the_solids_and_their_windows_cut_nothing_off(cast):
    _, reference, masks = cast
    # Rounding may place a pixel on the very outline to either side.
    assert (reference[:, 0] != masks["object"]).sum((1, 2)).max() <= 3


def test_shadows_are_where_the_object_hides_the_lamp(cast):
    _, reference, masks = cast
    ground = masks["floor"] | masks["shadow"]
    assert ((reference[:, 1] & ground) != masks["shadow"]).sum((1, 2)).max() <= 3


def test_sizes_in_the_picture():
    factors = grid([0, 7], range(4), [7])
    masks = pictures(factors)[1]["object"].reshape(2, 4, 64, 64)
    width = masks.any(2).sum(-1)
    height = masks.any(3).sum(-1)
    # Small and large: measured on the published thumbnails to a pixel or two.
    np.testing.assert_allclose(width[:, BALL], [18, 30], atol=1)
    np.testing.assert_allclose(height[:, BALL], [18, 30], atol=1)
    np.testing.assert_allclose(width[:, CUBE], [16, 29], atol=2)
    np.testing.assert_allclose(width[:, CAPSULE], [13, 23], atol=1)
    np.testing.assert_allclose(height[:, CAPSULE], [26, 46], atol=2)
    assert (np.diff(masks.sum((2, 3)), axis=0) > 0).all()


def test_balls_and_capsules_touch_the_floor_at_one_row_at_every_scale():
    masks = pictures(grid(range(8), [BALL, CAPSULE], [0, 7, 14]))[1]["object"]
    lowest = 63 - masks.any(2)[:, ::-1].argmax(1)
    assert set(lowest) <= {52, 53}


def test_scale_and_shape_change_nothing_but_the_object_and_its_shadow():
    factors = some_factors()
    for factor in (SCALE, SHAPE):
        moved = factors.copy()
        moved[:, factor] = (factors[:, factor] + 2) % SIZES[factor]
        (first, masks), (second, after) = pictures(factors), pictures(moved)
        covered = masks["object"] | masks["shadow"] | after["object"] | after["shadow"]
        changed = (first != second).any(-1)
        assert not changed[~covered].any()
        assert changed.any((1, 2)).all()


def test_orientation_turns_the_room_about_the_object():
    images, masks = pictures(grid([3], [BALL], range(15)))
    assert (masks["object"] == masks["object"][7]).all((1, 2)).sum() >= 13
    # As the camera goes from left to right, the dark wall on the right leaves and that on the left
    # enters: the back wall is what is bright.
    brightness = images[:, 24].max(-1)
    bright = brightness > 0.88
    first, last = bright.argmax(1), 63 - bright[:, ::-1].argmax(1)
    assert (np.diff(first) >= 0).all()
    assert (np.diff(last) >= 0).all()
    assert first[0] == 0
    assert last[-1] == 63
    assert 15 < first[-1] < 28
    assert 35 < last[0] < 48
    # Seen straight on the top of the back wall is level.
    tops = masks["sky"].sum(1)
    assert np.ptp(tops[7]) == 0
    assert np.ptp(tops[0]) > 2


def test_values_between_classes_lie_between():
    centre = np.array([2.5, 3.5, 5.5, 3.5, 2, 5.5], np.float32)
    moved = np.repeat(centre[None], 11, 0)
    for i, factor in enumerate((FLOOR_HUE, WALL_HUE, OBJECT_HUE, SCALE, ORIENTATION)):
        moved[1 + 2 * i, factor] -= 0.5
        moved[2 + 2 * i, factor] += 0.5
    images, masks = pictures(moved)
    assert all((image != images[0]).any() for image in images[1:])
    between = (images[0] >= np.minimum(images[1], images[2]) - 1e-6) & (
        images[0] <= np.maximum(images[1], images[2]) + 1e-6
    )
    assert between.all()
    areas = masks["object"].sum((1, 2))
    assert areas[7] < areas[0] < areas[8]


def test_shapes_are_rounded_to_a_class():
    factors = np.repeat(some_factors(1), 4, 0)
    factors[:, SHAPE] = [1, 1.4, 0.6, 1.6]
    images, _ = pictures(factors)
    np.testing.assert_array_equal(images[1:3], images[[0, 0]])
    assert (images[3] != images[0]).any()


def test_values_outside_the_range_are_clipped():
    low, high = np.zeros(6), np.array(SIZES) - 1
    images, _ = pictures(np.stack([low, low - 3.3, high, high + 7.7]))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[2], images[3])


def test_shapes_differ():
    images, _ = pictures(grid([4], range(4), [5]))
    for first, second in itertools.combinations(images, 2):
        assert (first != second).any(-1).sum() > 40


def test_transformations_agree():
    factors = some_factors(3)
    together, _ = pictures(factors)
    again, _ = pictures(factors)
    np.testing.assert_array_equal(together, again)
    alone = jax.jit(source().render)
    for row, image in zip(factors, together, strict=True):
        # Programs that are fused differently round differently, which moves few pixels of outlines.
        assert (np.abs(alone(row) - image) > 1e-4).any(-1).sum() <= 3
        np.testing.assert_array_equal(alone(row), alone(row.astype(np.int32)))


def test_half_size_batches():
    data = source(32)
    images, factors = jax.jit(data.batch, static_argnums=1)(jax.random.key(0), 16)
    assert images.shape == (16, 32, 32, 3)
    assert factors.dtype == jnp.int32
    full, masks = pictures(factors)
    blocks = full.reshape(16, 32, 2, 32, 2, 3).mean((2, 4))
    assert (np.abs(images - blocks) > 1e-4).any(-1).sum() <= 3
    half = jax.jit(data.masks)(factors[0])
    assert half.keys() == masks.keys()
    np.testing.assert_allclose(sum(half.values()), 1)
