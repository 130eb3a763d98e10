"""The redrawn SmallNORB: where parts are by an independent ray-caster, and what factors change."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solids
from solids import Frame

from vaejax.data.redrawn import smallnorb
from vaejax.data.redrawn.parts import BALL, BOX, Part, build, limb
from vaejax.data.redrawn.raycast import Rays, Vec
from vaejax.data.redrawn.toys import CATEGORIES, LABELS

SIZES = (5, 10, 9, 18, 6)
CATEGORY, INSTANCE, ELEVATION, AZIMUTH, LIGHTING = range(5)
BATCH = 256
TOYS = np.array(list(itertools.product(range(5), range(10))), float)

_draw = jax.jit(jax.vmap(smallnorb.draw))
_segment = jax.jit(jax.vmap(smallnorb.segment))


def in_batches(function, factors):
    """`function` of any number of factor vectors, by one compiled program."""
    factors = np.asarray(factors, np.float32)
    rows = len(factors)
    padded = np.resize(factors, (-(-rows // BATCH) * BATCH, 5))
    out = [function(batch) for batch in padded.reshape(-1, BATCH, 5)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *out)


def draw(factors):
    return in_batches(_draw, factors)[..., 0]


def segment(factors):
    return in_batches(_segment, factors)


def silhouettes(factors):
    masks = segment(factors)
    return ~(masks["background"] | masks["shadow"])


def random_factors(n, seed=0):
    """Values between the classes too, where they have a meaning."""
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, SIZES, (n, 5)).astype(np.float32)
    factors[:, [ELEVATION, AZIMUTH]] = rng.uniform(0, [8, 18], (n, 2))
    return factors


def all_toys(elevation=1.0, azimuth=2.0, lighting=0.0):
    """Every toy in one pose, `[50, 5]`."""
    pose = np.broadcast_to([elevation, azimuth, lighting], (50, 3))
    return np.concatenate([TOYS, pose], axis=1)


def with_factor(factors, factor, value):
    changed = np.array(factors, np.float32)
    changed[:, factor] = value
    return changed


@pytest.fixture(scope="module")
def toys_masks():
    """What is where in the pictures of all toys, each mask `[50, 64, 64]`."""
    return segment(all_toys())


def test_factors_are_the_published_ones():
    assert tuple(factor.size for factor in smallnorb.FACTORS) == SIZES
    assert tuple(CATEGORIES) == ("animal", "human", "plane", "truck", "car")
    assert [len(toys) for toys in CATEGORIES.values()] == [10] * 5


def test_parts_are_where_an_independent_ray_caster_finds_them():
    # Six solids at random places, as one toy; the ray-caster has a function for each kind.
    kinds = [(BALL, solids.ball), ((1.0, 0.0, 1.0), solids.cylinder), (BOX, solids.cube)] * 2
    rng = np.random.default_rng(1)
    toy = [
        Part(i, 1.3 * rng.normal(size=3), rng.uniform(0.4, 0.9, 3), kind, along=rng.normal(size=3))
        for i, (kind, _) in enumerate(kinds)
    ]
    # A ball of half the size, in one corner of its box.
    toy[3] = toy[3]._replace(roundness=(4.0, 4.0, 4.0), thickest=(0.5, 0.5, 0.5))
    table = jax.tree.map(lambda field: field[0], build([toy], reach=28.0))
    table = table._replace(**{name: getattr(table, name)[:6] for name in table._fields[:-1]})
    sizes = np.linalg.norm(table.extent, axis=-1)
    frames = [
        Frame(Vec(*centre), tuple(Vec(*axis) for axis in axes), Vec(*size))
        for centre, axes, size in zip(
            table.centre, table.extent / sizes[..., None], sizes, strict=True
        )
    ]

    half = table.extent[3] / 2
    frames[3] = frames[3]._replace(
        centre=Vec(*(table.centre[3] + half.sum(0))), size=Vec(*(sizes[3] / 2))
    )

    def both(factors):
        scene = smallnorb._scene(factors)._replace(toy=jax.tree.map(jnp.asarray, table))
        pixels = smallnorb._pixels()
        away = Vec(0.0, -scene.sin, -scene.cos)
        # The caster sees only what lies ahead, so rays start well before the toy.
        eye = Vec(
            pixels.u + 0 * pixels.v,
            scene.cos * pixels.v + 0 * pixels.u,
            -scene.sin * pixels.v + 0 * pixels.u,
        ).plus(away, -100.0)
        hits = []
        for frame, (_, kind) in zip(frames, kinds, strict=True):
            hit = kind(frame.local(Rays(eye, away)))
            hits.append(hit._replace(normal=frame.world_normal(hit.normal)))
        hit, which = solids.nearest(hits)
        tone = smallnorb._lit(scene, smallnorb._seen(scene, hit.normal))
        return smallnorb._trace(scene, pixels), (hit.t - 100, tone, which)

    poses = jnp.array([[0, 0, 0, 0, 0], [0, 0, 4.3, 0, 1], [0, 0, 8, 0, 3]], jnp.float32)
    (depth, tone, label), (true_depth, true_tone, true_label) = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(both))(poses)
    )
    # Rays that graze an outline or the seam of two parts may fall to either side by rounding.
    same = label == true_label
    assert (~same).sum() <= 6
    hit = same & (label >= 0)
    assert set(np.unique(label[hit])) == set(range(6))
    close = np.isclose(depth, true_depth, atol=0.02) & np.isclose(tone, true_tone, atol=0.005)
    assert (hit & ~close).sum() <= 6
    assert tone[hit].min() > 0


def test_every_toy_reaches_as_far_as_it_may_and_no_further():
    poses = np.array(list(itertools.product((0, 8), range(0, 18, 2), [0])))
    seen = silhouettes(np.concatenate([np.repeat(TOYS, 18, 0), np.tile(poses, (50, 1))], axis=1))
    away = np.abs(np.arange(64) + 0.5 - 32)
    reach = np.maximum((seen.any(1) * away).max(1), (seen.any(2) * away).max(1))
    assert reach.max() < 28
    assert reach.reshape(50, 18).max(1).min() > 25


def test_images_are_finite_within_bounds_and_grey():
    images = draw(random_factors(2 * BATCH))
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert 0.7 < images.mean() < 0.8


def test_toys_are_darker_than_the_backdrop():
    factors = random_factors(BATCH)
    images, masks = draw(factors), segment(factors)
    for image, toy, backdrop in zip(
        images, ~(masks["background"] | masks["shadow"]), masks["background"], strict=True
    ):
        assert image[toy].mean() < 0.85 * image[backdrop].mean()
        assert 0.1 < image[toy].mean() < 0.7


def test_masks_cover_every_pixel_once():
    masks = segment(random_factors(2 * BATCH))
    assert set(masks) == {"background", "shadow", *LABELS}
    assert all(mask.dtype == bool for mask in masks.values())
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), 1)


@pytest.mark.parametrize(
    ("category", "parts"),
    [
        ("animal", {"body", "head", "limbs", "tail"}),
        ("human", {"body", "head", "limbs"}),
        ("plane", {"body", "cabin", "wings", "tail"}),
        ("truck", {"body", "cabin", "wheels", "load"}),
        ("car", {"body", "cabin", "wheels"}),
    ],
)
def test_each_category_has_its_parts(toys_masks, category, parts):
    rows = slice(10 * list(CATEGORIES).index(category), 10 * list(CATEGORIES).index(category) + 10)
    optional = {"human": {"load"}, "car": {"load"}}.get(category, set())
    for name in LABELS:
        seen = toys_masks[name][rows].any((1, 2))
        if name in parts:
            assert seen.all(), name
        elif name not in optional:
            assert not seen.any(), name


def test_all_toys_differ_in_outline():
    for first, second in itertools.combinations(silhouettes(all_toys()), 2):
        assert (first & second).sum() / (first | second).sum() < 0.93


def test_lighting_changes_the_image_and_no_mask():
    factors = random_factors(64)
    masks, image = segment(factors), draw(factors)
    for lighting in range(6):
        other = with_factor(factors, LIGHTING, lighting)
        for name, mask in segment(other).items():
            np.testing.assert_array_equal(mask, masks[name])
        changed = np.abs(draw(other) - image).max((1, 2)) > 0.02
        np.testing.assert_array_equal(changed, factors[:, LIGHTING] != lighting)


def test_elevation_and_azimuth_move_the_toy():
    factors = random_factors(128)
    seen = silhouettes(factors)
    raised = silhouettes(with_factor(factors, ELEVATION, np.mod(factors[:, ELEVATION] + 3, 8)))
    turned = silhouettes(with_factor(factors, AZIMUTH, factors[:, AZIMUTH] + 4))
    assert ((seen != raised).sum((1, 2)) > 20).all()
    assert ((seen != turned).sum((1, 2)) > 20).all()


def test_azimuth_has_period_18():
    factors = with_factor(random_factors(128), AZIMUTH, np.arange(128) % 18)
    for turns in (18, -18):
        turned = with_factor(factors, AZIMUTH, factors[:, AZIMUTH] + turns)
        np.testing.assert_array_equal(draw(factors), draw(turned))


def test_azimuth_turns_counter_clockwise_seen_from_above():
    # A plane's tail is at the left at first; a quarter of a turn brings it to the front.
    plane = np.array([[2, 0, 4, azimuth, 0] for azimuth in (0, 4.5, 9, 13.5)])
    tails = segment(plane)["tail"]
    across = (tails.sum(1) @ np.arange(64)) / tails.sum((1, 2))
    down = (tails.sum(2) @ np.arange(64)) / tails.sum((1, 2))
    assert across[0] < 20 < 43 < across[2]
    assert down[3] < 24 < 38 < down[1]


def test_a_human_is_foreshortened_from_above():
    heights = silhouettes([[1, 0, elevation, 3, 0] for elevation in range(9)]).any(2).sum(1)
    assert (np.diff(heights) <= 0).all()
    assert heights[-1] < 0.75 * heights[0]


def test_backdrop_far_from_toy_and_shadow_is_the_same_for_all():
    factors = all_toys(lighting=3)
    images, background = draw(factors), segment(factors)["background"]
    clean = images.max(0)
    assert (
        images[background] >= 0.92 * np.broadcast_to(clean, images.shape)[background] - 1e-6
    ).all()
    # The upper corners are out of reach of all shadows.
    corners = images[:, :2][..., [0, 1, 62, 63]]
    np.testing.assert_allclose(corners, np.broadcast_to(corners[0], corners.shape), atol=1e-6)


def test_shadow_lies_on_the_floor_around_the_toy(toys_masks):
    shadow = toys_masks["shadow"]
    area = shadow.sum((1, 2))
    assert (area > 40).all()
    assert (area < 1500).all()
    images, background = draw(all_toys()), toys_masks["background"]
    for image, dark, light in zip(images, shadow, background, strict=True):
        assert image[dark].mean() < 0.93 * image[light].mean()


def test_values_between_classes_are_drawn_or_rounded():
    between = np.array([[2.0, 3.0, 2.5, 3.5, 1.0]])
    reference = draw(between)
    for factor in (ELEVATION, AZIMUTH):
        for value in (-0.5, 0.5):
            moved = with_factor(between, factor, between[:, factor] + value)
            assert not np.array_equal(draw(moved), reference)
    for factor in (CATEGORY, INSTANCE, LIGHTING):
        rounded = with_factor(between, factor, between[:, factor] + 0.4)
        np.testing.assert_array_equal(draw(rounded), reference)


def test_values_outside_the_range_are_clipped():
    outside, inside = [[9, -4, 12, 3, 99], [-1, 30, -2, 3, -5]], [[4, 0, 8, 3, 5], [0, 9, 0, 3, 0]]
    np.testing.assert_array_equal(draw(outside), draw(inside))


def test_one_image_alone_is_the_same_as_in_a_batch():
    factors = random_factors(4, seed=1)
    images = draw(factors)
    for index, row in enumerate(jnp.asarray(factors)):
        # Rounding may move an edge by a pixel.
        assert (np.abs(smallnorb.draw(row)[..., 0] - images[index]) > 1e-3).sum() <= 4


def test_drawing_again_gives_the_same():
    factors = random_factors(BATCH)
    np.testing.assert_array_equal(draw(factors), draw(factors))
    np.testing.assert_array_equal(draw(factors[::-1]), draw(factors)[::-1])


def test_a_limb_runs_from_one_point_to_the_other():
    part = limb(0, (1, 2, 3), (1, 4, 3), 0.5, 0.25)
    np.testing.assert_allclose(part.centre, (1, 3, 3))
    np.testing.assert_allclose(part.along, (0, 1, 0))
    assert part.size == (1, 0.5, 0.25)
