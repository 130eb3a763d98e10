"""Where units act: maps, matches with parts and effects on them, against planted places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vaejax.circuits import dissection
from vaejax.circuits.dissection import SHARES, match_masks
from vaejax.circuits.part_effects import part_effects
from vaejax.circuits.selectivity import selectivity_maps
from vaejax.models.layers import Site

# Factor 0 is at (0, 1), in both channels; factor 1 at (1, 2), and in one channel at (0, 0).
PLACES = np.zeros((3, 2, 3, 2), np.float32)
PLACES[0, 0, 1] = [1, 2]
PLACES[1, 1, 2] = [3, 1]
PLACES[1, 0, 0] = [0, -1]
WEIGHT = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)


class Places(nn.Module):
    """`y [B]`, linear in a map that holds each factor at its places, and the first around it."""

    @nn.compact
    def __call__(self, x):
        y = jnp.sum(Site(name="map")(jnp.einsum("bk,khwc->bhwc", x, PLACES)) * WEIGHT, (1, 2, 3))
        return y + 0.5 * x[:, 0] ** 2


@pytest.mark.parametrize("by", ["position", "element"])
@pytest.mark.parametrize("method", ["patching", "attribution"])
def test_maps_of_planted_factors(by, method):
    rng = np.random.default_rng(0)
    changed = np.array([0, 1] * 8)
    clean = rng.normal(size=(16, 3)).astype(np.float32)
    corrupted = clean.copy()
    corrupted[np.arange(16), changed] += rng.normal(size=16).astype(np.float32)
    corrupted[15] = clean[15]
    found = selectivity_maps(
        Places().apply, {}, clean, corrupted, changed, ["map"],
        num_factors=3, by=by, method=method, chunk=8,
    )["map"]  # fmt: skip
    step = (corrupted - clean)[np.arange(16), changed]
    outside = 0.5 * (corrupted[:, 0] ** 2 - clean[:, 0] ** 2)
    assert found.pairs.tolist() == [8, 7, 0]
    assert found.skipped.tolist() == [0, 1, 0]
    for k in (0, 1):
        pairs = changed == k
        pairs[15] = False
        of_elements = PLACES[k] * WEIGHT
        total = np.abs(step * of_elements.sum() + outside)[pairs].mean()
        units = of_elements if by == "element" else of_elements.sum(-1)
        expected = np.abs(units) * np.abs(step[pairs]).mean() / total
        np.testing.assert_allclose(found.effect.value[..., k], expected, rtol=1e-4)
        np.testing.assert_allclose(found.total[k], total, rtol=1e-5)
        assert np.all((np.asarray(found.effect.value[..., k]) > 0) == (expected > 0))
    assert found.effect.low[..., 0].max() < found.effect.value[..., 0].max()
    assert found.effect.value[..., 0].max() < found.effect.high[..., 0].max()
    assert np.isnan(found.effect.value[..., 2]).all()


def rectangles(seed, n=16, size=8, height=4, width=4, room=0):
    """Masks `[n, size, size]` of a rectangle at random places, `room` from the right edge."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), np.float32)
    for mask in masks:
        top, left = rng.integers(size - height + 1), rng.integers(size - width - room + 1)
        mask[top : top + height, left : left + width] = 1
    return masks


def test_units_that_are_the_part_its_absence_dead_or_unrelated():
    part = rectangles(0)
    noise = np.random.default_rng(1).normal(size=(*part.shape, 30))
    planted = np.stack([3 * part, -part, 0 * part + 2], -1)
    units = np.concatenate([planted, noise], -1).astype(np.float32)
    masks = {"never": 0 * part, "part": part, "early": part * (np.arange(16) < 8)[:, None, None]}
    found = match_masks({"site": units}, masks)["site"]
    assert found.parts == ("never", "part", "early")
    iou = found.iou
    for of_units in (iou.value[:2, 1], iou.low[:2, 1], iou.high[:2, 1]):
        np.testing.assert_array_equal(of_units, 1)
    assert found.above[:2, 1].tolist() == [True, False]
    np.testing.assert_allclose(found.p_value[:2, 1], 1 / 41)
    assert found.null[:, :2, 1].max() < 0.7
    assert 0.35 < found.p_value[3:, 1].mean() < 0.65  # uniform where there is nothing
    assert iou.low[3, 1] < iou.value[3, 1] < iou.high[3, 1] < 0.5
    assert np.isnan(iou.value[2]).all()
    assert np.isnan(found.p_value[:, [0, 2]]).all()
    assert np.isnan(found.threshold[2]).all()
    assert found.best[:4].tolist() == [1, 1, -1, 1]


def test_half_overlap_by_hand():
    """Shifted by half its width: 8 pixels of 4 x 4 in common, 24 in either."""
    part = rectangles(0, room=2)
    found = match_masks({"site": np.roll(part, 2, axis=2)[..., None]}, {"part": part})["site"]
    np.testing.assert_allclose(found.iou.value, [[1 / 3]])


def test_a_coarse_map_is_aligned_with_the_mask():
    coarse = rectangles(0)
    part = coarse.repeat(2, axis=1).repeat(2, axis=2)
    found = match_masks({"site": coarse[..., None]}, {"part": part})["site"]
    np.testing.assert_array_equal(found.iou.value, 1)


def test_a_coarse_map_is_interpolated_between_its_places():
    """Of a ramp over 4 places, 16 pixels have 16 values but for the ends: the mask starts at 9."""
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32), (4, 4, 4))
    part = np.broadcast_to(np.arange(16) >= 9, (4, 16, 16)).astype(np.float32)
    found = match_masks({"site": ramp[..., None]}, {"part": part})["site"]
    np.testing.assert_array_equal(found.iou.value, 1)


def test_the_null_is_the_match_with_the_masks_of_others():
    """Of two images in each half there is one exchange, and no choice."""
    rng = np.random.default_rng(0)
    part = rectangles(0, n=4)
    units = (part[..., None] + rng.normal(size=(4, 8, 8, 5))).astype(np.float32)
    null = match_masks({"site": units}, {"part": part}, shuffles=2)["site"].null
    exchanged = match_masks({"site": units}, {"part": part[[1, 0, 3, 2]]})["site"].iou.value
    np.testing.assert_allclose(null, np.stack([exchanged] * 2), rtol=1e-6)


def test_thresholds_come_from_the_first_half_and_scores_from_the_second():
    part = rectangles(0)
    turned = np.where((np.arange(16) < 8)[:, None, None], part, 1 - part)
    found = match_masks({"site": turned[..., None]}, {"part": part})["site"]
    assert found.above.tolist() == [[True]]
    np.testing.assert_array_equal(found.iou.value, 0)


def test_a_part_that_never_moves_is_matched_by_chance():
    part = rectangles(0, n=1).repeat(16, axis=0)
    found = match_masks({"site": part[..., None]}, {"part": part})["site"]
    np.testing.assert_array_equal(found.iou.value, 1)
    np.testing.assert_allclose(found.p_value, 1)


def test_equals_a_search_by_numpy_and_is_chunked(monkeypatch):
    monkeypatch.setattr(dissection, "_AT_ONCE", 2 * len(SHARES) * 100)  # two of the five units
    part = rectangles(2, n=12, size=10)
    rng = np.random.default_rng(3)
    units = (part[..., None] * rng.normal(size=5) + rng.normal(size=(12, 10, 10, 5))).astype("f4")
    found = match_masks({"site": units}, {"part": part}, shuffles=3)["site"]
    for unit in range(5):
        values = np.sort(units[:6, ..., unit].ravel())
        best = (-1.0, 0.0, True)
        for share in SHARES:
            threshold = values[int((1 - share) * 600)]
            for above in (True, False):
                iou = overlap((units[:6, ..., unit] > threshold) == above, part[:6] > 0)
                best = max(best, (iou, threshold, above))
        assert (found.threshold[unit, 0], found.above[unit, 0]) == best[1:]
        marked = (units[6:, ..., unit] > best[1]) == best[2]
        np.testing.assert_allclose(found.iou.value[unit, 0], overlap(marked, part[6:] > 0))


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


class Painter(nn.Module):
    """Three units, the same at all places of a map, each painted with a brush of its own."""

    @nn.compact
    def __call__(self, x):
        z = Site(name="map")(jnp.broadcast_to(x["z"][:, None, None], (len(x["z"]), 4, 4, 3)))
        return {"image": jnp.sum(z * BRUSHES, -1)}


BRUSHES = np.zeros((4, 4, 3), np.float32)
BRUSHES[..., 0] = 0.25
BRUSHES[:2, :2, 0] = 1
BRUSHES[2:, 2:, 1] = 1


def image(output):
    return output["image"]


def test_painted_parts_change_inside():
    z = np.abs(np.random.default_rng(0).normal(size=(8, 3))).astype(np.float32)
    masks = {name: np.zeros((8, 4, 4), np.float32) for name in ("first", "second", "none")}
    masks["first"][::2, :2, :2] = 1  # painted in all images, there in half of them
    masks["second"][:, 2:, 2:] = 1
    found = part_effects(
        Painter().apply, {}, {"z": z}, masks, "map", quantile=0.9, readout=image, chunk=3
    )
    high = np.quantile(z.repeat(16, axis=0), 0.9, axis=0)  # over places, too
    for changes, step in ((found.ablation, z), (found.insertion, np.abs(high - z))):
        change = step[:, None, None] * BRUSHES
        for p, mask in enumerate(list(masks.values())[:2]):
            there = (mask == 0) & mask.any((1, 2), keepdims=True)
            inside, outside = change[mask > 0].mean(0), change[there].mean(0)
            np.testing.assert_allclose(changes.inside.value[:, p], inside, rtol=1e-5)
            np.testing.assert_allclose(changes.outside.value[:, p], outside, rtol=1e-5)
        assert changes.ratio.value[1, 1] == np.inf  # all of it inside: exactly nothing elsewhere
        assert np.isnan(changes.ratio.value[2]).all()  # it paints nothing
        assert np.isnan(changes.inside.value[:, 2]).all()
        assert changes.inside.low[0, 0] < changes.inside.value[0, 0] < changes.inside.high[0, 0]
        for of_ratio in (changes.ratio.value, changes.ratio.low, changes.ratio.high):
            np.testing.assert_allclose(of_ratio[0, 0], 4, rtol=1e-5)  # in every image
    some = part_effects(Painter().apply, {}, {"z": z}, masks, "map", [1], readout=image)
    assert some.units.tolist() == [1]
    np.testing.assert_allclose(some.ablation.inside.value[0], found.ablation.inside.value[1])


Z = {"z": np.ones((4, 3), np.float32)}
MASKS = {"part": np.ones((4, 4, 4), np.float32)}
MAP = np.ones((4, 4, 4, 2), np.float32)


def maps(**options):
    given = {"changed": np.zeros(4, int), "sites": ["map"], "num_factors": 1} | options
    return selectivity_maps(Places().apply, {}, np.ones((4, 3)), np.ones((4, 3)), **given)


def effects(masks=MASKS, site="map", readout=image, **options):
    return part_effects(Painter().apply, {}, Z, masks, site, readout=readout, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maps(by="channel"), "by to be one of position, element, got 'channel'"),
        (lambda: maps(method="exact"), "method to be one of patching, attribution, got 'exact'"),
        (lambda: maps(changed=np.zeros(3, int)), r"changed \[4\] of integers"),
        (lambda: maps(changed=np.ones(4, int)), "changed from 0 to 0"),
        (lambda: maps(sites=["mop"]), "unknown site 'mop'"),
        (lambda: match_masks({"a": MAP[:3]}, MASKS), r"'a'.*\[4, h, w, C\], got \[3, 4, 4, 2\]"),
        (lambda: match_masks({"a": MAP * np.nan}, MASKS), "'a'.*finite activations"),
        (lambda: match_masks({"a": MAP}, {}), "masks .N, H, W. of one shape, got none"),
        (lambda: match_masks({"a": MAP}, {"part": MAP}), r"of one shape, got part \[4, 4, 4, 2\]"),
        (lambda: match_masks({"a": MAP}, MASKS, shuffles=0), "shuffles >= 1, got 0"),
        (lambda: match_masks({"a": MAP[:2]}, {"a": MAP[:2, ..., 0]}), "at least 4 images"),
        (lambda: effects(site="mop"), "unknown site 'mop'"),
        (lambda: effects(units=[3]), r"units below 3.*got \[3\]"),
        (lambda: effects(units=[]), "at least one"),
        (lambda: effects(quantile=2), r"quantile in \[0, 1\], got 2"),
        (lambda: effects(readout=None), r"images \[N, 4, 4, C\] as the masks, got dict"),
        (lambda: effects({"part": np.ones((4, 2, 2))}), r"images \[N, 2, 2, C\].*got \(1, 4, 4\)"),
        (lambda: effects({"part": np.ones((3, 4, 4))}), "one N above 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_site_without_places_has_no_map():
    model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
    x = jnp.ones((4, 5))
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="site 'layers_0': expected a site with places"):
        selectivity_maps(
            model.apply, variables, x, x, np.zeros(4, int), ["layers_0"], num_factors=1
        )
