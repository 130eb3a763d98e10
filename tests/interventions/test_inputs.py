"""Input manipulation on planted images and encoders."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax import data
from vaejax.interventions.input_effects import factor_changes, factor_effects
from vaejax.interventions.inputs import do_factor, factor_pairs, lookup, set_factor

SIZES = (3, 1, 4)
FACTORS = np.array(list(itertools.product(*map(range, SIZES))))
VALUES = tuple(np.arange(size) for size in SIZES)


def render(g):
    """A 2x3 image: the first factor everywhere, the last one in its first row only."""
    return (g[0] * jnp.ones((2, 3, 1)) + 10.0 * g[2] * jnp.array([1.0, 0.0])[:, None, None]) * 1.0


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


WEIGHT = normal(0, 1, 5)


def encode(images):
    maps = jnp.tanh(0.1 * images @ WEIGHT)
    return {"map": maps, "code": maps.sum(axis=(1, 2)) * 0.7}


def images_of(factors):
    return np.stack([np.asarray(render(g)) for g in np.asarray(factors, np.float32)])


@pytest.mark.parametrize("value", [2, 0.25, np.arange(12) / 3])
@pytest.mark.parametrize("k", [0, 2])
def test_do_factor_draws_the_changed_factors(k, value):
    changed = FACTORS.astype(float)
    changed[:, k] = value
    np.testing.assert_allclose(do_factor(render, FACTORS, k, value), images_of(changed))
    traced = jax.jit(functools.partial(do_factor, render))(FACTORS, k, value)
    np.testing.assert_allclose(traced, images_of(changed))


def test_do_factor_draws_between_the_classes_of_dsprites():
    source = data.source("dsprites", image_size=32)
    factors = np.array([[0, 0, 7, 3, 9], [2, 5, 20, 16, 31]])
    draw = jax.jit(lambda k, value: do_factor(source.render, factors, k, value))
    images = {value: draw(1, value) for value in (2.0, 2.5, 3.0)}
    areas = np.array([images[value].sum(axis=(1, 2, 3)) for value in (2.0, 2.5, 3.0)])
    assert (np.diff(areas, axis=0) > 0).all()
    np.testing.assert_array_equal(draw(2, 39.0), draw(2, 0.0))  # the last repeats the first


def test_pairs_differ_in_one_factor_only():
    factors = np.tile(FACTORS, (50, 1))
    pairs = jax.jit(functools.partial(factor_pairs, render=render, sizes=SIZES, k=2))(
        jax.random.key(0), factors=factors
    )
    np.testing.assert_array_equal(pairs.clean_factors, factors)
    np.testing.assert_array_equal(pairs.corrupted_factors[:, :2], factors[:, :2])
    np.testing.assert_array_equal(pairs.clean, images_of(pairs.clean_factors))
    np.testing.assert_array_equal(pairs.corrupted, images_of(pairs.corrupted_factors))
    before, after = factors[:, 2], np.asarray(pairs.corrupted_factors[:, 2])
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (before, after), 1)
    assert (np.diag(counts) == 0).all()
    # 150 draws from each class, 50 expected for each other one, standard deviation 5.8.
    assert ((counts > 25) & (counts < 75))[~np.eye(4, dtype=bool)].all()


def test_lookup_finds_images_in_any_order():
    order = np.random.default_rng(1).permutation(len(FACTORS))
    images = images_of(FACTORS)
    table = lookup(images[order], FACTORS[order])
    assert table.sizes == SIZES
    drawn = jax.jit(lambda table, g: jax.vmap(table)(g))(table, FACTORS)
    np.testing.assert_array_equal(drawn, images)
    between = FACTORS + np.array([0.4, 7.0, -0.3])  # rounded, and clipped to the range
    np.testing.assert_array_equal(jax.vmap(table)(between), images)
    np.testing.assert_array_equal(do_factor(table, FACTORS, 0, 1), do_factor(render, FACTORS, 0, 1))


@pytest.mark.parametrize(
    ("factors", "sizes", "message"),
    [
        (FACTORS[1:], None, r"3 x 1 x 4 classes once, \(0, 0, 0\) is missing"),
        (np.delete(FACTORS, 6, 0), None, r"\(1, 0, 2\) is missing"),
        (FACTORS, (3, 1, 5), r"3 x 1 x 5 classes once, \(0, 0, 4\) is missing"),
        (FACTORS[:-1], SIZES, r"\(2, 0, 3\) is missing"),
        (np.concatenate([FACTORS, FACTORS[5:6]]), None, r"\(1, 0, 1\) occurs more than once"),
        (FACTORS, (3, 1, 3), r"below sizes \(3, 1, 3\), got .*3\]"),
        (FACTORS - 1, SIZES, r"classes from 0 .*got \[-1, -1, -1\]"),
        (FACTORS, (3, 4), r"sizes \(3, 4\)"),
        (FACTORS * 1.0, None, "integer classes, got float64"),
        (FACTORS[:, 0], None, r"factors \[M, K\].*\(12,\)"),
        (FACTORS[:0], None, "not empty"),
    ],
)
def test_incomplete_tables_are_refused(factors, sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        lookup(np.zeros((len(factors), 2, 3, 1)), factors, sizes)
    assert "\n" not in str(error.value)


def naive_effects(name, values):
    effects = np.zeros((len(FACTORS), 3, 5))
    for (n, own), k in itertools.product(enumerate(FACTORS), range(3)):
        changes = []
        for value in values[k]:
            changed = own.astype(float)
            changed[k] = value
            before, after = (np.float64(encode(images_of([g]))[name][0]) for g in (own, changed))
            if value != own[k]:
                changes.append(np.abs(after - before).reshape(-1, 5).mean(axis=0))
        if changes:
            effects[n, k] = np.mean(changes, axis=0)
    return effects


@pytest.mark.parametrize(("name", "chunk"), [("map", None), ("code", 5), ("map", 1)])
def test_factor_effects_equal_a_plain_loop(name, chunk):
    values = ([0, 1, 2], [0], [0.5, 3])
    result = jax.jit(lambda g: factor_effects(encode, render, g, values, chunk=chunk))(FACTORS)
    expected = naive_effects(name, values)
    np.testing.assert_allclose(result.per_example[name], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.mean.value[name], expected.mean(axis=0), rtol=1e-4)
    ends = (result.mean.low, result.mean.value, result.mean.high)
    low, value, high = (np.delete(end[name], 1, axis=0) for end in ends)
    assert (low < value).all()
    assert (value < high).all()


def follows(factors, k, value):
    """The last factor is one more than the first, if it is the first that is set."""
    changed = set_factor(factors, k, value)
    return jnp.where((jnp.asarray(k) == 0) & (jnp.arange(3) == 2), changed[:, :1] + 1, changed)


def test_what_depends_on_a_factor_may_follow_it():
    changed = FACTORS.astype(float)
    changed[:, 0], changed[:, 2] = 2, 3
    images = do_factor(render, FACTORS, 0, 2, set_factor=follows)
    np.testing.assert_allclose(images, images_of(changed))
    pairs = factor_pairs(jax.random.key(0), render, FACTORS, SIZES, 0, set_factor=follows)
    np.testing.assert_array_equal(pairs.corrupted_factors[:, 2], pairs.corrupted_factors[:, 0] + 1)
    np.testing.assert_allclose(pairs.corrupted, images_of(pairs.corrupted_factors))

    values = np.array([[0, 2], [0, 0], [1, 3]])

    def linear(images):
        return images.mean(axis=2)[..., 0]

    found = jax.jit(lambda g: factor_changes(linear, render, g, values, set_factor=follows))(
        FACTORS
    )
    first, last = FACTORS[:, 0], FACTORS[:, 2]
    np.testing.assert_allclose(found[:, 0, 1, 0], (2 - first) + 10 * (3 - last))
    np.testing.assert_allclose(found[:, 2, 1, 0], 10 * (3 - last))
    effects = factor_effects(linear, render, FACTORS, values, set_factor=follows)
    others = (FACTORS[:, :1] != values[0]).sum(axis=1)
    expected = np.abs(found[:, 0, :, 0]).sum(axis=1) / others
    np.testing.assert_allclose(effects.per_example[:, 0, 0], expected, rtol=1e-6)


def test_linear_encoder_has_a_closed_form():
    """Setting a class at random to another of 3 moves it by 4/3 on average, of 4 by 5/3."""

    def mean_of_rows(images):
        return images.mean(axis=2)[..., 0] * jnp.array([2.0, 1.0])

    result = factor_effects(mean_of_rows, render, FACTORS, VALUES)
    expected = [[2 * 4 / 3, 4 / 3], [0, 0], [2 * 10 * 5 / 3, 0]]
    np.testing.assert_allclose(result.mean.value, expected, rtol=1e-6)


def test_factor_changes_equal_a_plain_loop_and_average_to_the_effects():
    values = np.array([[0, 2], [0, 0], [1, 3]])
    changes = jax.jit(lambda g: factor_changes(encode, render, g, values, chunk=5))(FACTORS)
    assert changes["map"].shape == (12, 3, 2, 2, 3, 5)
    before = encode(images_of(FACTORS))
    for k, v in itertools.product(range(3), range(2)):
        after = encode(np.asarray(do_factor(render, FACTORS, k, values[k, v])))
        for name in ("map", "code"):
            np.testing.assert_allclose(
                changes[name][:, k, v], after[name] - before[name], rtol=1e-4, atol=1e-6
            )
    effects = factor_effects(encode, render, FACTORS, values)
    pooled = np.abs(changes["map"]).mean(axis=(3, 4))
    count = np.maximum((FACTORS[..., None] != values).sum(axis=2), 1)[..., None]
    np.testing.assert_allclose(
        effects.per_example["map"], pooled.sum(axis=2) / count, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("chunk", [5, 12])
def test_equal_images_give_exactly_no_effect(optimized, chunk):
    """Also where XLA fuses: the encoder ends in a multiplication."""
    weight, gain = normal(2, 6, 320), normal(3, 8, 8, 5)

    def network(images):
        return jnp.tanh(images.reshape(len(images), -1) @ weight).reshape(-1, 8, 8, 5) * gain

    def unmoved(g):
        return render(g.at[0].set(g[0] // 3))  # every class of the first factor looks the same

    effects = factor_effects(network, unmoved, FACTORS, VALUES, chunk=chunk)
    assert (effects.per_example[:, :2] == 0).all()
    assert (effects.per_example[:, 2] > 0).any()
    changes = factor_changes(network, unmoved, FACTORS, np.array([[1, 2], [0, 0], [1, 2]]))
    assert (changes[:, :2] == 0).all()
    same = FACTORS[:, 2] == 1
    assert (changes[same, 2, 0] == 0).all()
    assert (changes[~same, 2, 0] != 0).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: do_factor(render, FACTORS, 3, 0), "below 3, got 3"),
        (lambda: do_factor(render, FACTORS, 0, np.zeros(5)), r"value .*B = 12.*\(5,\)"),
        (lambda: factor_pairs(jax.random.key(0), render, FACTORS, SIZES, 1), "factor 1 .*got 1"),
        (lambda: factor_pairs(jax.random.key(0), render, FACTORS, SIZES, 3), "k from 0 to 2, got"),
        (lambda: factor_pairs(jax.random.key(0), render, FACTORS, (3, 4), 0), r"K = 2.*\(12, 3\)"),
        (lambda: factor_pairs(jax.random.key(0), render, 1.0 * FACTORS, SIZES, 0), "got float32"),
        (lambda: factor_effects(encode, render, FACTORS, VALUES[:2]), r"K = 2.*\(12, 3\)"),
        (lambda: factor_effects(encode, render, FACTORS, (*VALUES[:2], [])), r"values .*\(0,\)"),
        (lambda: factor_effects(encode, render, FACTORS, VALUES, chunk=0), "chunk >= 1, got 0"),
        (lambda: factor_effects(jnp.sum, render, FACTORS, VALUES), r"encode .*\[12, .*\(\)"),
        (lambda: factor_changes(encode, render, FACTORS, np.zeros(3)), r"\[K, V\].*\(3,\)"),
        (lambda: factor_changes(encode, render, FACTORS, np.zeros((2, 1))), r"K = 2.*\(12, 3\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
