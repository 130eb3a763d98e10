"""The redrawn dSprites: its pixels, its factors and its behaviour under JAX transformations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import DataError, DataSource, Renderable, names, source
from vaejax.data.redrawn.dsprites import FACTORS

SIZES = tuple(factor.size for factor in FACTORS)
SHAPE, SCALE, ORIENTATION, X, Y = range(5)

# Pixels on at orientation 0, scales 0.5 to 1, position index 0, 0. The genuine images have the same
# counts but for the heart at scale 0.9: 182.
COUNTS = {
    0: (100, 144, 196, 256, 324, 400),
    1: (76, 104, 144, 184, 228, 288),
    2: (58, 84, 108, 140, 180, 222),
}

render = jax.jit(source("dsprites").render)
render_all = jax.jit(jax.vmap(source("dsprites").render))


def some_factors(n=256, seed=0):
    return source("dsprites").batch(jax.random.key(seed), n)[1]


@pytest.mark.parametrize("shape", COUNTS)
def test_areas_are_those_of_the_published_shapes(shape):
    factors = jnp.array([[shape, scale, 0, 0, 0] for scale in range(6)])
    assert tuple(render_all(factors).sum((1, 2, 3)).astype(int)) == COUNTS[shape]


def test_mean_over_the_whole_set(optimized):
    # Every image is drawn, a thousand at a time: the count is exact, and no subset's would be.
    def count(index):
        factors = jnp.stack(jnp.unravel_index(index, SIZES), axis=-1)
        return jax.vmap(source("dsprites").render)(factors).sum(dtype=jnp.float32)

    total = len(source("dsprites"))
    # A thousand images hold fewer than 2^24 pixels, so a float32 counts them without rounding.
    counts = jax.jit(lambda: jax.lax.map(count, jnp.arange(total).reshape(-1, 1024)))()
    mean = np.asarray(counts, np.int64).sum() / (total * 64 * 64)
    assert mean == pytest.approx(0.0425027, abs=1e-7)
    assert mean == pytest.approx(0.0424944, rel=1e-3)  # the genuine images


def test_the_centre_of_mass_follows_the_position():
    # A square is symmetric about its centre, up to the pixels that it half covers.
    x, y = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    position = np.stack([x.ravel(), y.ravel()], axis=1)
    fixed = np.broadcast_to([0, 5, 0], (1024, 3))
    images = np.asarray(render_all(np.concatenate([fixed, position], axis=1)))[..., 0]
    centres = np.arange(64) + 0.5
    mass = images.sum((1, 2))
    across = (images.sum(1) @ centres) / mass
    down = (images.sum(2) @ centres) / mass
    np.testing.assert_allclose(across, 16 + 32 * position[:, 0] / 31, atol=0.51)
    np.testing.assert_allclose(down, 16 + 32 * position[:, 1] / 31, atol=0.51)


@pytest.mark.parametrize("axis", [X, Y])
def test_a_shift_by_one_pixel_shifts_the_image(axis):
    # Classes are 32/31 pixels apart, so 31/32 of a class is one pixel.
    start = jnp.array([2.0, 3.0, 7.0, 10.0, 12.0])
    moved = render(start.at[axis].add(31 / 32))
    image_axis = {X: 1, Y: 0}[axis]
    differs = jnp.roll(render(start), 1, axis=image_axis) != moved
    # A pixel on the very outline may fall to either side by float32 rounding of its position.
    assert differs.sum() <= 1


def test_neighbouring_positions_shift_by_the_rounded_distance():
    left, right = render(jnp.array([0, 0, 0, 0, 0])), render(jnp.array([0, 0, 0, 1, 0]))
    assert jnp.array_equal(jnp.roll(left, 1, axis=1), right)


def test_scale_enlarges_every_shape():
    for shape in range(3):
        areas = render_all(jnp.array([[shape, k, 5, 16, 16] for k in range(6)])).sum((1, 2, 3))
        assert (jnp.diff(areas) > 0).all()


def test_shapes_differ():
    images = render_all(jnp.array([[shape, 5, 0, 16, 16] for shape in range(3)]))
    for first, second in itertools.combinations(images, 2):
        assert (first != second).sum() > 50


def test_orientation_turns_counter_clockwise():
    # A quarter turn of the ellipse, 39 / 4 classes, swaps rows and columns around its centre.
    ellipse = render(jnp.array([1.0, 5.0, 0.0, 15.5, 15.5]))
    turned = render(jnp.array([1.0, 5.0, 39 / 4, 15.5, 15.5]))
    assert jnp.array_equal(turned, jnp.rot90(ellipse))
    assert not jnp.array_equal(turned, ellipse)
    # An eighth of a turn raises the right end of the long axis: mass moves to the upper right.
    eighth = render(jnp.array([1.0, 5.0, 39 / 8, 15.5, 15.5]))[..., 0]
    assert eighth[:32, 32:].sum() > 1.5 * eighth[:32, :32].sum()


def test_heart_points_down_and_is_symmetric():
    heart = render(jnp.array([2.0, 5.0, 0.0, 15.5, 15.5]))[..., 0]
    assert jnp.array_equal(heart, heart[:, ::-1])
    rows = heart.sum(1)
    widths = rows[rows > 0]
    assert widths[-1] < widths[len(widths) // 2]


def test_last_orientation_repeats_the_first():
    factors = some_factors()
    first = render_all(factors.at[:, ORIENTATION].set(0))
    assert jnp.array_equal(first, render_all(factors.at[:, ORIENTATION].set(39)))
    assert not jnp.array_equal(first, render_all(factors.at[:, ORIENTATION].set(38)))


@pytest.mark.parametrize("image_size", [64, 32])
def test_integer_and_float_factors_agree(image_size):
    draw = jax.jit(jax.vmap(source("dsprites", image_size).render))
    factors = some_factors()
    assert jnp.array_equal(draw(factors), draw(factors.astype(jnp.float32)))


def test_values_between_classes():
    between = render(jnp.array([1.0, 2.5, 3.5, 4.5, 5.5]))
    for factor, value in itertools.product((SCALE, ORIENTATION, X, Y), (-0.5, 0.5)):
        moved = jnp.array([1.0, 2.5, 3.5, 4.5, 5.5]).at[factor].add(value)
        assert not jnp.array_equal(between, render(moved))
    rounded = render(jnp.array([1.4, 2.5, 3.5, 4.5, 5.5]))
    assert jnp.array_equal(between, rounded)


def test_values_outside_the_range_are_clipped():
    inside = render(jnp.array([2.0, 5.0, 1.0, 0.0, 31.0]))
    assert jnp.array_equal(inside, render(jnp.array([9.0, 8.0, 40.0, -3.0, 99.0])))


@pytest.mark.parametrize("image_size", [64, 32])
def test_transformations_agree_with_a_loop(image_size):
    data = source("dsprites", image_size)
    factors = some_factors(8)
    looped = jnp.stack([data.render(row) for row in factors])
    assert jnp.array_equal(looped, jax.vmap(data.render)(factors))
    assert jnp.array_equal(looped, jax.jit(lambda d, f: jax.vmap(d.render)(f))(data, factors))
    assert jnp.array_equal(looped, jax.lax.map(data.render, factors))


def test_half_size_is_the_mean_over_blocks():
    factors = some_factors()
    full = np.asarray(render_all(factors))
    half = np.asarray(jax.jit(jax.vmap(source("dsprites", 32).render))(factors))
    np.testing.assert_array_equal(half, full.reshape(-1, 32, 2, 32, 2, 1).mean((2, 4)))


@pytest.mark.parametrize("image_size", [64, 32])
def test_batch(image_size):
    data = source("dsprites", image_size)
    draw = jax.jit(data.batch, static_argnums=1)
    images, factors = draw(jax.random.key(0), 2000)
    assert images.shape == (2000, *data.image_shape)
    assert images.dtype == jnp.float32
    assert factors.shape == (2000, 5)
    assert factors.dtype == jnp.int32
    assert set(np.unique(images)) == ({0, 1} if image_size == 64 else {0, 0.25, 0.5, 0.75, 1})
    for column, size in zip(factors.T, SIZES, strict=True):
        assert set(np.asarray(column)) == set(range(size))
    again, _ = draw(jax.random.key(0), 2000)
    other, _ = draw(jax.random.key(1), 2000)
    assert jnp.array_equal(images, again)
    assert not jnp.array_equal(images, other)
    assert jnp.array_equal(images[:32], jax.vmap(data.render)(factors[:32]))


def test_batch_runs_inside_scan_and_vmap():
    keys = jax.random.split(jax.random.key(0), 6)
    scanned = jax.lax.scan(lambda carry, key: (carry, source("dsprites").batch(key, 4)), 0, keys)[1]
    mapped = jax.vmap(lambda key: source("dsprites").batch(key, 4))(keys)
    assert jnp.array_equal(scanned[0], mapped[0])
    assert jnp.array_equal(scanned[1], mapped[1])


def test_metadata():
    data = source("dsprites")
    assert isinstance(data, DataSource)
    assert isinstance(data, Renderable)
    assert (data.name, data.origin, data.image_shape) == ("dsprites", "redrawn", (64, 64, 1))
    assert [factor.name for factor in data.factors] == ["shape", "scale", "orientation", "x", "y"]
    assert [factor.categorical for factor in data.factors] == [True, False, False, False, False]
    assert len(data) == 737_280
    assert source("dsprites", 32).image_shape == (32, 32, 1)
    assert jax.tree.leaves(data) == []


def test_errors_are_one_clear_line():
    with pytest.raises(DataError, match="image_size is 48, but must be 64 or 32"):
        source("dsprites", 48)
    with pytest.raises(DataError, match="did you mean 'dsprites'") as caught:
        source("dSprite")
    assert all(name in str(caught.value) for name in names())
    assert "\n" not in str(caught.value)
