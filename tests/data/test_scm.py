"""Structural causal models: their distributions, counterfactuals and effects."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.data import DataError, Factor
from vaejax.data.scm import SCM, Bernoulli, Gated, Linear, Root
from vaejax.data.scm_effects import simulated_effects
from vaejax.data.sizes import sample_factors

N = 2**15
SIGMAS = 5  # of standard errors that an estimate may be off

# a -> b, (a, b) -> c -> d, with these weights and noise.
LINEAR = SCM.of(
    tuple(map(Factor, "dacb", (17, 5, 21, 9))),
    {
        "b": Linear(("a",), (1.0,), low=0, high=4),
        "c": Linear(("a", "b"), (-1.5, 1.25), intercept=6, low=0, high=4),
        "d": Linear(("c",), (0.5,), intercept=1, low=0, high=5),
    },
)
D, A, C, B = range(4)
WEIGHTS = np.zeros((4, 4))
WEIGHTS[A, B], WEIGHTS[A, C], WEIGHTS[B, C], WEIGHTS[C, D] = 1, -1.5, 1.25, 0.5
NOISE_MEAN = np.array([1 + 2.5, 2, 6 + 2, 2])
NOISE_VARIANCE = np.array([25 / 12, (5**2 - 1) / 12, 16 / 12, 16 / 12])

# p -> q, (p, q) -> r, (r, t) -> s, with t a root of three classes.
LOGITS = {
    "p": Bernoulli(bias=-0.5),
    "q": Bernoulli(("p",), (2.0,), -1.0),
    "r": Bernoulli(("p", "q"), (-1.5, 1.0), 0.3),
    "s": Bernoulli(("r", "t"), (1.0, 0.7), -1.2),
}
BINARY = SCM.of([*(Factor(name, 2) for name in "pqrs"), Factor("t", 3)], LOGITS)

# Everything: gate -> y <- x, y -> z -> flag -> late, and a bystander.
MIXED = SCM.of(
    (
        Factor("late", 8),
        Factor("flag", 2, categorical=True),
        Factor("x", 5),
        Factor("gate", 3, categorical=True),
        Factor("y", 9),
        Factor("bystander", 4),
        Factor("z", 9),
    ),
    {
        "y": Gated(("x",), (1.5,), "gate", 2, low=0, high=2),
        "z": Linear(("y",), (-0.7,), intercept=5.9, low=-0.3, high=2),
        "flag": Bernoulli(("z",), (0.6,), -2.0),
        "late": Linear(("flag", "x"), (2.0, 0.3), low=0, high=3),
    },
)
DESCENDANTS = {
    "late": "",
    "flag": ("late",),
    "x": ("y", "z", "flag", "late"),
    "gate": ("y", "z", "flag", "late"),
    "y": ("z", "flag", "late"),
    "bystander": "",
    "z": ("flag", "late"),
}

KEY = jax.random.key(20)

# Compiled once: to compile random numbers takes most of the time of these tests, so that most draw
# them by NumPy, and what runs without jit has the same shapes everywhere.
sample_noise = jax.jit(lambda key: MIXED.sample_noise(key, N))
solve = jax.jit(lambda scm, noise: scm.solve(noise))
_set_factor = jax.jit(
    lambda scm, values, k, value, propagate: scm.set_factor(
        values, k, value, propagate=propagate, key=KEY
    ),
    static_argnames="propagate",
)


def set_factor(scm, values, k, value, propagate=True):
    value = jnp.broadcast_to(jnp.float32(value), (N,))
    return _set_factor(scm, values, jnp.int32(k), value, propagate=propagate)


def noise_of(scm, seed=0):
    rng = np.random.default_rng(seed)
    uniform = rng.random((N, len(scm.factors)))
    classes = rng.integers(0, [factor.size for factor in scm.factors], uniform.shape)
    columns = [m.noise(uniform[:, k], classes[:, k]) for k, m in enumerate(scm.mechanisms)]
    return jnp.asarray(np.stack(columns, axis=1), jnp.float32)


def sample(scm):
    return solve(scm, noise_of(scm))


def bits(array):
    return np.asarray(array).view(np.uint32)


def off(samples, expected):
    """How many standard errors the mean over samples is from what is expected."""
    samples = np.asarray(samples, np.float64)
    error = np.maximum(samples.std(axis=0) / np.sqrt(len(samples)), 1e-6)
    return np.abs(samples.mean(axis=0) - expected) / error


def linear_moments(fixed):
    """Mean and covariance of LINEAR with some variables set, by matrices."""
    weights, mean, variance = WEIGHTS.copy(), NOISE_MEAN.copy(), NOISE_VARIANCE.copy()
    for k, value in fixed.items():
        weights[:, k], mean[k], variance[k] = 0, value, 0
    paths = np.linalg.inv(np.eye(4) - weights)
    return mean @ paths, paths.T @ np.diag(variance) @ paths


@pytest.mark.parametrize("fixed", [{}, {A: 4}, {B: 1.5}, {C: 20}, {D: 3}, {A: 0, C: 7}])
def test_linear_interventional_moments_are_the_closed_form(fixed):
    noise = noise_of(LINEAR, 1)
    values = np.asarray(LINEAR.solve(noise, {LINEAR.names[k]: v for k, v in fixed.items()}))
    mean, covariance = linear_moments(fixed)
    assert off(values, mean).max() < SIGMAS
    centred = values - mean
    assert off(centred[:, :, None] * centred[:, None, :], covariance).max() < SIGMAS
    # The bound has teeth: the observational moments fail it.
    if C in fixed:
        assert off(values, linear_moments({})[0]).max() > 100


def joint(do):
    """Of each joint class of BINARY its probability with some variables set, term by term."""
    for p, q, r, s, t in itertools.product(range(2), range(2), range(2), range(2), range(3)):
        logits = {"p": -0.5, "q": 2 * p - 1, "r": -1.5 * p + q + 0.3, "s": r + 0.7 * t - 1.2}
        state = {"p": p, "q": q, "r": r, "s": s, "t": t}
        weight = 1.0 if "t" in do else 1 / 3
        for name, logit in logits.items():
            if name not in do:
                on = 1 / (1 + np.exp(-logit))
                weight *= on if state[name] else 1 - on
        yield (weight if all(state[name] == v for name, v in do.items()) else 0.0), state


@pytest.mark.parametrize("do", [{}, {"p": 1}, {"q": 0}, {"r": 1, "t": 2}])
def test_bernoulli_interventional_probabilities_are_those_of_enumeration(do):
    values = np.asarray(BINARY.solve(noise_of(BINARY, 2), do)).astype(int)
    counts = np.zeros((2, 2, 2, 2, 3))
    np.add.at(counts, tuple(values.T), 1)
    exact = np.zeros_like(counts)
    for weight, state in joint(do):
        exact[tuple(state[name] for name in BINARY.names)] += weight
    assert exact.sum() == pytest.approx(1)
    error = np.sqrt(exact * (1 - exact) / N)
    assert np.all(np.abs(counts / N - exact) <= SIGMAS * error)


def test_exact_effects_of_bernoullis_are_those_of_enumeration():
    names, tops = BINARY.names, [1, 1, 1, 1, 2]

    def mean(do):
        return sum(w * np.array([state[name] for name in names]) for w, state in joint(do))

    total = BINARY.total_effects()
    assert total.exact
    for i, name in enumerate(names):
        expected = (mean({name: tops[i]}) - mean({name: 0})) / tops
        np.testing.assert_allclose(total.value[i], expected, atol=1e-6)
    # Directly, p moves r's probability, averaged over p and q as they are observed.
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    direct = BINARY.direct_effects()
    assert direct.exact
    p_to_r = sum(w * (sigmoid(s["q"] - 1.2) - sigmoid(s["q"] + 0.3)) for w, s in joint({}))
    assert direct.value[0, 2] == pytest.approx(p_to_r, abs=1e-6)
    np.testing.assert_array_equal(np.asarray(direct.value) != 0, BINARY.graph)


def test_linear_effects_are_sums_over_paths():
    ranges = np.array([16, 4, 20, 8])
    scale = ranges[:, None] / ranges
    total, direct = LINEAR.total_effects(), LINEAR.direct_effects()
    np.testing.assert_allclose(total.value, np.linalg.inv(np.eye(4) - WEIGHTS) * scale, atol=1e-6)
    np.testing.assert_allclose(direct.value, WEIGHTS * scale, atol=1e-6)
    for effects in (total, direct):
        assert effects.exact
        assert jnp.array_equal(effects.low, effects.value)
        assert jnp.array_equal(effects.high, effects.value)
    np.testing.assert_array_equal(LINEAR.graph, WEIGHTS != 0)


def test_simulated_effects_agree_with_exact_ones():
    exact = BINARY.direct_effects()
    simulated = simulated_effects(BINARY, True, jax.random.key(3), N)
    assert not simulated.exact
    error = np.maximum((simulated.high - simulated.low) / 3.92, 1e-6)
    assert np.max(np.abs(simulated.value - exact.value) / error) < SIGMAS
    assert 1e-3 < (simulated.high - simulated.low).max() < 0.02


def test_a_number_between_classes_behind_a_sigmoid_is_simulated_and_says_so():
    factors = (Factor("cause", 3), Factor("level", 7), Factor("flag", 2))
    scm = SCM.of(
        factors,
        {
            "level": Linear(("cause",), (2.0,), low=0, high=2),
            "flag": Bernoulli(("level",), (1.0,), -2.0),
        },
    )
    total = scm.total_effects(jax.random.key(0), N)
    assert not total.exact
    error = np.maximum((total.high - total.value) / 1.96, 1e-6)
    # The mean of sigmoid(v) over v uniform on [l, l + 2] is an integral of the softplus.
    softplus = np.log1p(np.exp([4.0, 2.0, 0.0, -2.0]))
    cause_to_flag = (softplus[0] - softplus[1]) / 2 - (softplus[2] - softplus[3]) / 2
    level_to_flag = 1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(2))
    expected = [[1, 4 / 6, cause_to_flag], [0, 1, level_to_flag], [0, 0, 1]]
    assert np.max(np.abs(total.value - np.array(expected)) / error) < SIGMAS
    assert 0 < error[0, 2] < 0.005


def test_gated_effects():
    scm = SCM.of(
        (Factor("x", 5), Factor("gate", 4, categorical=True), Factor("y", 9), Factor("w", 9)),
        {
            "y": Gated(("x",), (1.5,), "gate", 3, intercept=0.5, low=0, high=1.5),
            "w": Linear(("y",), (1.0,)),
        },
    )
    total, direct = scm.total_effects(), scm.direct_effects()
    assert total.exact
    assert direct.exact
    # Open in a quarter of examples: x adds 6 of y's 8, and the gate 3, at the mean of x.
    expected = np.array([[1, 0, 6 / 32, 6 / 32], [0, 1, 3 / 8, 3 / 8], [0, 0, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_allclose(total.value, expected, atol=1e-6)
    np.testing.assert_allclose(direct.value, (expected - np.eye(4)) * scm.graph, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "no jit"])
def test_setting_a_variable_to_what_it_was_changes_no_bit(compiled):
    values = sample(MIXED)
    for k, name in enumerate(MIXED.names):
        if compiled:
            same = set_factor(MIXED, values, k, values[:, k])
        else:
            same = MIXED.counterfactual(values, {name: values[:, k]})
        np.testing.assert_array_equal(bits(same), bits(values))


def test_a_traced_index_out_of_range_changes_no_bit():
    values = sample(MIXED)
    same = set_factor(MIXED, values, -1, 3.0)
    np.testing.assert_array_equal(bits(same), bits(values))


@pytest.mark.parametrize("name", MIXED.names)
def test_an_intervention_sets_its_variable_and_moves_descendants_only(name):
    values, k = sample(MIXED), MIXED.index(name)
    top = MIXED.factors[k].size - 1
    set_to = jnp.where(jnp.arange(N) % 2 == 0, 0.0, top)
    moved = set_factor(MIXED, values, k, set_to)
    np.testing.assert_array_equal(moved[:, k], set_to)
    for j, other in enumerate(MIXED.names):
        changed = (bits(moved[:, j]) != bits(values[:, j])).mean()
        if other in DESCENDANTS[name]:
            assert changed > 0.01
        elif j != k:
            assert changed == 0
    held = set_factor(MIXED, values, k, set_to, propagate=False)
    np.testing.assert_array_equal(bits(held), bits(values.at[:, k].set(set_to)))


def test_composition_setting_what_follows_anyway_changes_nothing():
    values, key = sample(MIXED), jax.random.key(1)
    alone = MIXED.counterfactual(values, {"x": 3}, key=key)
    both = MIXED.counterfactual(values, {"x": 3, "y": alone[:, MIXED.index("y")]}, key=key)
    np.testing.assert_array_equal(bits(both), bits(alone))
    # With y held at what it was, x reaches z no more, only late.
    cut = MIXED.counterfactual(values, {"x": 3, "y": values[:, MIXED.index("y")]}, key=key)
    changed = (bits(cut) != bits(values)).any(axis=0)
    assert set(np.array(MIXED.names)[changed]) == {"x", "late"}


def test_linear_counterfactuals_are_the_closed_form():
    values = np.asarray(sample(LINEAR))
    moved = set_factor(LINEAR, values, A, 4.0)
    paths = np.linalg.inv(np.eye(4) - WEIGHTS)[A]
    expected = values + (4.0 - values[:, [A]]) * paths
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_abducted_noise_solves_to_the_observation():
    drawn = noise_of(MIXED)
    values = solve(MIXED, drawn)
    noise = MIXED.abduct(KEY, values)
    again = solve(MIXED, noise)
    for k, (factor, mechanism) in enumerate(zip(MIXED.factors, MIXED.mechanisms, strict=True)):
        if mechanism.discrete:
            np.testing.assert_array_equal(again[:, k], values[:, k])
        else:
            np.testing.assert_allclose(again[:, k], values[:, k], atol=1e-6 * factor.size)
        if factor.name != "flag":
            np.testing.assert_allclose(noise[:, k], drawn[:, k], atol=1e-6 * factor.size)
    # A Bernoulli does not tell its noise.
    assert jnp.abs(noise - drawn)[:, MIXED.index("flag")].max() > 0.1


def test_abducted_noise_has_the_distribution_of_noise():
    noise = np.asarray(BINARY.abduct(KEY, sample(BINARY)))[:, :4]
    # Uniform on [0, 1] and independent, over examples of all values.
    grid = np.linspace(0.1, 0.9, 9)
    assert off(noise[:, :, None] < grid, np.broadcast_to(grid, (4, 9))).max() < SIGMAS
    pairs = (noise - 0.5)[:, :, None] * (noise - 0.5)[:, None, :]
    assert off(pairs, np.eye(4) / 12).max() < SIGMAS


def test_a_counterfactual_is_abduction_then_prediction():
    values, key = sample(MIXED), jax.random.key(7)
    moved = MIXED.counterfactual(values, {"x": 4, "gate": 2}, key=key)
    predicted = MIXED.solve(MIXED.abduct(key, values), {"x": 4, "gate": 2})
    flag = MIXED.index("flag")
    np.testing.assert_array_equal(moved[:, flag], predicted[:, flag])
    np.testing.assert_allclose(moved, predicted, atol=1e-5)


def test_counterfactuals_of_a_population_have_the_interventional_distribution():
    moved = np.asarray(BINARY.counterfactual(sample(BINARY), {"p": 1}, key=jax.random.key(8)))
    expected = sum(w * np.array([s[name] for name in BINARY.names]) for w, s in joint({"p": 1}))
    assert off(moved, expected).max() < SIGMAS
    # Noise is kept: where p rises, no example that had q loses it, though some with p lack q.
    values = np.asarray(sample(BINARY))
    assert np.all(moved[values[:, 1] == 1, 1] == 1)
    assert 0 < moved[values[:, 1] == 0, 1].mean() < 1


def test_roots_draw_the_classes_of_independent_sources_and_noise_is_independent_of_them():
    key = jax.random.key(9)
    noise = sample_noise(key)
    roots = [k for k, mechanism in enumerate(MIXED.mechanisms) if isinstance(mechanism, Root)]
    drawn = sample_factors(key, N, [factor.size for factor in MIXED.factors])
    np.testing.assert_array_equal(noise[:, roots], drawn[:, roots])
    # Of all classes, whether or not a root takes them, with all the uniform noise.
    additive = [MIXED.index(name) for name in ("y", "flag", "late")]
    uniform = np.asarray(noise)[:, additive] / [2, 1, 3] - 0.5
    drawn = np.asarray(sample_factors(key, N, [64] * 7)).astype(float) - 31.5
    assert off(uniform[:, :, None] * drawn[:, None, :], np.zeros((3, 7))).max() < SIGMAS
    assert off(uniform**2, np.full(3, 1 / 12)).max() < SIGMAS


def test_one_key_gives_one_sample_and_compiling_does_not_matter():
    key = jax.random.key(10)
    noise = MIXED.sample_noise(key, N)
    np.testing.assert_allclose(sample_noise(key), noise, atol=1e-6)
    assert not np.allclose(sample_noise(jax.random.key(11)), noise)
    values = MIXED.solve(noise)
    np.testing.assert_allclose(solve(MIXED, noise), values, atol=1e-5)
    moved = MIXED.set_factor(values, 2, 1.0, key=KEY)
    np.testing.assert_allclose(set_factor(MIXED, values, 2, 1.0), moved, atol=1e-5)
    assert moved.dtype == values.dtype == noise.dtype == jnp.float32


def test_vmap_over_interventions_agrees_with_a_loop():
    values = sample(MIXED)
    ks, to = jnp.array([2, 4, 1, 3, -1]), jnp.array([4.0, 0.5, 1.0, 2.0, 0.0])
    looped = jnp.stack([set_factor(MIXED, values, k, v) for k, v in zip(ks, to, strict=True)])

    @jax.jit
    def run(values, own):
        mapped = jax.vmap(lambda k, v: MIXED.set_factor(values, k, v, key=KEY))(ks, to)
        return mapped, MIXED.set_factor(values, ks[own], to[own], key=KEY)

    own = jnp.arange(N) % 5  # an index and a value of each example's own
    mapped, rows = run(values, own)
    np.testing.assert_allclose(mapped, looped, atol=1e-5)
    np.testing.assert_allclose(rows, looped[own, jnp.arange(N)], atol=1e-5)


def test_equal_models_are_one_static_argument():
    traces = []

    @jax.jit
    def run(scm, noise):
        traces.append(scm)
        return scm.solve(noise)

    noise = jnp.zeros((2, 2))
    factors = (Factor("a", 3), Factor("b", 5))
    for weights in ((1,), [1.0], np.ones(1, np.float32)):
        run(SCM.of(factors, {"b": Linear(["a"], weights)}), noise)
    assert len(traces) == 1
    run(SCM.of(factors, {"b": Linear(("a",), (2.0,))}), noise)
    assert len(traces) == 2


FACTORS = (Factor("a", 5), Factor("b", 5), Factor("kind", 3, categorical=True), Factor("on", 2))


@pytest.mark.parametrize(
    ("mechanisms", "said"),
    [
        ({"b": Linear(("kin",), (1.0,))}, "unknown variable 'kin': did you mean 'kind'"),
        ({"bb": Linear(("a",), (1.0,))}, "unknown variable 'bb': did you mean 'b'"),
        ({"b": Linear(("b",), (1.0,))}, "a cycle among b,"),
        (
            {"a": Linear(("b",), (0.5,)), "b": Linear(("a",), (0.5,))},
            "a cycle among a, b, but causes must come before effects",
        ),
        ({"b": Linear(("a",), (1.0,), high=1)}, "'b' would range from 0 to 5, .* are 0 to 4"),
        ({"b": Linear(("a",), (-0.5,), 1.0)}, "'b' would range from -1 to 1"),
        ({"b": Gated(("a",), (1.5,), "kind", 0)}, "'b' would range from 0 to 6"),
        ({"b": Gated(("a",), (1.0,), "kind", 3)}, "opens at class 3 of 'kind', .* are 0 to 2"),
        (
            {"b": Gated(("a",), (0.5,), "on", 1), "on": Linear(("a",), (0.2,))},
            "its gate 'on' is a number between classes",
        ),
        ({"kind": Linear(("a",), (0.5,))}, "'kind' is categorical"),
        ({"b": Bernoulli()}, "'b': a Bernoulli has 2 classes, but the factor 5"),
        ({"b": Root(4)}, "'b': a root of 4 classes, but the factor has 5"),
    ],
)
def test_wrong_models_get_one_line(mechanisms, said):
    with pytest.raises(DataError, match=said) as caught:
        SCM.of(FACTORS, mechanisms)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Linear(("a", "b"), (1.0,)), "1 weights for 2 parents"),
        (lambda: Bernoulli(("a",), ()), "0 weights for 1 parents"),
        (lambda: Linear(("a", "a"), (1.0, 1.0)), "parents a, a: each may be named once"),
        (lambda: Gated(("a",), (1.0,), "a", 0), "parents a, a: each may be named once"),
        (lambda: Linear((), (), low=1, high=0), "noise from 1 to 0"),
        (lambda: SCM(FACTORS, (Root(5),)), "1 mechanisms for 4 factors"),
    ],
)
def test_wrong_mechanisms_get_one_line(make, said):
    with pytest.raises(DataError, match=said):
        make()


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ({"aa": 1}, "unknown variable 'aa': did you mean 'a'"),
        ({"a": 4.5}, "'a' set to 4.5, but its classes are 0 to 4"),
        ({"a": np.full(3, -1)}, "'a' set to -1, but its classes are 0 to 4"),
        ({"a": float("nan")}, "'a' set to nan"),
        ({"kind": 0.5}, "'kind' set to 0.5, but it takes integers only"),
        ({"a": [1, 2]}, r"'a' set to values of shape \(2,\), .* one for each example, \(3,\)"),
    ],
)
def test_wrong_interventions_get_one_line(do, said):
    scm = SCM.of(FACTORS, {})
    for call in (scm.solve, scm.counterfactual):
        with pytest.raises(DataError, match=said) as caught:
            call(jnp.zeros((3, 4)), do)
        assert "\n" not in str(caught.value)


def test_wrong_shapes_and_indices_get_one_line():
    scm = SCM.of(FACTORS, {})
    with pytest.raises(DataError, match=r"noise \[n, K\] with K = 4, got shape \(3, 5\)"):
        scm.solve(jnp.zeros((3, 5)))
    with pytest.raises(DataError, match="k from 0 to 3, got 4"):
        scm.set_factor(jnp.zeros((3, 4)), 4, 0.0)
