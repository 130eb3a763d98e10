"""Factor-level graphs of causal models whose "images" are the factors, by encoders of all kinds."""

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from vaejax.circuits.factor_graph import factor_graph, score_graph
from vaejax.circuits.linear_readout import fit_readout
from vaejax.data.protocols import Factor
from vaejax.data.scm import SCM, Linear
from vaejax.data.sizes import sample_factors
from vaejax.data.worlds import world

FACTORS = (
    Factor("shape", 3, True),
    Factor("a", 11),
    Factor("b", 9),
    Factor("c", 7),
    Factor("d", 5),
)
SIZES = [factor.size for factor in FACTORS]
ROTATION = np.linalg.qr(np.random.default_rng(7).normal(size=(5, 5)))[0].astype(np.float32)
CONFOUNDED = SCM.of(
    FACTORS,
    {"b": Linear(("a",), (0.4,), high=4.0), "c": Linear(("a",), (0.3,), high=3.0)},
)


def identity(values):
    return values / jnp.array([size - 1.0 for size in SIZES])


@jax.jit
def rotated(values):
    """All latents carry all factors, through a function that is not linear."""
    return jnp.tanh(identity(values) @ ROTATION)


def model(name):
    return CONFOUNDED if name == "confounded" else world(name, "planted", FACTORS)


def respond(scm, values, k, value):
    """Children of k respond to it, all others are held."""
    noise = scm.abduct(jax.random.key(9), values)
    held = scm.set_factor(values, k, value, propagate=False)
    before, after = scm.respond(noise, values), scm.respond(noise, held)
    responded = jnp.where(after == before, held, held + (after - before))
    return responded.at[:, k].set(value)


def graph_of(name, encode=identity, shuffled=False, examples=300, **options):
    scm = model(name)
    keys = jax.random.split(jax.random.key(3), 4)
    independent = np.asarray(sample_factors(keys[0], 2000, SIZES), np.float32)
    codes = encode(jnp.asarray(independent))
    if shuffled:
        independent = np.asarray(jax.random.permutation(keys[3], independent))
    values = scm.solve(scm.sample_noise(keys[1], examples))
    targets = sample_factors(keys[2], examples, SIZES)
    follow = functools.partial(respond, scm) if options.get("direct") else scm.set_factor
    readout = fit_readout(codes, independent, SIZES)
    return scm, factor_graph(encode, readout, values, targets, follow, **options)


def ancestors(scm):
    graph = nx.transitive_closure_dag(nx.DiGraph(list(np.argwhere(scm.graph).tolist())))
    found = np.zeros(scm.graph.shape, bool)
    for tail, head in graph.edges:
        found[tail, head] = True
    return found


@pytest.mark.parametrize("encode", [identity, rotated])
@pytest.mark.parametrize("name", ["independent", "chain", "fork", "collider", "confounded"])
def test_the_graph_is_found_whether_or_not_latents_are_entangled(name, encode):
    scm, total = graph_of(name, encode)
    np.testing.assert_array_equal(total.edges, ancestors(scm))
    scm, direct = graph_of(name, encode, direct=True)
    np.testing.assert_array_equal(direct.edges, scm.graph)


@pytest.mark.parametrize("name", ["chain", "fork", "confounded"])
def test_effects_are_those_of_the_model(name):
    off = ~np.eye(5, dtype=bool)
    scm, total = graph_of(name)
    np.testing.assert_allclose(total.effect.value[off], scm.total_effects().value[off], atol=2e-5)
    scm, direct = graph_of(name, direct=True)
    np.testing.assert_allclose(direct.effect.value[off], scm.direct_effects().value[off], atol=2e-5)
    assert np.isnan(total.effect.value[~off]).all()


def test_an_effect_against_the_correlation_has_its_own_sign():
    """In `fork`, y rises with x when observed, and falls when x is set."""
    scm, found = graph_of("fork", rotated)
    values = np.asarray(scm.solve(scm.sample_noise(jax.random.key(0), 2000)))
    x, y = np.argwhere(np.asarray(scm.direct_effects().value) < 0)[0]
    assert np.corrcoef(values[:, x], values[:, y])[0, 1] > 0.2
    assert found.edges[x, y]
    assert found.effect.high[x, y] < 0


def test_what_a_confounder_correlates_is_not_joined():
    scm, found = graph_of("confounded", rotated)
    values = np.asarray(scm.solve(scm.sample_noise(jax.random.key(0), 2000)))
    assert np.corrcoef(values[:, 2], values[:, 3])[0, 1] > 0.4
    assert not found.edges[2, 3]
    assert not found.edges[3, 2]
    assert found.p_examples[2, 3] == 1  # the images of both worlds are the same


@pytest.mark.parametrize("name", ["chain", "collider"])
def test_a_read_out_of_permuted_factors_finds_nothing(name):
    for encode in (identity, rotated):
        _, found = graph_of(name, encode, shuffled=True)
        assert not found.edges.any()


def test_flipped_signs_alone_would_take_noise_for_an_edge():
    """Why there are two nulls: any direction moves in the same sense in all examples."""
    _, found = graph_of("chain", rotated, shuffled=True)
    assert (found.p_examples < 0.01).any()
    assert np.nanmin(found.p_readout) > 0.01


def test_cross_talk_is_seen_and_is_no_edge():
    """A gate that opens moves y, and by that all read-outs of latents that are not linear in it."""
    scm, found = graph_of("collider", rotated)
    _, lenient = graph_of("collider", rotated, margin=0)
    assert (lenient.edges & ~ancestors(scm)).sum() >= 2
    np.testing.assert_array_equal(found.edges, ancestors(scm))
    _, right = graph_of("collider")
    np.testing.assert_allclose(right.crosstalk, np.eye(5), atol=1e-5)
    off = ~np.eye(5, dtype=bool)
    assert 0.01 < found.crosstalk[off].mean() < 0.2
    assert found.crosstalk.diagonal().min() > 0.7


def test_permuted_read_outs_vary_as_is_said():
    """`noise` and `spread` against read-outs of 2,000 permutations."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 3)) + 5
    factors = rng.integers(0, 4, (60, 1))
    fitted = fit_readout(codes, factors, [4])
    direction = np.array([0.3, -1.0, 2.0])
    read = [
        direction @ np.asarray(fit_readout(codes, rng.permutation(factors), [4]).weights)[:, 0]
        for _ in range(2000)
    ]
    expected = float(fitted.spread[0]) * (direction @ np.asarray(fitted.noise) @ direction)
    assert np.var(read) == pytest.approx(expected, rel=0.1)  # three standard errors
    assert abs(np.mean(read)) < 4 * np.sqrt(expected / 2000)


def test_a_read_out_is_least_squares_and_dead_latents_have_no_weight():
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.normal(size=(50, 2)), np.full((50, 1), 3.0)], 1)
    factors = np.stack([codes[:, 0] * 2 - codes[:, 1] + 4, np.full(50, 2.0)], 1)
    readout = fit_readout(codes, factors, [9, 5])
    np.testing.assert_allclose(readout.weights, [[0.25, 0], [-0.125, 0], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(
        readout(jnp.asarray(codes, jnp.float32)), factors / [8, 4], atol=1e-5
    )
    np.testing.assert_allclose(readout.r2[0], 1, atol=1e-5)
    assert np.isnan(readout.r2[1])
    twice = fit_readout(np.concatenate([codes, codes], 1), factors, [9, 5])  # copies share it
    np.testing.assert_allclose(twice.weights[0] + twice.weights[3], readout.weights[0], atol=1e-5)
    noise = factors[:, 0] + 8 * rng.normal(size=50)
    r2 = np.corrcoef(noise, np.linalg.lstsq(np.c_[codes[:, :2], np.ones(50)], noise)[0]
                     @ np.c_[codes[:, :2], np.ones(50)].T)[0, 1] ** 2  # fmt: skip
    np.testing.assert_allclose(fit_readout(codes, noise[:, None], [9]).r2[0], r2, atol=1e-4)


def test_one_edge_among_many_factors_can_be_found():
    """So many tests need more than 2,000 draws before one p-value can pass their adjustment."""
    num = 21
    values = jax.random.uniform(jax.random.key(0), (60, num))

    def follow(values, k, value):
        new = values.at[:, k].set(value)
        return new.at[:, 1].add(new[:, 0] - values[:, 0]) if k == 0 else new

    readout = fit_readout(values, values, [2] * num)
    found = factor_graph(identity_of_any, readout, values, 1 - values, follow)
    assert np.argwhere(found.edges).tolist() == [[0, 1]]
    few = factor_graph(identity_of_any, readout, values, 1 - values, follow, draws=2000)
    assert not few.edges.any()


def identity_of_any(values):
    return values


def test_p_values_of_few_examples_are_those_of_all_flips():
    """Three examples of one sign: of eight flips two are as large, as are p's 1 of 4 on average."""
    values = jnp.zeros((3, 2))

    def follow(values, k, value):
        return values.at[:, k].set(value).at[:, 1 - k].add(1.0 if k == 0 else 0.0)

    readout = fit_readout(np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[0, 1, 0, 1]], [2, 2])
    found = factor_graph(identity_of_any, readout, values, values + 1, follow, draws=20_000)
    assert found.p_examples[0, 1] == pytest.approx(0.25, abs=0.01)
    assert found.p_examples[1, 0] == 1


def test_a_factor_that_is_set_to_what_it_is_has_no_effect():
    values = jax.random.uniform(jax.random.key(0), (20, 2))
    readout = fit_readout(values, values, [2, 2])
    found = factor_graph(
        identity_of_any, readout, values, values, lambda g, k, v: g.at[:, k].set(v)
    )
    assert not found.edges.any()
    assert np.isnan(found.effect.value).all()


def test_a_graph_for_networkx():
    _, found = graph_of("fork")
    graph = found.to_networkx([factor.name for factor in FACTORS])
    assert sorted(graph.edges) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert graph.edges["b", "c"]["weight"] == pytest.approx(-0.3, abs=1e-4)
    assert len(graph) == 5


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [  # precision, recall, shd, reversed
        ([(0, 1), (1, 2)], [(0, 1), (1, 2)], (1, 1, 0, 0)),
        ([(1, 0), (1, 2)], [(0, 1), (1, 2)], (0.5, 0.5, 1, 1)),
        ([(0, 1), (1, 0)], [(0, 1)], (0.5, 1, 1, 0)),
        ([(0, 1), (1, 0)], [(1, 2)], (0, 0, 3, 0)),
        ([], [(0, 1)], (None, 0, 1, 0)),
        ([(0, 2)], [], (0, None, 1, 0)),
        ([(1, 1)], [(0, 1)], (None, 0, 1, 0)),  # the diagonal is no edge
    ],
)
def test_scores_by_hand(found, truth, expected):
    graphs = []
    for edges in (found, truth):
        graph = np.zeros((3, 3), bool)
        for edge in edges:
            graph[edge] = True
        graphs.append(graph)
    score = score_graph(*graphs)
    precision, recall, shd, reverse = expected
    for value, wanted in ((score.precision, precision), (score.recall, recall)):
        assert np.isnan(value) if wanted is None else value == wanted
    assert (score.shd, score.reversed) == (shd, reverse)
    assert score.true_positives + score.false_negatives == len(truth)


def test_what_does_not_fit_is_said_in_a_line():
    values = jnp.zeros((4, 2))
    readout = fit_readout(np.eye(4, 2), np.eye(4, 2), [2, 2])
    held = lambda g, k, v: g.at[:, k].set(v)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"expected values \[M, 2\], not empty, got shape \(4, 3\)"
    ):
        factor_graph(identity_of_any, readout, jnp.zeros((4, 3)), values, held)
    with pytest.raises(ValueError, match=r"expected targets \[4, 2\], got \[3, 2\]"):
        factor_graph(identity_of_any, readout, values, values[1:], held)
    with pytest.raises(ValueError, match="expected follow to set factor 0 to what it is given"):
        factor_graph(identity_of_any, readout, values, values + 1, lambda g, k, v: g)
    with pytest.raises(ValueError, match=r"codes \[N, D\] and factors \[N, 3\]"):
        fit_readout(np.eye(4, 2), np.eye(4, 2), [2, 2, 2])
    with pytest.raises(ValueError, match=r"two graphs \[K, K\], got shapes \(2, 2\) and \(3, 3\)"):
        score_graph(np.eye(2), np.eye(3))
