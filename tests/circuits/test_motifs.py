"""Motifs of graphs that can be counted by hand, and gates of networks that have one."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from planted_graphs import Gates, Layered

from vaejax.circuits.gates import unit_interactions
from vaejax.circuits.motifs import MOTIFS, count_motifs, rewire
from vaejax.estimates import Estimate


def graph_of(factors, edges):
    """A graph from what each node `"site:unit"` carries, as letters, and edges `"a:0 b:1"`."""
    graph = nx.DiGraph()
    for node, carried in factors.items():
        graph.add_node(node, site=node.split(":")[0], factors=tuple(carried))
    graph.add_edges_from(edge.split() for edge in edges)
    return graph


def counts(graph, **options):
    return {
        name: motif.count for name, motif in count_motifs(graph, rewirings=2, **options).items()
    }


def test_chains_share_one_factor_all_the_way():
    factors = {"a:0": "xy", "b:0": "x", "b:1": "y", "b:2": "", "c:0": "x", "c:1": "yz"}
    edges = ["a:0 b:0", "a:0 b:1", "a:0 b:2"]
    edges += [f"b:{i} c:{j}" for i in range(3) for j in range(2)]
    assert counts(graph_of(factors, edges))["chain"] == 2  # a0 b0 c0 and a0 b1 c1
    pairwise = {"a:0": "xy", "b:0": "yz", "c:0": "zx"}  # each two share one, all three none
    assert counts(graph_of(pairwise, ["a:0 b:0", "b:0 c:0"]))["chain"] == 0


def test_fans_spread_over_factors_neither_of_which_contains_the_other():
    factors = {"a:0": "x", "b:0": "x", "b:1": "y", "b:2": "xy", "b:3": "", "b:4": "y"}
    edges = [f"a:0 b:{i}" for i in range(5)]
    # Of ten pairs: x with y, twice.
    assert counts(graph_of(factors, edges)) == {"chain": 0, "fan_out": 2, "fan_in": 0, "gate": 0}
    edges = [" ".join(reversed(edge.split())) for edge in edges]
    assert counts(graph_of(factors, edges)) == {"chain": 0, "fan_out": 0, "fan_in": 2, "gate": 0}
    overlapping = {"a:0": "", "b:0": "xy", "b:1": "yz"}
    assert counts(graph_of(overlapping, ["a:0 b:0", "a:0 b:1"]))["fan_out"] == 1


def test_factors_may_be_given_and_be_numbers():
    graph = graph_of({"a:0": "", "b:0": "", "b:1": ""}, ["a:0 b:0", "a:0 b:1"])
    assert counts(graph)["fan_out"] == 0
    assert counts(graph, factors={"a:0": [], "b:0": [0], "b:1": [1, 2]})["fan_out"] == 1


def brute_force(graph, gates):
    has = {node: set(carried) for node, carried in graph.nodes(data="factors")}

    def different(v, w):
        return bool(has[v] - has[w]) and bool(has[w] - has[v])

    def pairs(nodes):
        nodes = sorted(nodes)
        return [(v, w) for i, v in enumerate(nodes) for w in nodes[i + 1 :]]

    return {
        "chain": sum(
            bool(has[u] & has[v] & has[w]) for u, v in graph.edges for w in graph.successors(v)
        ),
        "fan_out": sum(different(*p) for u in graph for p in pairs(graph.successors(u))),
        "fan_in": sum(different(*p) for w in graph for p in pairs(graph.predecessors(w))),
        "gate": sum((*p, w) in gates for w in graph for p in pairs(graph.predecessors(w))),
    }


def random_graph(seed, sizes=(6, 7, 5), density=0.4):
    rng = np.random.default_rng(seed)
    factors = {
        f"{site}:{unit}": "".join(np.array(list("xyz"))[rng.random(3) < 0.4])
        for site, size in zip("abc", sizes, strict=True)
        for unit in range(size)
    }
    graph = graph_of(factors, [])
    for site, after in ("ab", "bc", "ac"):
        for tail in (node for node in factors if node[0] == site):
            for head in (node for node in factors if node[0] == after):
                if rng.random() < density:
                    graph.add_edge(tail, head)
    return graph


def interactions(senders, receivers, gates):
    """What `unit_interactions` returns, with shares of 0.9 where there are gates."""
    from vaejax.circuits.gates import UnitInteractions

    share = np.full((len(senders), len(senders), len(receivers)), 0.5)
    for u, v, w in gates:
        share[senders.index(u), senders.index(v), receivers.index(w)] = 0.9
        share[senders.index(v), senders.index(u), receivers.index(w)] = 0.9
    share[np.diag_indices(len(senders))] = np.nan
    return UnitInteractions(Estimate(share, share, share), share, share, senders, receivers)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_going_through_all(seed):
    graph = random_graph(seed)
    senders, receivers = (tuple(n for n in graph if n[0] == site) for site in "ab")
    gates = {("a:0", "a:1", "b:0"), ("a:2", "a:5", "b:3"), ("a:0", "a:3", "b:6")}
    given = interactions(senders, receivers, gates)
    assert counts(graph, interactions=[given]) == brute_force(graph, gates)


@pytest.mark.parametrize("seed", range(3))
def test_rewiring_moves_edges_and_keeps_degrees_towards_every_site(seed):
    graph = random_graph(seed)
    other = rewire(graph, key=jax.random.key(seed))
    assert set(other.edges) != set(graph.edges)
    assert dict(other.nodes(data=True)) == dict(graph.nodes(data=True))

    def degrees(graph, neighbours):
        return {
            node: sorted(graph.nodes[other]["site"] for other in neighbours(graph, node))
            for node in graph
        }

    for neighbours in (nx.DiGraph.successors, nx.DiGraph.predecessors):
        assert degrees(other, neighbours) == degrees(graph, neighbours)


def test_every_wiring_of_given_degrees_is_as_likely():
    """Perfect matchings of three with three: six, each a sixth of the null."""
    factors = {"a:0": "x", "a:1": "y", "a:2": "z", "b:0": "x", "b:1": "y", "b:2": "z"}
    graph = graph_of(factors, ["a:0 b:1", "a:1 b:2", "a:2 b:0"])
    seen = [tuple(sorted(rewire(graph, key=jax.random.key(i)).edges)) for i in range(300)]
    found, times = np.unique([str(edges) for edges in seen], return_counts=True)
    assert len(found) == 6
    assert ((times - 50) ** 2 / 50).sum() < 20.5  # chi-squared of 5 degrees of freedom, p = 0.001


def wired_by_factor(rewired):
    """Three layers of twelve units, a third for each factor, that feed units of their factor."""
    factors = {f"{site}:{i}": "xyz"[i % 3] for site in "abc" for i in range(12)}
    graph = graph_of(factors, [])
    for site, after in ("ab", "bc"):
        for i in range(12):
            for step in range(3 + i % 2):
                graph.add_edge(f"{site}:{i}", f"{after}:{(i + 3 * step) % 12}")
    return rewire(graph, key=jax.random.key(5)) if rewired else graph


def test_a_graph_wired_by_factor_has_more_chains_and_fewer_fans_than_chance():
    motifs = count_motifs(wired_by_factor(rewired=False), rewirings=1000)
    assert motifs["chain"].z > 3
    assert motifs["chain"].p == 1 / 1001
    for name in ("fan_out", "fan_in"):
        assert motifs[name].count == 0
        assert motifs[name].z < -3
        assert motifs[name].p == 1


def test_a_random_graph_of_the_same_degrees_has_what_chance_gives():
    motifs = count_motifs(wired_by_factor(rewired=True), rewirings=1000)
    for name in ("chain", "fan_out", "fan_in"):
        assert abs(motifs[name].z) < 2
        assert motifs[name].p > 0.02
    assert np.isnan(motifs["gate"].z)
    assert motifs["gate"].p == 1


def test_where_nothing_can_be_rewired_nothing_is_said():
    """All pairs are joined: no swap is possible, though there are motifs."""
    factors = {"a:0": "x", "a:1": "y", "b:0": "x", "b:1": "y", "c:0": "x"}
    edges = [f"a:{i} b:{j}" for i in range(2) for j in range(2)] + ["b:0 c:0", "b:1 c:0"]
    for graph in (graph_of(factors, edges), graph_of(factors, [])):
        for motif in count_motifs(graph, rewirings=20).values():
            assert np.isnan(motif.z)
            assert motif.p == 1
            assert motif.null_std == 0
            assert motif.null_mean == motif.count
    assert motif.count == 0


def test_equal_keys_give_equal_nulls():
    graph = random_graph(0)
    first, second, other = (
        count_motifs(graph, rewirings=50, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert first["chain"] == second["chain"]
    assert first["chain"] != other["chain"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (graph_of({"a:0": "x", "a:1": "y"}, ["a:0 a:1"]), "between two sites, got 'a:0' -> 'a:1'"),
        (nx.DiGraph([(0, 1)]), "node 0: expected an attribute 'site'"),
    ],
)
def test_graphs_without_layers_are_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        count_motifs(graph, factors=dict.fromkeys(graph, ()))


def test_missing_factors_and_rewirings_are_refused():
    graph = graph_of({"a:0": "x"}, [])
    del graph.nodes["a:0"]["factors"]
    with pytest.raises(ValueError, match="node 'a:0': expected the factors that it carries"):
        count_motifs(graph)
    with pytest.raises(ValueError, match="expected rewirings >= 1, got 0"):
        count_motifs(graph, rewirings=0)


def images(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_product_is_a_gate_and_nothing_else_is():
    clean, corrupted = images(0, 40, 4), images(1, 40, 4)
    found = unit_interactions(Gates().apply, {}, clean, corrupted, "u", "w", chunk=7)
    x, y = np.asarray(clean), np.asarray(corrupted)
    change = y - x
    interaction = np.abs(change[:, 0] * change[:, 1]).mean()
    total = np.abs(y[:, 0] * y[:, 1] - x[:, 0] * x[:, 1]).mean()
    np.testing.assert_allclose(found.interaction[0, 1, 0], interaction, rtol=1e-5)
    np.testing.assert_allclose(found.change[0, 1, 0], total, rtol=1e-5)
    np.testing.assert_allclose(found.share.value[0, 1, 0], interaction / total, rtol=1e-5)
    assert found.share.low[0, 1, 0] < interaction / total < found.share.high[0, 1, 0]
    np.testing.assert_array_equal(found.share.value, np.swapaxes(found.share.value, 0, 1))
    gates = np.argwhere(np.triu(np.moveaxis(np.asarray(found.share.value) > 0.5, 2, 0)))
    assert gates.tolist() == [[0, 0, 1]]
    # The difference of two units: no interaction but for rounding; of units that do not reach w,
    # none at all, and no share where both do not.
    assert found.interaction[2, 3, 1] < 1e-6
    np.testing.assert_array_equal(np.asarray(found.interaction)[0, 2], 0)
    assert np.isnan(found.share.value[2, 3, 0])
    assert found.share.value[0, 2, 1] == 0
    assert np.isnan(found.share.value[1, 1]).all()
    assert found.senders == ("u:0", "u:1", "u:2", "u:3")
    assert found.receivers == ("w:0", "w:1", "w:2")


def test_some_units_interact_as_among_all():
    clean, corrupted = images(0, 12, 4), images(1, 12, 4)
    everything = unit_interactions(Gates().apply, {}, clean, corrupted, "u", "w")
    some = unit_interactions(Gates().apply, {}, clean, corrupted, {"u": [3, 1, 0]}, {"w": [2, 0]})
    chosen = np.ix_([3, 1, 0], [3, 1, 0], [2, 0])
    np.testing.assert_allclose(
        some.share.value, np.asarray(everything.share.value)[chosen], rtol=1e-6
    )
    assert some.senders == ("u:3", "u:1", "u:0")


def test_factors_that_change_one_at_a_time_show_no_gate():
    clean = images(0, 12, 4)
    corrupted = clean.at[:6, 0].add(1.0).at[6:, 1].add(1.0)
    found = unit_interactions(Gates().apply, {}, clean, corrupted, "u", {"w": [0]})
    assert found.share.value[0, 1, 0] == 0


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_linear_network_has_no_gate(offset):
    """Not even by the rounding of numbers that are large next to their changes."""
    clean = images(0, 20, 2) + offset
    corrupted = clean + images(1, 20, 2)
    for edge in ("ab", "bc"):
        found = unit_interactions(Layered().apply, {}, clean, corrupted, *edge)
        share = np.asarray(found.share.value)
        assert not (share > 0.02).any()
        assert np.isfinite(share).any()


def test_what_cancels_has_no_share():
    """u and v move by the same, and w is their difference."""
    clean = images(0, 20, 4)
    corrupted = clean.at[:, 2:].add(0.3)
    found = unit_interactions(Gates().apply, {}, clean, corrupted, "u", {"w": [1]})
    assert np.isnan(found.share.value[2, 3, 0])


def test_a_gate_of_a_network_is_counted_in_its_graph():
    clean, corrupted = images(0, 40, 4), images(1, 40, 4)
    found = unit_interactions(Gates().apply, {}, clean, corrupted, "u", "w")
    factors = {f"u:{i}": f"{i}" for i in range(4)} | {f"w:{i}": "0" for i in range(3)}
    edges = ["u:0 w:0", "u:1 w:0", "u:2 w:1", "u:3 w:1", "u:3 w:2"]
    motifs = count_motifs(graph_of(factors, edges), interactions=[found], rewirings=1000)
    assert {name: motif.count for name, motif in motifs.items()} == {
        "chain": 0, "fan_out": 0, "fan_in": 2, "gate": 1,
    }  # fmt: skip
    assert tuple(motifs) == MOTIFS
    # Unit 3 keeps two edges: 12 wirings have these degrees, and one gives w:0 both of its senders.
    assert motifs["gate"].null_mean == pytest.approx(1 / 12, abs=0.03)
    assert motifs["gate"].z == pytest.approx((11 / 12) / (11 / 144) ** 0.5, rel=0.2)
