"""Edits against their closed forms, what they refuse, and the units of a site."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.interventions import edits
from vaejax.interventions.edits import num_units, sum_units, unit_ids, unit_mask

A = np.array([[1.0, -2.0, 3.0], [5.0, 0.0, -7.0]], np.float32)
DONOR = np.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]], np.float32)
MASK = np.array([[True, False, True], [False, False, True]])
HERE = np.array([True, False, False])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("replace", DONOR, DONOR),
        ("replace", DONOR[1], [[40, 50, 60], [40, 50, 60]]),
        ("replace", 2.5, [[2.5, 2.5, 2.5], [2.5, 2.5, 2.5]]),
        ("replace", 2, [[2, 2, 2], [2, 2, 2]]),
        ("add", DONOR, [[11, 18, 33], [45, 50, 53]]),
        ("add", DONOR[0], [[11, 18, 33], [15, 20, 23]]),
        ("add", -1, [[0, -3, 2], [4, -1, -8]]),
        ("scale", DONOR, [[10, -40, 90], [200, 0, -420]]),
        ("scale", DONOR[0], [[10, -40, 90], [50, 0, -210]]),
        ("scale", 0.5, [[0.5, -1, 1.5], [2.5, 0, -3.5]]),
        ("clamp", (-1.0, 2.0), [[1, -1, 2], [2, 0, -1]]),
        ("clamp", (DONOR - 30, DONOR[0] + 0.5), [[1, -2, 3], [10, 20, 30]]),
        ("swap", (MASK, DONOR), [[10, -2, 30], [5, 0, 60]]),
        ("swap", (HERE, DONOR[0]), [[10, -2, 3], [10, 0, -7]]),
        ("swap", (True, 7.0), [[7, 7, 7], [7, 7, 7]]),
        ("swap", (False, np.full_like(A, np.nan)), A),
        ("zero", MASK, [[0, -2, 0], [5, 0, 0]]),
        ("zero", HERE, [[0, -2, 3], [0, 0, -7]]),
        ("zero", True, np.zeros((2, 3))),
        ("mean", MASK, [[3, -2, -2], [5, 0, -2]]),
        ("mean", HERE, [[3, -2, 3], [3, 0, -7]]),
        ("resample", (MASK, np.array([1, 0])), [[5, -2, -7], [5, 0, 3]]),
        ("resample", (HERE, np.array([1, 1])), [[5, -2, 3], [5, 0, -7]]),
    ],
)
def test_edits_by_hand(name, value, expected):
    edit, activation = getattr(edits, name), jnp.asarray(A)
    for result in (edit(activation, value), jax.jit(edit)(activation, value)):
        assert result.shape == activation.shape
        assert result.dtype == jnp.float32
        assert not result.weak_type
        np.testing.assert_array_equal(result, np.asarray(expected, np.float32))


def test_replacing_and_zeroing_get_rid_of_what_is_not_a_number():
    broken = jnp.full((2, 3), jnp.nan)
    np.testing.assert_array_equal(edits.replace(broken, DONOR), DONOR)
    np.testing.assert_array_equal(edits.zero(broken, True), np.zeros((2, 3)))


def test_one_example_is_the_same_for_the_whole_batch_even_if_the_batch_is_as_large():
    # [3] for [3, 3] is one example, not one number for each example.
    result = edits.replace(jnp.zeros((3, 3)), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(result, [[1, 2, 3]] * 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("number", [2, 0.5])
def test_python_numbers_take_the_type_of_the_activation(dtype, number):
    activation = jnp.ones((2, 3), dtype)
    with jax.numpy_dtype_promotion("strict"):
        for edit in (edits.replace, edits.add, edits.scale):
            assert edit(activation, number).dtype == dtype
            # As an argument of a jitted function a number stays one.
            assert jax.jit(edit)(activation, number).dtype == dtype
        assert edits.clamp(activation, (0, number)).dtype == dtype
        assert edits.swap(activation, (True, number)).dtype == dtype
        assert edits.mean(activation, True).dtype == dtype
        assert edits.zero(activation, True).dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_numbers_that_the_activation_cannot_hold_are_refused(dtype):
    activation = jnp.ones((2, 3), dtype)
    message = f"expected the value to be {jnp.dtype(dtype)}, got float32"
    with pytest.raises(ValueError, match=message):
        edits.replace(activation, 0.5)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(ValueError, match=message):
        edits.replace(activation, 0.5)


@pytest.mark.parametrize("name", ["replace", "add", "scale"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((1, 10)), r"shape \[4, 10\] or \[10\] or \[\], got \[1, 10\]"),
        (np.ones((4, 1)), r"shape \[4, 10\] or \[10\] or \[\], got \[4, 1\]"),
        (np.ones((1, 1)), r"shape \[4, 10\] or \[10\] or \[\], got \[1, 1\]"),
        (np.ones((4,)), r"shape \[4, 10\] or \[10\] or \[\], got \[4\]"),
        (np.ones((1,)), r"shape \[4, 10\] or \[10\] or \[\], got \[1\]"),
        (np.ones((2, 4, 10)), r"shape \[4, 10\] or \[10\] or \[\], got \[2, 4, 10\]"),
        (np.ones((4, 10), np.int32), "to be float32, got int32"),
        (np.ones(10, bool), "to be float32, got bool"),
        (jnp.ones((), jnp.bfloat16), "to be float32, got bfloat16"),
        (True, "to be float32, got bool"),
    ],
)
def test_a_value_of_another_shape_or_dtype_is_refused(name, value, message):
    edit = getattr(edits, name)
    with pytest.raises(ValueError, match=message) as error:
        edit(jnp.ones((4, 10)), value)
    assert "\n" not in str(error.value)
    if isinstance(value, bool):
        return
    with pytest.raises(ValueError, match=message):
        jax.jit(edit)(jnp.ones((4, 10)), value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(10), "the mask to be bool, got float32"),
        (np.ones(10, np.int32), "the mask to be bool, got int32"),
        (1, "the mask to be bool, got int32"),
        (1.0, "the mask to be bool, got float32"),
        (np.ones((1, 10), bool), r"the mask to be of shape \[4, 10\] or \[10\] or \[\], got"),
        (np.ones(4, bool), r"the mask to be of shape \[4, 10\] or \[10\] or \[\], got \[4\]"),
    ],
)
def test_a_mask_is_of_booleans_and_of_the_right_shape(mask, message):
    activation = jnp.ones((4, 10))
    for call in (
        lambda: edits.zero(activation, mask),
        lambda: edits.mean(activation, mask),
        lambda: edits.swap(activation, (mask, activation)),
        lambda: edits.resample(activation, (mask, jnp.arange(4))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_every_part_of_a_value_is_named():
    activation = jnp.ones((4, 10))
    with pytest.raises(ValueError, match=r"the lower end to be of shape .* got \[1, 10\]"):
        edits.clamp(activation, (np.ones((1, 10)), 1.0))
    with pytest.raises(ValueError, match=r"the upper end to be of shape .* got \[1, 10\]"):
        edits.clamp(activation, (1.0, np.ones((1, 10))))
    with pytest.raises(ValueError, match=r"the donor to be of shape .* got \[1, 10\]"):
        edits.swap(activation, (True, np.ones((1, 10))))
    for rows in (np.arange(3), np.arange(4.0), np.ones(4, bool), 0):
        with pytest.raises(ValueError, match=r"expected rows \[4\] of integers, got \["):
            edits.resample(activation, (True, rows))


def test_several_arrays_are_replaced_and_swapped_by_values_to_match():
    activation = {"mean": jnp.asarray(A), "scale": jnp.ones(2)}
    donor = {"mean": DONOR[0], "scale": 3.0}
    result = edits.replace(activation, donor)
    np.testing.assert_array_equal(result["mean"], DONOR[[0, 0]])
    np.testing.assert_array_equal(result["scale"], [3, 3])
    np.testing.assert_array_equal(edits.swap(activation, (False, donor))["mean"], A)
    np.testing.assert_array_equal(edits.swap(activation, (True, donor))["scale"], [3, 3])
    with pytest.raises(ValueError, match="expected a value of structure"):
        edits.replace(activation, 0.0)
    with pytest.raises(ValueError, match="expected a value of structure"):
        edits.replace(jnp.asarray(A), (DONOR,))
    for edit in (edits.add, edits.scale, edits.zero, edits.mean):
        with pytest.raises(ValueError, match="expected a site of one array, got a dict"):
            edit(activation, True)


@pytest.mark.parametrize(
    ("shape", "by", "units"),
    [
        ((10,), "channel", 10),
        ((10,), "position", 1),
        ((10,), "element", 10),
        ((10,), "site", 1),
        ((4, 4, 8), "channel", 8),
        ((4, 4, 8), "position", 16),
        ((4, 4, 8), "element", 128),
        ((4, 4, 8), "site", 1),
        ((), "channel", 1),
        ((), "position", 1),
        ((), "element", 1),
        ((), "site", 1),
    ],
)
def test_units_partition_a_site(shape, by, units):
    ids = unit_ids(shape, by)
    assert isinstance(ids, np.ndarray)
    assert ids.shape == shape
    assert ids.dtype == np.int32
    assert num_units(shape, by) == units
    np.testing.assert_array_equal(np.unique(ids), np.arange(units))
    values = np.random.default_rng(0).integers(0, 9, (2, *shape)).astype(np.float32)
    sums = [np.bincount(ids.ravel(), row.ravel(), units) for row in values]
    np.testing.assert_array_equal(sum_units(jnp.asarray(values), by), sums)
    for index in np.ndindex(shape):
        expected = {
            "channel": index[-1] if index else 0,
            "position": np.ravel_multi_index(index[:-1], shape[:-1]) if len(index) > 1 else 0,
            "element": np.ravel_multi_index(index, shape) if index else 0,
            "site": 0,
        }[by]
        assert ids[index] == expected

    static = np.stack([unit_mask(shape, unit, by) for unit in range(units)])
    assert static.dtype == bool
    np.testing.assert_array_equal(static.sum(0), np.ones(shape))
    np.testing.assert_array_equal(static.argmax(0), ids)
    traced = jax.vmap(lambda unit: unit_mask(shape, unit, by))(jnp.arange(units))
    np.testing.assert_array_equal(traced, static)
    np.testing.assert_array_equal(unit_mask(shape, range(units), by), np.ones(shape))
    np.testing.assert_array_equal(unit_mask(shape, [], by), np.zeros(shape))


def test_a_traced_unit_that_is_not_there_selects_nothing():
    mask = jax.jit(lambda units: unit_mask((2, 3), units))
    np.testing.assert_array_equal(mask(jnp.array([-1, 3, 100])), np.zeros((2, 3)))
    np.testing.assert_array_equal(mask(jnp.array([-1, 2])), [[0, 0, 1]] * 2)


@pytest.mark.parametrize(
    ("units", "by", "message"),
    [
        (10, "channel", r"units below 10 \(channels of \[2, 10\]\), got \[10\]"),
        (-1, "channel", r"units below 10 \(channels of \[2, 10\]\), got \[-1\]"),
        ([0, 2, 1], "position", r"units below 2 \(positions of \[2, 10\]\), got \[2\]"),
        (np.array([20, 19]), "element", r"below 20 \(elements of \[2, 10\]\), got \[20\]"),
        (1, "site", r"units below 1 \(sites of \[2, 10\]\), got \[1\]"),
        (1.5, "channel", "units to be integers, got float64"),
        ([True, False], "channel", "units to be integers, got bool"),
        (0, "neuron", "by to be one of channel, position, element, site, got 'neuron'"),
    ],
)
def test_units_that_are_not_there_are_refused(units, by, message):
    with pytest.raises(ValueError, match=message):
        unit_mask((2, 10), units, by)


def test_a_traced_mask_is_no_unit():
    with pytest.raises(ValueError, match="units to be integers, got bool"):
        jax.jit(lambda units: unit_mask((4,), units))(jnp.ones(4, bool))
