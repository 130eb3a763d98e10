"""Interventions on codes: planted codebooks, and agreement with the model's own quantisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.interventions.codes import code_ablate, code_swap, postquant, prequant
from vaejax.models import nearest

# Entry 2 is nearest to entry 1, entry 0 to entry 1, entry 3 to entry 2.
EMBEDDING = jnp.array([[0.0, 0.0], [3.0, 0.0], [5.0, 0.0], [20.0, 0.0]])
ENCODED = jnp.array([[[0.5, 1.0], [3.5, 0.0], [4.5, 0.0]], [[2.9, 0.0], [0.0, 0.0], [30.0, 0.0]]])
CODES = jnp.array([[0, 1, 2], [1, 0, 3]])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_planted_codes_are_those_of_the_model():
    np.testing.assert_array_equal(nearest(EMBEDDING, ENCODED), CODES)


def test_postquant_sets_or_shifts_one_coordinate_and_nothing_else():
    expected = np.array(ENCODED)
    expected[:, 1, 0] = 7.0
    np.testing.assert_array_equal(postquant(ENCODED, 1, 0, value=7.0), expected)
    expected = np.array(ENCODED)
    expected[:, 2, 1] += 0.25
    np.testing.assert_array_equal(postquant(ENCODED, 2, 1, shift=0.25), expected)
    expected[:, 2, 1] = [3.0, 4.0]
    per_example = postquant(ENCODED, 2, 1, value=jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(per_example, expected)


def test_prequant_changes_a_code_only_where_the_step_leaves_its_cell():
    # The border between entries 0 and 1 is at 1.5, that between 1 and 2 at 4.
    moved = functools.partial(prequant, nearest, EMBEDDING, ENCODED, 0, 0)
    np.testing.assert_array_equal(moved(shift=0.9), CODES)
    np.testing.assert_array_equal(moved(shift=1.2), [[1, 1, 2], [2, 0, 3]])
    np.testing.assert_array_equal(moved(value=19.0), [[3, 1, 2], [3, 0, 3]])


def test_prequant_that_changes_nothing_gives_the_models_codes_bit_for_bit():
    embedding, encoded = normal(0, 33, 5), normal(1, 40, 6, 5)
    codes = prequant(nearest, embedding, encoded, 2, 3, shift=0.0)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, nearest(embedding, encoded))


def test_code_swap_by_index_and_by_mask():
    np.testing.assert_array_equal(code_swap(CODES, 1, 9), [[0, 9, 2], [1, 9, 3]])
    swapped = code_swap(CODES, jnp.array([2, 0]), jnp.array([7, 8]))
    np.testing.assert_array_equal(swapped, [[8, 1, 7], [8, 0, 7]])
    mask = jnp.array([[True, False, True], [False, False, True]])
    np.testing.assert_array_equal(code_swap(CODES, mask, CODES + 5), [[5, 1, 7], [1, 0, 8]])
    np.testing.assert_array_equal(code_swap(CODES, mask[0], 4), [[4, 1, 4], [4, 0, 4]])
    assert code_swap(CODES, mask, 4).dtype == code_swap(CODES, 1, 4).dtype == jnp.int32


def test_code_ablate_takes_the_next_nearest_known_by_hand():
    ablated = [np.array(code_ablate(nearest, EMBEDDING, ENCODED, entry)) for entry in range(4)]
    np.testing.assert_array_equal(ablated[0], [[1, 1, 2], [1, 1, 3]])
    np.testing.assert_array_equal(ablated[1], [[0, 2, 2], [2, 0, 3]])
    np.testing.assert_array_equal(ablated[2], [[0, 1, 1], [1, 0, 3]])
    np.testing.assert_array_equal(ablated[3], [[0, 1, 2], [1, 0, 2]])


def test_code_ablate_is_found_by_brute_force():
    embedding, encoded = normal(0, 9, 4), normal(1, 50, 6, 4)
    distance = ((encoded[..., None, :] - embedding) ** 2).sum(-1)
    first, second = np.moveaxis(np.argsort(distance, axis=-1)[..., :2], -1, 0)
    for entry in range(9):
        codes = code_ablate(nearest, embedding, encoded, entry)
        np.testing.assert_array_equal(codes, np.where(first == entry, second, first))


def test_code_ablate_leaves_other_codes_alone_even_if_fewer_rows_round_otherwise():
    def quantize_unlike(embedding, vectors):
        codes = nearest(embedding, vectors)
        return codes if len(embedding) == 4 else jnp.zeros_like(codes)

    codes = code_ablate(quantize_unlike, EMBEDDING, ENCODED, 1)
    np.testing.assert_array_equal(codes, [[0, 0, 2], [0, 0, 3]])


def test_ablating_equal_entries_takes_the_lowest_index():
    embedding = jnp.array([[4.0], [1.0], [1.0], [1.0]])
    encoded = jnp.array([[1.0]])
    np.testing.assert_array_equal(nearest(embedding, encoded), [1])
    np.testing.assert_array_equal(code_ablate(nearest, embedding, encoded, 1), [2])


def test_traced_indices_give_the_same_as_loops():
    position, coordinate, entry = jnp.array([0, 2]), jnp.array([1, 0]), jnp.arange(4)
    set_each = jax.jit(jax.vmap(functools.partial(postquant, ENCODED, value=2.5)))
    for i, result in enumerate(set_each(position, coordinate)):
        one = postquant(ENCODED, int(position[i]), int(coordinate[i]), value=2.5)
        np.testing.assert_array_equal(result, one)
    move_each = jax.jit(
        jax.vmap(functools.partial(prequant, nearest, EMBEDDING, ENCODED, shift=2.0))
    )
    for i, result in enumerate(move_each(position, coordinate)):
        one = prequant(nearest, EMBEDDING, ENCODED, int(position[i]), int(coordinate[i]), shift=2.0)
        np.testing.assert_array_equal(result, one)
    swap_each = jax.jit(jax.vmap(functools.partial(code_swap, CODES)))
    for i, result in enumerate(swap_each(position, jnp.array([3, 2]))):
        np.testing.assert_array_equal(result, code_swap(CODES, int(position[i]), 3 - i))
    remove_each = jax.jit(jax.vmap(functools.partial(code_ablate, nearest, EMBEDDING, ENCODED)))
    for i, result in enumerate(remove_each(entry)):
        np.testing.assert_array_equal(result, code_ablate(nearest, EMBEDDING, ENCODED, i))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: postquant(ENCODED, 3, 0, value=0.0), "position at least 0 and below 3, got 3"),
        (lambda: postquant(ENCODED, 0, -1, value=0.0), "coordinate at least 0 and below 2, got -1"),
        (lambda: postquant(ENCODED, 0, 0), "either value or shift"),
        (
            lambda: prequant(nearest, EMBEDDING, ENCODED, 0, 0, value=1.0, shift=1.0),
            "either value or shift",
        ),
        (
            lambda: prequant(nearest, EMBEDDING, ENCODED, 0, 2, value=1.0),
            "coordinate at least 0 and below 2, got 2",
        ),
        (lambda: code_swap(CODES, 3, 0), "position at least 0 and below 3, got 3"),
        (lambda: code_swap(CODES, np.array([0, -1]), 0), r"below 3, got \[0, -1\]"),
        (lambda: code_swap(CODES, 0, -2), "new code at least 0, got -2"),
        (lambda: code_ablate(nearest, EMBEDDING, ENCODED, 4), "entry at least 0 and below 4"),
        (lambda: code_ablate(nearest, EMBEDDING[:1], ENCODED, 0), "at least 2 entries .* got 1"),
    ],
)
def test_wrong_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_small_step_does_nothing_before_rounding_and_its_length_after():
    weight = normal(2, 3, 2, 7)

    def decode(quantized):
        return jnp.einsum("bpd,pdo->bo", quantized, weight)

    before = decode(EMBEDDING[CODES])
    for step in (1e-3, 1e-2, 1e-1):
        rounded = EMBEDDING[prequant(nearest, EMBEDDING, ENCODED, 1, 0, shift=step)]
        np.testing.assert_array_equal(decode(rounded), before)
        change = decode(postquant(EMBEDDING[CODES], 1, 0, shift=step)) - before
        expected = np.tile(step * np.asarray(weight[1, 0]), (2, 1))
        np.testing.assert_allclose(change, expected, atol=1e-5)
