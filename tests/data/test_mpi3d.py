"""The redrawn MPI3D: where things are, what each factor changes, and JAX transformations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solids

from vaejax.data import DataError, Masked
from vaejax.data.redrawn import mpi3d, mpi3d_parts, raycast
from vaejax.data.redrawn.source import Redrawn

SIZES = np.array([factor.size for factor in mpi3d.FACTORS])
COLOR, SHAPE, SIZE, HEIGHT, BACKGROUND, HORIZONTAL, VERTICAL = range(7)
CONE, CUBE, CYLINDER, HEXAGONAL, PYRAMID, SPHERE = range(6)
BATCH = 256

_draw = jax.jit(jax.vmap(mpi3d.draw))
_segment = jax.jit(jax.vmap(mpi3d.segment))


def in_batches(compiled, factors):
    """One compilation for any number of factor vectors."""
    factors = np.asarray(factors, np.float32)
    short = -len(factors) % BATCH
    padded = np.concatenate([factors, np.repeat(factors[:1], short, axis=0)])
    parts = [compiled(part) for part in padded.reshape(-1, BATCH, 7)]
    joined = jax.tree.map(lambda *each: np.concatenate(each)[: len(factors)], *parts)
    return joined


def draw(factors):
    return in_batches(_draw, factors)


def masks(factors):
    return in_batches(_segment, factors)


def some_factors(n, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES, (n, 7)).astype(np.float32)


def pairs(n, factor, seed=0):
    """Factor vectors that differ in one factor alone."""
    first = some_factors(n, seed)
    second = first.copy()
    shift = np.random.default_rng(seed + 1).integers(1, SIZES[factor], n)
    second[:, factor] = (first[:, factor] + shift) % SIZES[factor]
    return first, second


def widened(mask, beyond=False):
    """The pixels of a mask and their neighbours: outlines are shared with those."""
    _, high, wide = mask.shape
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), constant_values=beyond)
    shifts = itertools.product((0, 1, 2), repeat=2)
    return np.any([padded[:, i : i + high, j : j + wide] for i, j in shifts], axis=0)


def narrowed(mask):
    return ~widened(~mask, beyond=True)


def changed(first, second):
    return (np.abs(draw(first) - draw(second)) > 1e-6).any(-1)


def assert_within(differs, allowed):
    """Slivers that cover less than half of any pixel are in no mask, but they are rare."""
    assert (differs & ~widened(allowed)).mean() < 2e-4


def test_factors_are_those_published():
    source = Redrawn("mpi3d", mpi3d.FACTORS, mpi3d.draw, mpi3d.segment, mpi3d.CHANNELS, 32)
    assert isinstance(source, Masked)
    assert len(source) == 1_036_800
    assert source.image_shape == (32, 32, 3)
    assert [(factor.name, factor.size, factor.categorical) for factor in source.factors] == [
        ("object_color", 6, True),
        ("object_shape", 6, True),
        ("object_size", 2, False),
        ("camera_height", 3, False),
        ("background_color", 3, True),
        ("horizontal_axis", 40, False),
        ("vertical_axis", 40, False),
    ]
    with pytest.raises(DataError, match="image_size is 48"):
        Redrawn("mpi3d", mpi3d.FACTORS, mpi3d.draw, mpi3d.segment, mpi3d.CHANNELS, 48)


# Centre of the blue pixels (column, row) and how many there are, measured in the published
# animation, whose frames all have a blue object before the sea green ring.
PUBLISHED = [
    ((3, 4, 1, 1, 1, 22, 21), (32.1, 10.3, 89)),
    ((3, 5, 1, 1, 1, 22, 21), (32.4, 7.0, 76)),
    ((3, 3, 1, 1, 1, 22, 21), (32.6, 8.0, 137)),
    ((3, 2, 1, 1, 1, 22, 21), (32.4, 7.9, 126)),
    ((3, 1, 1, 1, 1, 22, 21), (32.0, 7.8, 168)),
    ((3, 0, 1, 1, 1, 22, 21), (32.2, 10.3, 68)),
    ((3, 4, 0, 1, 1, 22, 21), (32.3, 9.6, 43)),
    ((3, 4, 1, 2, 1, 22, 21), (27.9, 12.3, 67)),
    ((3, 4, 1, 0, 1, 22, 21), (29.0, 12.4, 89)),
    ((3, 4, 1, 1, 1, 30, 21), (36.1, 10.5, 37)),
    ((3, 4, 1, 1, 1, 38, 21), (37.1, 19.9, 35)),
    ((3, 4, 1, 1, 1, 17, 21), (28.7, 14.6, 116)),
    ((3, 4, 1, 1, 1, 9, 21), (24.9, 25.4, 92)),
    ((3, 4, 1, 1, 1, 1, 21), (21.5, 39.1, 100)),
    ((3, 4, 1, 1, 1, 22, 37), (38.3, 11.9, 88)),
    ((3, 4, 1, 1, 1, 22, 26), (34.4, 10.3, 95)),
    ((3, 4, 1, 1, 1, 22, 14), (29.7, 10.7, 78)),
    ((3, 4, 1, 1, 1, 22, 2), (28.0, 13.1, 108)),
]


def test_objects_are_where_they_are_in_the_published_frames():
    factors, expected = (np.array(column) for column in zip(*PUBLISHED, strict=True))
    images = draw(factors)
    blue = np.clip(images[..., 2] - images[..., 0] - 0.15, 0, 0.3) / 0.3
    area = blue.sum((1, 2))
    centres = np.arange(64) + 0.5
    column, row = blue.sum(1) @ centres / area, blue.sum(2) @ centres / area
    np.testing.assert_allclose(column, expected[:, 0], atol=0.8)
    np.testing.assert_allclose(row, expected[:, 1], atol=0.6)
    np.testing.assert_allclose(area, expected[:, 2], rtol=0.22)


def test_channel_means_are_near_the_published_ones():
    means = draw(some_factors(2048)).astype(np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(means, [0.2230, 0.2202, 0.2246], atol=7e-4)
    np.testing.assert_allclose(means, [0.2244, 0.2214, 0.2263], atol=0.003)


def test_every_pose_is_drawn_with_values_from_0_to_1():
    poses = np.array(list(itertools.product(range(40), range(40))))
    factors = np.concatenate([some_factors(2 * 1600)[:, :5], np.tile(poses, (2, 1))], axis=1)
    images = draw(np.concatenate([factors[:1600], factors[1600:] + 0.123]))
    assert images.dtype == np.float32
    assert images.min() >= 0  # fails for NaN, too
    assert images.max() <= 1


def test_windows_hold_all_there_is(monkeypatch):
    extremes = [(3,), (CUBE,), (1,), (0, 2), (1,), (0, 19.5, 39), np.linspace(0, 39, 20)]
    factors = np.array(list(itertools.product(*extremes)), np.float32)
    images = draw(factors)
    for name in ("_RING_WINDOW", "_ARM_WINDOW", "_OBJECT_WINDOW"):
        monkeypatch.setattr(mpi3d, name, (64, 64))
    whole = jax.jit(jax.vmap(mpi3d.draw.__wrapped__))(factors)
    np.testing.assert_allclose(images, whole, atol=1e-6)


def test_object_color_changes_only_the_object():
    first, second = pairs(BATCH, COLOR)
    there = masks(first)["object"]
    differs = changed(first, second)
    assert_within(differs, there)
    # Faces without light are black whatever the colour.
    assert differs[there].mean() > 0.9


def test_background_color_changes_only_the_arc():
    first, second = pairs(BATCH, BACKGROUND)
    found = masks(first)
    differs = changed(first, second)
    assert_within(differs, found["arc"])
    assert differs[found.pop("arc")].all()
    for other in found.values():
        assert differs[narrowed(other)].mean() < 1e-2


@pytest.mark.parametrize("factor", [SHAPE, SIZE])
def test_shape_and_size_change_only_where_an_object_is(factor):
    first, second = pairs(BATCH, factor)
    either = masks(first)["object"] | masks(second)["object"]
    differs = changed(first, second)
    assert_within(differs, either)
    assert (differs.sum((1, 2)) > 0).mean() > 0.95


@pytest.mark.parametrize("factor", [HORIZONTAL, VERTICAL])
def test_axes_move_only_the_arm_and_the_object(factor):
    first, second = pairs(BATCH, factor)
    one, other = masks(first), masks(second)
    moving = one["object"] | one["arm"] | other["object"] | other["arm"]
    differs = changed(first, second)
    assert_within(differs, moving)
    assert differs.any((1, 2)).all()
    for part in ("arc", "base"):
        assert not ((one[part] != other[part]) & ~moving).any()


def test_camera_height_moves_everything():
    factors = np.tile(some_factors(64), (5, 1, 1))
    factors[..., HEIGHT] = np.array([0, 0.5, 1, 1.5, 2])[:, None]
    found = masks(factors.reshape(-1, 7))
    rows = np.arange(64) + 0.5
    for part in ("arc", "base"):
        mass = found[part].sum(-1).reshape(5, 64, 64)
        height = (mass.sum(1) @ rows) / mass.sum((1, 2))
        assert (np.diff(height) > 0.5).all()


def object_centres(factors):
    found = masks(factors)["object"]
    centres, area = np.arange(64) + 0.5, found.sum((1, 2))
    return found.sum(1) @ centres / area, found.sum(2) @ centres / area, area


def test_horizontal_axis_swings_the_arm_over_the_top():
    # The column is turned so that the arm moves from the viewer to the far side.
    factors = np.tile([3, SPHERE, 0, 1, 1, 0, 16.7], (40, 1))
    factors[:, HORIZONTAL] = np.arange(40)
    column, row, area = object_centres(factors)
    top = row.argmin()
    assert 20 <= top <= 26
    assert (np.diff(row[: top + 1]) < 0.3).all()
    assert (np.diff(row[top:]) > -0.3).all()
    assert row[0] > row[-1] + 20 > row[top] + 30
    assert np.ptp(column) < 5
    assert area[:5].mean() > 1.5 * area[-5:].mean()


@pytest.mark.parametrize(("tilt", "sign"), [(39, 1), (0, -1)])
def test_vertical_axis_turns_the_arm_clockwise_seen_from_above(tilt, sign):
    # The arm is level. Clockwise, its far half moves to the right and its near half to the left.
    factors = np.tile([3, SPHERE, 0, 1, 1, tilt, 0], (40, 1))
    factors[:, VERTICAL] = np.arange(40)
    column, row, _ = object_centres(factors)
    assert (np.diff(column[:31:6]) * sign > 0).all()
    assert np.ptp(column) > 25
    joint = 26
    assert (sign * (joint - row[8:28]) > 0).all()


@pytest.mark.parametrize("factor", [SIZE, HEIGHT, HORIZONTAL, VERTICAL])
def test_values_between_classes_are_drawn_as_such(factor):
    lower = some_factors(BATCH)
    lower[:, factor] = np.minimum(lower[:, factor], SIZES[factor] - 2)
    for share in (0.25, 0.5):
        between = lower.copy()
        between[:, factor] += share
        above = lower.copy()
        above[:, factor] += 1
        assert changed(lower, between).any((1, 2)).mean() > 0.95
        assert changed(between, above).any((1, 2)).mean() > 0.95


def test_area_grows_with_size():
    factors = np.tile(some_factors(64), (3, 1, 1))
    factors[..., SIZE] = np.array([0, 0.5, 1])[:, None]
    area = masks(factors.reshape(-1, 7))["object"].sum((1, 2)).reshape(3, 64)
    assert (np.diff(area.mean(1)) > 10).all()


@pytest.mark.parametrize("factor", [COLOR, SHAPE, BACKGROUND])
def test_categories_are_rounded(factor):
    classes = some_factors(BATCH)
    for shift in (-0.4, 0.4):
        near = classes.copy()
        near[:, factor] += shift
        assert not changed(classes, near).any()


def test_values_outside_the_range_are_clipped():
    outside = np.array([[9, -3, 7, 5, -1, 60, -8], [-2, 8, -1, -4, 7, -0.7, 41]])
    assert not changed(np.clip(outside, 0, SIZES - 1), outside).any()


def test_masks_cover_every_pixel_once():
    found = masks(some_factors(1024))
    assert set(found) == {"background", "arc", "base", "arm", "object"}
    assert all(mask.dtype == bool for mask in found.values())
    assert (sum(mask.astype(int) for mask in found.values()) == 1).all()
    assert all(found[part].any((1, 2)).mean() > 0.8 for part in found)


def test_masks_agree_with_the_image():
    factors = some_factors(BATCH)
    images, found = draw(factors), {name: narrowed(mask) for name, mask in masks(factors).items()}
    np.testing.assert_allclose(images[found["background"]], mpi3d._BACKDROP, atol=1e-6)
    # Next to its outline even the arm does not fill every pixel.
    for part in ("base", "arm"):
        assert (np.ptp(images[found[part]], axis=-1) < 1e-6).mean() > 0.9
    # Whatever the light, an object has the hue of its colour, and the arc that of its own.
    for part, factor, colors in (
        ("object", COLOR, mpi3d._COLORS),
        ("arc", BACKGROUND, mpi3d._RING_COLORS),
    ):
        which, *_ = np.nonzero(found[part])
        color = colors[factors[which, factor].astype(int)]
        seen = images[found[part]]
        light = (seen * color).sum(-1) / (color**2).sum(-1)
        np.testing.assert_allclose(seen, light[:, None] * color, atol=1e-5)


def test_what_is_nearer_hides_the_other():
    """At the pixel where the arm meets the object, that of them is seen which faces the camera."""

    @jax.jit
    @jax.vmap
    def meeting(factors):
        scene = mpi3d_parts.set_up(factors[HEIGHT], factors[HORIZONTAL:])
        thing = mpi3d_parts.object_of(factors[SHAPE].astype(jnp.int32), factors[SIZE], scene)
        return mpi3d_parts.find_spots(scene, thing.tall)[:2, 5], thing.origin[1] + 1

    factors = some_factors(1024)
    spot, side = meeting(factors)
    found = masks(factors)
    pixel = (np.arange(1024), *(np.floor(32 + np.asarray([-spot[:, 1], spot[:, 0]]))).astype(int))
    thing, arm = found["object"][pixel], found["arm"][pixel]
    assert thing[side > 3].mean() > 0.95
    assert arm[side < -3].mean() > 0.93
    assert not arm[side > 3].mean() > 0.05


def test_shapes_are_those_of_the_ray_caster():
    @jax.jit
    @jax.vmap
    def both(factors):
        scene = mpi3d_parts.set_up(factors[HEIGHT], factors[HORIZONTAL:])
        thing = mpi3d_parts.object_of(factors[SHAPE].astype(jnp.int32), factors[SIZE], scene)
        x, y = jnp.arange(-26.0, 26.0, 0.5), jnp.arange(-24.0, 30.0, 0.5)[:, None]
        direction = [ray[0] * x + ray[1] * y + ray[2] for ray in thing.rays]
        rays = raycast.Rays(raycast.Vec(*thing.origin), raycast.Vec(*direction))
        hits = [
            raycast.is_hit(hit)
            for hit in (
                solids.cone(rays),
                solids.cube(rays),
                solids.cylinder(rays),
                solids.prism(rays, 6),
                solids.pyramid(rays),
                solids.ball(rays),
            )
        ]
        ours = mpi3d_parts.draw_object(thing, x, y)
        return ours.cover, jnp.stack(hits)[factors[SHAPE].astype(jnp.int32)]

    factors = some_factors(48)
    factors[:, SIZE] = 1
    cover, hit = (np.asarray(each) for each in both(factors))
    # Four rays around each of the ray-caster's: all hit or all miss, but along the outline.
    assert (cover > 0.5)[narrowed(hit)].all()
    assert not (cover > 0)[~widened(hit)].any()
    assert (hit.sum((1, 2)) > 100).all()


def test_vmap_agrees_with_a_loop():
    factors = some_factors(16)
    looped = np.stack([mpi3d.draw(row) for row in factors])
    compiled = draw(factors)
    # Another order of rounding may move a ray from one side of an edge to the other.
    assert (np.abs(looped - compiled) > 1e-5).mean() < 1e-3
    np.testing.assert_array_equal(compiled, draw(factors))
