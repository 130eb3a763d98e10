"""The redrawn faces: every attribute shows, and shows only where it says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data.redrawn import celeba
from vaejax.data.redrawn.celeba import CHANNELS, FACTORS, PARTS, PARTS_OF, draw, segment

NAMES = [factor.name for factor in FACTORS]
SIZES = np.array([factor.size for factor in FACTORS])
ATTRIBUTES = NAMES[:16]
BATCH = 128


@jax.jit
@jax.vmap
def _look(factors):
    masks = segment(factors)
    layers = celeba._layers(celeba._describe(factors), 0, 64)
    nowhere = jnp.zeros((64, 64), bool)
    reach = jnp.stack(
        [sum((la.cover > 0 for la in layers if la.part == part), nowhere) for part in PARTS]
    )
    return draw(factors), jnp.stack([masks[part] for part in PARTS]), reach


def look(factors):
    """Images `[N, 64, 64, 3]`, masks `[N, parts, 64, 64]` and where parts cover pixels at all.

    Parts may cover without being seen. All calls go through one compiled program.
    """
    factors = np.asarray(factors, np.float32)
    padded = np.resize(factors, (-(-len(factors) // BATCH) * BATCH, len(FACTORS)))
    found = [_look(chunk) for chunk in padded.reshape(-1, BATCH, len(FACTORS))]
    return [np.concatenate(arrays)[: len(factors)] for arrays in zip(*found, strict=True)]


def face(**changes):
    """A bare young face seen from the front."""
    classes = {"No_Beard": 1, "Young": 1, "yaw": 7, "light": 4} | changes
    return np.array([classes.pop(name, 0) for name in NAMES], np.float32)


def random_faces(n, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES, (n, len(SIZES))).astype(np.float32)


def mask(masks, part):
    return masks[..., PARTS.index(part), :, :]


@pytest.fixture(scope="module")
def pairs():
    """Faces with each attribute off and on: what `look` finds, `[16, 2, N, ...]`, and the faces.

    The first face is the bare one, the others are random.
    """
    faces = np.concatenate([face()[None], random_faces(31)])
    off_on = np.broadcast_to(faces, (16, 2, *faces.shape)).copy()
    for k, value in itertools.product(range(16), (0, 1)):
        off_on[k, value, :, k] = value
    found = look(off_on.reshape(-1, len(FACTORS)))
    return [array.reshape(16, 2, len(faces), *array.shape[1:]) for array in found], faces


def test_factors_are_binary_attributes_in_alphabetical_order_then_pose():
    assert sorted(ATTRIBUTES) == ATTRIBUTES
    assert NAMES[16:] == ["yaw", "light"]
    assert all(factor.size == 2 and factor.categorical for factor in FACTORS[:16])
    assert not any(factor.categorical for factor in FACTORS[16:])
    assert list(PARTS_OF) == ATTRIBUTES
    assert {part for parts in PARTS_OF.values() for part in parts} <= set(PARTS)


def test_images_are_finite_within_0_and_1_and_the_same_each_time():
    faces = random_faces(BATCH, seed=1)
    images, _, _ = look(faces)
    assert images.shape == (BATCH, 64, 64, CHANNELS)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_array_equal(images, look(faces)[0])


def test_every_pixel_is_of_exactly_one_part_and_every_part_is_seen():
    _, masks, _ = look(random_faces(BATCH, seed=2))
    assert (masks.sum(axis=1) == 1).all()
    assert masks.any(axis=(0, 2, 3)).all()


def own_parts(name, masks):
    """Where an attribute's own parts are with it or without it, `[N, 64, 64]`."""
    own = [PARTS.index(part) for part in PARTS_OF[name]]
    return masks[ATTRIBUTES.index(name)][:, :, own].any(axis=(0, 2))


def test_an_attribute_changes_only_pixels_that_its_own_parts_cover(pairs):
    (images, _, reach), _ = pairs
    changed = (images[:, 1] != images[:, 0]).any(axis=-1)
    for k, name in enumerate(ATTRIBUTES):
        assert not (changed[k] & ~own_parts(name, reach)).any(), name


def test_what_an_attribute_changes_is_where_its_own_parts_are_seen_or_next_to_it(pairs):
    (images, masks, _), _ = pairs
    change = np.abs(images[:, 1] - images[:, 0]).sum(axis=-1)
    for k, name in enumerate(ATTRIBUTES):
        near = np.pad(own_parts(name, masks), ((0, 0), (1, 1), (1, 1)))
        near = np.lib.stride_tricks.sliding_window_view(near, (3, 3), (1, 2)).any(axis=(-2, -1))
        assert change[k][~near].sum() < 0.01 * change[k].sum(), name


def test_every_attribute_shows_whatever_the_others_are(pairs):
    (images, _, _), faces = pairs
    strong = np.abs(images[:, 1] - images[:, 0]).max(axis=-1) > 0.05
    pixels = strong.sum(axis=(-2, -1))
    bald = faces[:, ATTRIBUTES.index("Bald")] == 1
    hidden = pixels[ATTRIBUTES.index("Bangs"), bald]
    assert (hidden == 0).all()
    pixels[ATTRIBUTES.index("Bangs"), bald] = 99
    least = dict(zip(ATTRIBUTES, pixels.min(axis=1), strict=True))
    assert min(least.values()) >= 8, least


def test_parts_that_are_absent_have_no_pixels():
    def seen(part, **changes):
        return mask(look([face(**changes)])[1], part).sum()

    assert seen("hair") > 0
    assert seen("hair", Bald=1) == 0
    for part, changes in {
        "eyeglasses": {"Eyeglasses": 1},
        "mustache": {"Mustache": 1},
        "beard": {"No_Beard": 0},
        "hat": {"Wearing_Hat": 1},
    }.items():
        assert seen(part) == 0
        assert seen(part, **changes) > 15


def test_eight_hair_colours_tell_which_attributes_are_on():
    three = ("Black_Hair", "Blond_Hair", "Gray_Hair")
    choices = [dict(zip(three, on, strict=True)) for on in itertools.product((0, 1), repeat=3)]
    images, masks, _ = look([face(**choice) for choice in choices])
    hair = mask(masks, "hair")[0]
    means = images[:, hair].mean(axis=1)
    for one, other in itertools.combinations(means, 2):
        assert np.abs(one - other).max() > 0.04
    brown, gray, blond, _, black = means[:5]
    assert black.max() < 0.15
    assert gray.max() - gray.min() < 0.05
    assert brown[0] > brown[1] > brown[2] + 0.05
    assert blond[0] > blond[1] > blond[2] + 0.2


def test_the_other_turn_in_the_other_light_is_the_mirror_image():
    faces = random_faces(64, seed=3)
    mirrored = faces.copy()
    mirrored[:, 16] = 14 - faces[:, 16]
    mirrored[:, 17] = 8 - faces[:, 17]
    front = np.stack([face(), face(Male=1, Eyeglasses=1, No_Beard=0, Smiling=1)])
    images, masks, _ = look(np.concatenate([faces, front]))
    others, other_masks, _ = look(np.concatenate([mirrored, front]))
    np.testing.assert_allclose(images, others[:, :, ::-1], atol=2e-4)
    # A pixel that is covered by half may round to either part.
    assert (masks != other_masks[..., ::-1]).mean() < 1e-4


def test_turning_moves_the_nose_and_the_far_eye_narrows():
    _, masks, _ = look([face(yaw=k) for k in range(15)])
    columns = np.arange(64) + 0.5
    nose = mask(masks, "nose").sum(axis=1)
    places = (nose * columns).sum(axis=1) / nose.sum(axis=1)
    assert (np.diff(places) > 0.5).all()
    assert places[7] == 32
    eyes = mask(masks, "eyes").any(axis=1)
    right = [(eyes[k] & (columns > places[k])).sum() for k in (0, 7, 14)]
    assert right[0] >= right[1] > right[2]


def test_light_comes_from_its_side():
    images, masks, _ = look([face(light=k) for k in range(9)])
    skin = mask(masks, "face")[0]
    skin &= skin[:, ::-1]
    left, right = skin & (np.arange(64) < 28), skin & (np.arange(64) >= 36)
    more = [image[right].mean() - image[left].mean() for image in images]
    assert (np.diff(more) > 0.01).all()
    assert abs(more[4]) < 1e-5


def test_attributes_are_rounded_and_pose_is_continuous_and_clipped():
    images, _, _ = look(
        [
            face(Smiling=0.4, Eyeglasses=0.6, Bald=-3),
            face(Eyeglasses=1),
            face(yaw=7.5, light=3.5),
            face(yaw=99, light=-9),
            face(yaw=14, light=0),
            face(),
        ]
    )
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[3], images[4])
    assert 0.01 < np.abs(images[2] - images[5]).max() < 0.6


def test_one_face_is_drawn_as_in_a_batch_and_as_without_bands():
    faces = random_faces(BATCH, seed=4)
    images, _, _ = look(faces)

    @jax.jit
    def one(factors):
        whole = celeba._blend(celeba._layers(celeba._describe(factors), 0, 64))
        return draw(factors), jnp.moveaxis(whole, 0, -1)

    for row, image in zip(faces, images, strict=True):
        for again in one(row):
            np.testing.assert_allclose(again, image, atol=1e-5)
