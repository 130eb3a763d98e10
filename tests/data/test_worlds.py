"""The shipped worlds: their equations, their ranges and the parts that factors play."""

import functools
import importlib
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import DataError, Factor
from vaejax.data.scm import Bernoulli
from vaejax.data.worlds import ATTRIBUTES, ROLES, names, world

N = 2**14
SIGMAS = 5

DATASETS = [name for name in ROLES if importlib.util.find_spec(f"vaejax.data.redrawn.{name}")]
PAIRS = [(d, w) for d in DATASETS for w in names() if (w != "attributes" or d == "celeba")]


def factors_of(dataset):
    return importlib.import_module(f"vaejax.data.redrawn.{dataset}").FACTORS


@functools.cache
def drawn(dataset):
    """Classes and numbers that are uniform, for all variables of a dataset."""
    sizes = np.array([factor.size for factor in factors_of(dataset)])
    rng = np.random.default_rng(0)
    return rng.integers(0, sizes, (N, len(sizes))), rng.random((N, len(sizes)))


def sample(scm, dataset):
    """Noise and the values it gives; NumPy's numbers, since JAX's take a second to compile."""
    classes, uniform = drawn(dataset)
    columns = [m.noise(uniform[:, k], classes[:, k]) for k, m in enumerate(scm.mechanisms)]
    noise = jnp.asarray(np.stack(columns, axis=1), jnp.float32)
    return noise, np.asarray(scm.solve(noise))


def by_role(scm, dataset, values):
    """Columns of the four roles, in units of ranges."""
    ranges = np.array([factor.size - 1 for factor in scm.factors])
    return [(values / ranges)[:, scm.index(name)].astype(np.float64) for name in ROLES[dataset]]


def slope(y, *xs):
    """The coefficient of the first x in the least-squares fit of y, and its standard error."""
    design = np.stack([*xs, np.ones_like(y)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    fit = inverse @ design.T @ y
    residual = y - design @ fit
    # Robust to noise that is not the same for all x, as where a line is not the truth.
    covariance = inverse @ (design.T * residual**2 @ design) @ inverse
    return fit[0], np.sqrt(covariance[0, 0])


@pytest.mark.parametrize(("dataset", "name"), PAIRS)
def test_no_variable_leaves_its_classes_whatever_is_set(dataset, name):
    scm = world(name, dataset, factors_of(dataset))
    assert sorted(scm.order) == list(range(len(scm.factors)))
    tops = np.array([factor.size - 1 for factor in scm.factors])
    noise, values = sample(scm, dataset)
    rng = np.random.default_rng(1)
    k = rng.integers(0, len(tops), N)
    moved = scm.solve_with(noise, k, np.where(rng.random(N) < 0.5, 0, tops[k]))
    for these in (values, np.asarray(moved)):
        assert these.min() >= 0
        assert np.all(these <= tops * (1 + 1e-6))
        whole = [k for k, mechanism in enumerate(scm.mechanisms) if mechanism.discrete]
        np.testing.assert_array_equal(these[:, whole], np.round(these[:, whole]))
    # They take up most of them: additive ones at least half of their range.
    assert np.all(np.ptp(values, axis=0) > 0.5 * tops)
    assert scm.total_effects().exact
    assert scm.direct_effects().exact


@pytest.mark.parametrize("dataset", DATASETS)
def test_in_a_fork_the_slope_that_is_observed_is_not_the_effect(dataset):
    scm = world("fork", dataset, factors_of(dataset))
    noise, values = sample(scm, dataset)
    z, x, y, _ = by_role(scm, dataset, values)
    classes = scm.factors[scm.index(ROLES[dataset].first)].size
    variance = (classes + 1) / (12 * (classes - 1))
    observed = -0.3 + 0.3 * variance / (0.36 * variance + 0.16 / 12)
    documented = {2: 0.43, 3: 0.38, 6: 0.33}
    assert round(observed, 2) == documented.get(classes, round(observed, 2))
    assert 0.27 < observed < 0.43
    found, error = slope(y, x)
    assert abs(found - observed) < SIGMAS * error < 0.05
    found, error = slope(y, x, z)
    assert abs(found + 0.3) < SIGMAS * error < 0.05
    ends = [
        by_role(
            scm, dataset, np.asarray(scm.solve_with(noise, scm.index(ROLES[dataset].second), v))
        )
        for v in (0, scm.factors[scm.index(ROLES[dataset].second)].size - 1)
    ]
    np.testing.assert_allclose(ends[1][2] - ends[0][2], -0.3, atol=1e-5)
    np.testing.assert_array_equal(ends[0][0], z)
    effects = scm.total_effects().value
    i, j, k = (scm.index(name) for name in ROLES[dataset][:3])
    np.testing.assert_allclose(
        [effects[i, j], effects[j, k], effects[i, k]], [0.6, -0.3, 0.32], atol=1e-6
    )


def test_a_chain_has_an_effect_without_an_edge():
    scm = world("chain", "dsprites", factors_of("dsprites"))
    a, b, c = (scm.index(name) for name in ("scale", "x", "y"))
    assert np.argwhere(scm.graph).tolist() == [[a, b], [b, c]]
    total, direct = scm.total_effects().value, scm.direct_effects().value
    assert direct[a, c] == 0
    np.testing.assert_allclose(
        [direct[a, b], direct[b, c], total[a, c], total[c, a]], [0.7, 0.7, 0.49, 0], atol=1e-6
    )
    _, values = sample(scm, "dsprites")
    found, error = slope(*by_role(scm, "dsprites", values)[2::-2])
    assert abs(found - 0.49) < SIGMAS * error < 0.05


@pytest.mark.parametrize("dataset", DATASETS)
def test_behind_the_gate_of_a_collider_is_an_effect(dataset):
    scm = world("collider", dataset, factors_of(dataset))
    _, values = sample(scm, dataset)
    _, x, y, z = by_role(scm, dataset, values)
    is_open = z == 1
    inside, error = slope(y[is_open], x[is_open])
    assert abs(inside - 0.7) < SIGMAS * error < 0.1
    outside, error = slope(y[~is_open], x[~is_open])
    assert abs(outside) < SIGMAS * error < 0.1
    # Independent, but not given Y: a high Y comes from an open gate and a high X.
    assert abs(np.corrcoef(x, z)[0, 1]) < SIGMAS / np.sqrt(N)
    high = (y > 0.2) & (y < 0.4)
    assert abs(np.corrcoef(x[high], is_open[high])[0, 1]) > 0.05
    gate = scm.factors[scm.index(ROLES[dataset].gate)].size
    _, i, j, g = (scm.index(name) for name in ROLES[dataset])
    direct = scm.direct_effects().value
    np.testing.assert_allclose([direct[i, j], direct[g, j]], [0.7 / gate, 0.35], atol=1e-6)


def test_independent_factors_are_roots():
    scm = world("independent", "any", (Factor("a", 3), Factor("b", 4)))
    assert not scm.graph.any()
    assert not scm.direct_effects().value.any()
    np.testing.assert_array_equal(scm.total_effects().value, np.eye(2))


def test_attributes_depend_on_attributes_that_there_are():
    assert len(ATTRIBUTES) == 40
    for name, (_, parents) in ATTRIBUTES.items():
        assert name not in parents
        assert set(parents) <= ATTRIBUTES.keys()


@pytest.mark.skipif("celeba" not in DATASETS, reason="no redrawn faces")
def test_attributes_of_redrawn_faces():
    factors = factors_of("celeba")
    scm = world("attributes", "celeba", factors)
    for factor, mechanism in zip(factors, scm.mechanisms, strict=True):
        assert isinstance(mechanism, Bernoulli) == (factor.name in ATTRIBUTES)
        assert factor.size == 2 or factor.name not in ATTRIBUTES
    # Correlated, and none too rare to be learned from.
    noise, values = sample(scm, "celeba")
    on = values[:, [k for k, m in enumerate(scm.mechanisms) if isinstance(m, Bernoulli)]]
    assert np.all((on.mean(axis=0) > 0.03) & (on.mean(axis=0) < 0.97))
    assert scm.graph.sum() >= 10
    # Exact effects of what has most of them, against interventions on the same noise.
    total = np.asarray(scm.total_effects().value)
    for name in ("Male", "Young", "Smiling"):
        k = scm.index(name)
        change = np.asarray(scm.solve_with(noise, k, 1.0)) - np.asarray(
            scm.solve_with(noise, k, 0.0)
        )
        error = np.maximum(change.std(axis=0) / np.sqrt(N), 1e-6)
        assert np.max(np.abs(change.mean(axis=0) - total[k]) / error) < SIGMAS
        assert np.sum(np.abs(total[k]) > 0.05) > 1
    # What Male does to a mustache by way of the beard, an edge of its own aside.
    direct = np.asarray(scm.direct_effects().value)
    male, mustache = scm.index("Male"), scm.index("Mustache")
    assert 0.01 < direct[male, mustache] < total[male, mustache] - 0.05


def test_other_datasets_take_their_largest_ordered_factors():
    factors = (
        Factor("kind", 4, categorical=True),
        Factor("small", 3),
        Factor("flag", 2),
        Factor("wide", 9),
        Factor("wider", 20),
    )
    edges = lambda name: {  # noqa: E731
        (factors[i].name, factors[j].name)
        for i, j in np.argwhere(world(name, "mine", factors).graph)
    }
    assert edges("chain") == {("wider", "wide"), ("wide", "small")}
    assert edges("fork") == {("wider", "wide"), ("wider", "small"), ("wide", "small")}
    assert edges("collider") == {("wider", "wide"), ("kind", "wide")}


@pytest.mark.parametrize(
    ("name", "dataset", "factors", "said"),
    [
        ("forks", "mine", [], "unknown world 'forks': did you mean 'fork'"),
        ("chain", "mine", [Factor("a", 5), Factor("b", 2)], "mine: .* 3 ordered .* it has 1"),
        ("collider", "mine", [Factor("a", 5), Factor("b", 5)], "needs a categorical factor"),
        ("fork", "dsprites", [Factor("x", 5), Factor("y", 5)], "needs scale, but .* are x, y"),
        ("attributes", "mine", [Factor("a", 2)], "CelebA's attributes, such as 'Male', .* are a"),
        ("attributes", "mine", [Factor("Young", 2), Factor("Bald", 2)], "'Male', on which 'Bald'"),
        ("attributes", "mine", [Factor("Male", 3)], "'Male': a Bernoulli has 2 classes"),
    ],
)
def test_what_is_missing_is_said_in_one_line(name, dataset, factors, said):
    with pytest.raises(DataError, match=said) as caught:
        world(name, dataset, factors)
    assert "\n" not in str(caught.value)
