"""Sources whose factors follow a causal model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import (
    ArraySource,
    DataError,
    DataSource,
    Factor,
    GridSource,
    Masked,
    Renderable,
    source,
)
from vaejax.data.scm import SCM
from vaejax.data.scm_source import SCMSource
from vaejax.data.storage import OnDevice
from vaejax.data.worlds import world

N = 64
KEY = jax.random.key(0)


def lookup():
    """A grid of 54 noisy images."""
    factors = (Factor("kind", 2, categorical=True), *(Factor(name, 3) for name in "abc"))
    bits = np.random.default_rng(0).integers(0, 256, (54, 512), np.uint8)
    return GridSource(OnDevice(jnp.asarray(bits)), "grid", factors, 32)


def in_world(base, name):
    return SCMSource(base, world(name, base.name, base.factors), name)


DSPRITES, GRID = source("dsprites", 32), lookup()
FORK, COLLIDER = in_world(DSPRITES, "fork"), in_world(GRID, "collider")
SHAPE, SCALE, ORIENTATION, X, Y = range(5)


@jax.jit
def draw(data, key, value):
    """All that draws, in one program, since to compile random numbers takes long."""
    k = 3 if data.name == FORK.name else 1
    do = data.do({data.factors[k].name: value}, key, N)
    return data.sample(key, N), data.batch(key, N), do


render = jax.jit(lambda data, values: jax.vmap(data.render)(values))


@pytest.mark.parametrize("data", [FORK, COLLIDER], ids=["redrawn", "looked up"])
def test_images_are_the_bases_at_the_values_and_factors_the_nearest_classes(data):
    drawn, (images, factors), _ = draw(data, KEY, 1.5)
    np.testing.assert_array_equal(images, drawn.images)
    np.testing.assert_array_equal(images, render(data.base, drawn.values))
    np.testing.assert_array_equal(factors, np.round(drawn.values))
    np.testing.assert_allclose(drawn.values, data.scm.solve(drawn.noise), atol=1e-5)
    assert factors.dtype == jnp.int32
    between = np.asarray(drawn.values) != factors
    additive = [k for k, mechanism in enumerate(data.scm.mechanisms) if not mechanism.discrete]
    assert between[:, additive].mean() > 0.9
    assert between.sum() == between[:, additive].sum()
    # Looked up, they are those of the classes; redrawn, those of the values themselves.
    assert jnp.array_equal(images, render(data.base, jnp.float32(factors))) == (data is COLLIDER)
    assert not jnp.array_equal(images, draw(data, jax.random.key(1), 1.5)[1][0])


def test_independent_factors_are_what_the_base_draws():
    independent = in_world(GRID, "independent")
    ours, theirs = jax.jit(lambda *of: [data.batch(KEY, N) for data in of])(independent, GRID)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert not independent.correlated
    assert COLLIDER.correlated


def test_it_is_what_its_base_is():
    for base in (DSPRITES, GRID):
        data = in_world(base, "chain")
        assert isinstance(data, DataSource)
        assert isinstance(data, Renderable)
        assert isinstance(data, Masked) == isinstance(base, Masked) == (base is DSPRITES)
        assert data.name == f"{base.name}@chain"
        assert data.replace(world="").name == base.name
        assert (data.origin, data.image_shape) == (base.origin, base.image_shape)
        assert (data.factors, len(data)) == (base.factors, len(base))
    values = jnp.array([0.0, 2.0, 3.0, 4.5, 5.0])
    mask = jax.jit(lambda data: data.masks(values)["object"])
    np.testing.assert_array_equal(mask(FORK), mask(DSPRITES))


def test_it_is_a_pytree_of_the_bases_arrays():
    data = in_world(GRID, "chain")
    leaves, structure = jax.tree.flatten(data)
    assert [leaf.shape for leaf in leaves] == [(54, 512)]
    assert jax.tree.unflatten(structure, leaves).name == "grid@chain"
    assert isinstance(jax.tree.map(lambda leaf: leaf, FORK), Masked)
    assert hash(structure) == hash(jax.tree.structure(in_world(lookup(), "chain")))


def test_setting_what_was_gives_the_same_image():
    drawn, _, _ = draw(FORK, KEY, 1.5)
    for k, factor in enumerate(FORK.factors):
        own = drawn.values[:, k]
        for same in (
            FORK.counterfactual(drawn.values, {factor.name: own}),
            FORK.set_factor(drawn.values, k, own),
        ):
            assert same.tobytes() == drawn.values.tobytes()
    np.testing.assert_array_equal(render(DSPRITES, same), drawn.images)


def test_interventions_reach_descendants_in_the_image():
    drawn, _, _ = draw(FORK, KEY, 1.5)
    moved = FORK.counterfactual(drawn.values, {"scale": 5})
    step = 5 - drawn.values[:, SCALE]
    np.testing.assert_array_equal(
        moved[:, [SHAPE, ORIENTATION]], drawn.values[:, [SHAPE, ORIENTATION]]
    )
    np.testing.assert_allclose(moved[:, X] - drawn.values[:, X], 0.6 * 31 / 5 * step, atol=1e-4)
    np.testing.assert_allclose(moved[:, Y] - drawn.values[:, Y], 0.32 * 31 / 5 * step, atol=1e-4)
    held = FORK.counterfactual(drawn.values, {"scale": 5}, propagate=False)
    np.testing.assert_array_equal(held, drawn.values.at[:, SCALE].set(5))
    # A square is symmetric about its centre.
    squares = FORK.counterfactual(moved, {"shape": 0})
    images = np.asarray(render(DSPRITES, squares))[..., 0]
    centre = (images.sum(1) @ (np.arange(32) + 0.5)) / images.sum((1, 2))
    np.testing.assert_allclose(centre, 8 + 16 * np.asarray(moved[:, X]) / 31, atol=0.5)


@pytest.mark.parametrize(
    ("data", "cause", "others"), [(FORK, X, [SHAPE, SCALE, ORIENTATION]), (COLLIDER, 1, [0, 3])]
)
def test_interventional_examples_have_the_noise_of_observed_ones(data, cause, others):
    drawn, _, do = draw(data, KEY, 1.5)
    np.testing.assert_array_equal(do.noise, drawn.noise)
    assert jnp.all(do.values[:, cause] == 1.5)
    np.testing.assert_array_equal(do.values[:, others], drawn.values[:, others])
    predicted = data.counterfactual(drawn.values, {data.factors[cause].name: 1.5})
    np.testing.assert_allclose(do.values, predicted, atol=1e-4)
    assert (do.values != drawn.values).any(axis=0).sum() == 2
    np.testing.assert_array_equal(do.images, render(data.base, do.values))


def test_a_scan_over_factors_and_values_draws_each_counterfactual():
    data, values = COLLIDER, draw(COLLIDER, KEY, 1.5)[0].values
    ks, to = jnp.array([-1, 1, 2, 0, 3]), jnp.array([0.0, 2.0, 0.0, 1.0, 1.0])

    @jax.jit
    def scan(data, values):
        def step(carry, setting):
            return carry, jax.vmap(data.render)(data.set_factor(values, *setting))

        return jax.lax.scan(step, None, (ks, to))[1]

    images = scan(data, values)
    np.testing.assert_array_equal(images[0], render(GRID, values))
    for k, v, image in zip(ks[1:].tolist(), to[1:].tolist(), images[1:], strict=True):
        moved = data.counterfactual(values, {data.factors[k].name: v})
        np.testing.assert_array_equal(image, render(GRID, moved))


def test_what_cannot_be_a_source_gets_one_line():
    arrays = ArraySource.of(np.zeros((2, 4, 4, 1)), [[0], [1]])
    with pytest.raises(DataError, match="own: cannot render"):
        SCMSource(arrays, SCM.of(arrays.factors, {}), "world")
    with pytest.raises(DataError, match=r"grid: a model of shape \(3\).* factors are kind \(2\)"):
        SCMSource(GRID, FORK.scm, "fork")
