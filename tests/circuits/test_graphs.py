"""Graphs of networks whose edges are known, and what is written of them."""

import json
import re

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from planted_graphs import FIRST, LAST, SECOND, Layered

from vaejax.circuits.export import write_dot, write_graphml
from vaejax.circuits.graphs import latent_factor_graph, unit_graph

ALL = {"a": [0, 1], "b": [0, 1, 2], "c": [0, 1]}


def pairs(seed=0, repeats=6, size=1.0):
    """Clean inputs, corrupted ones with one of two columns raised, and which."""
    clean = jnp.asarray(np.random.default_rng(seed).normal(size=(2 * repeats, 2)), jnp.float32)
    changed = np.arange(2 * repeats) % 2
    return clean, clean + size * jnp.eye(2)[changed], changed


def graph_of(model=None, units=ALL, **options):
    clean, corrupted, changed = pairs()
    model = Layered() if model is None else model
    return unit_graph(model.apply, {}, clean, corrupted, changed, units, names="xy", **options)


def test_edges_of_a_linear_network_are_products_of_weights():
    graph = graph_of(threshold=0.0)
    total = (FIRST @ SECOND @ LAST)[:, 0]  # the effect of raising x, and y, by 1
    for s, t in np.ndindex(2, 3):
        share = FIRST[s, t] * (SECOND @ LAST)[t, 0] / total[s]
        if FIRST[s, t] == 0:
            assert not graph.has_edge(f"a:{s}", f"b:{t}")
            continue
        edge = graph.edges[f"a:{s}", f"b:{t}"]
        # Only the column that a factor changes has an effect for it.
        expected = {"xy"[s]: share, "xy"[1 - s]: 0.0}
        assert edge["mediated_fraction"] == pytest.approx(expected, abs=1e-5)
        assert edge["kept"] == ("xy"[s],)
        assert edge["weight"] == pytest.approx(share, abs=1e-5)
    for k, (s, t) in [(k, edge) for k in range(2) for edge in np.ndindex(3, 2)]:
        share = FIRST[k, s] * SECOND[s, t] * LAST[t, 0] / total[k]
        found = graph.edges[f"b:{s}", f"c:{t}"]["mediated_fraction"]["xy"[k]]
        assert found == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_whole_sites_of_a_network_without_bypass_carry_everything(activation):
    graph = graph_of(Layered(activation), threshold=0.0)
    for what in ("all_mf", "all_mf_low", "all_mf_high"):
        assert graph.graph[what] == pytest.approx({"x": 1, "y": 1}, abs=1e-5)
    assert graph.graph["kept_mf"] == pytest.approx({"x": 1, "y": 1}, abs=1e-5)
    assert graph.graph["edges_before"] == 12
    assert graph.graph["skipped"] == {"x": 0, "y": 0}


def test_pruning_loses_what_the_dropped_paths_carried():
    """Each path carries the product of its weights; a threshold cuts those with a weak edge."""
    graph = graph_of(threshold=0.1)
    total = (FIRST @ SECOND @ LAST)[:, 0]
    first = FIRST * (SECOND @ LAST)[:, 0] / total[:, None]
    second = FIRST[:, :, None] * SECOND * LAST[:, 0] / total[:, None, None]
    kept_first, kept_second = FIRST * (first >= 0.1), SECOND * (second >= 0.1)
    carried = [(kept_first[k] @ kept_second[k] @ LAST)[0] / total[k] for k in range(2)]
    assert 0.5 < min(carried) < max(carried) < 0.999  # something is lost for both
    expected = dict(zip("xy", carried, strict=True))
    assert graph.graph["kept_mf"] == pytest.approx(expected, abs=1e-5)
    assert graph.graph["all_mf"] == pytest.approx({"x": 1, "y": 1}, abs=1e-5)
    count = {k: int((first[i] >= 0.1).sum() + (second[i] >= 0.1).sum()) for i, k in enumerate("xy")}
    assert graph.graph["edges_kept"] == count
    assert graph.graph["edges_after"] == graph.number_of_edges() < 12


def test_a_unit_that_is_left_out_is_what_all_edges_lack():
    graph = graph_of(units={"a": [1, 0], "b": [2, 1]}, threshold=0.0)
    assert sorted(graph) == ["a:0", "a:1", "b:1", "b:2"]
    total = FIRST @ SECOND @ LAST
    share = FIRST[:, 0] * (SECOND @ LAST)[0] / total[:, 0]
    expected = dict(zip("xy", 1 - share, strict=True))
    assert graph.graph["all_mf"] == pytest.approx(expected, abs=1e-5)


def test_effects_that_may_be_chance_are_no_edges():
    """With tanh's slopes of either sign around a symmetric clean point, the mean is uncertain."""
    clean, corrupted, changed = pairs()
    flipped = jnp.where(jnp.arange(12)[:, None] % 4 < 2, 1.0, -1.0)

    def signed(variables, x):  # what goes through b is as often for as against the total effect
        return Layered().apply(variables, x[:, :2]) * x[:, 2:] + 100 * x[:, :2].sum(1)[:, None]

    inputs = (jnp.concatenate([x, flipped], 1) for x in (clean, corrupted))
    units = {"a": [0, 1], "b": [0, 1]}
    graph = unit_graph(signed, {}, *inputs, changed, units, threshold=0.0)
    assert graph.number_of_edges() == 0
    assert graph.number_of_nodes() == 4
    assert graph.graph["kept_mf"] == {"0": 0.0, "1": 0.0}  # nothing carried is exactly nothing


def test_factors_without_pairs_or_effect():
    clean, corrupted, changed = pairs()
    corrupted = corrupted.at[1].set(clean[1])
    graph = unit_graph(
        Layered().apply, {}, clean, corrupted, changed, {"a": [0, 1], "b": [0]}, names="xyz"
    )
    assert np.isnan(graph.graph["all_mf"]["z"])
    assert graph.graph["edges_kept"]["z"] == 0
    assert graph.graph["skipped"] == {"x": 0, "y": 1, "z": 0}


def test_progress_and_labels():
    calls = []
    carries = {"a": np.eye(2), "b": np.array([[1, 0], [1, 1], [0, 0]])}
    graph = graph_of(
        units={"a": [0, 1], "b": [0, 2]}, carries=carries, progress=lambda *call: calls.append(call)
    )
    assert dict(graph.nodes(data="factors")) == {
        "a:0": ("x",), "a:1": ("y",), "b:0": ("x",), "b:2": (),
    }  # fmt: skip
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("units", "options", "message"),
    [
        ({"a": [0]}, {}, "expected units of two sites or more, got a"),
        ({"b": [0], "a": [0]}, {}, r"sites in the order of the network \(a, b\), got b, a"),
        ({"a": [0], "b": [3]}, {}, r"expected units below 3 .*got \[3\]"),
        ({"a": [0], "d": [0]}, {}, "unknown site 'd'"),
        (ALL, {"carries": {"a": np.eye(3)}}, r"'a': expected carries \[2, 2\], got \(3, 3\)"),
        (ALL, {"carries": {"a": np.eye(2)}}, r"'b': expected carries \[3, 2\], got none"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(units, options, message):
    with pytest.raises(ValueError, match=message):
        graph_of(units=units, **options)


def test_latents_and_factors():
    effects, carried = np.array([[0.9, 0.1], [0.3, 0.0], [0.0, 0.0]]), np.eye(3, 2, dtype=bool)
    carried[1] = True
    graph = latent_factor_graph(effects, carried, ["x", "y"])
    assert set(graph.edges(data="weight")) == {
        ("x", "z:0", 0.9), ("x", "z:1", 0.3), ("y", "z:1", 0.0),
    }  # fmt: skip
    assert nx.is_bipartite(graph)
    assert graph.nodes["z:1"]["factors"] == ("x", "y")
    assert graph.nodes["z:2"] == {"bipartite": 1, "site": "z", "unit": 2, "factors": ()}
    with pytest.raises(ValueError, match="expected names unlike each other and z:0"):
        latent_factor_graph(effects, carried, ["x", "z:1"])
    with pytest.raises(ValueError, match=r"expected effects and carried \[S, 3\]"):
        latent_factor_graph(effects, carried, "xyz")


def test_graphml_reads_back_as_written(tmp_path):
    carries = {"a": np.eye(2), "b": np.eye(3, 2)}
    graph = graph_of(units={"a": [0, 1], "b": [0, 2]}, carries=carries, threshold=0.1)
    write_graphml(graph, tmp_path / "graph.graphml")
    back = nx.read_graphml(tmp_path / "graph.graphml")
    assert set(back) == set(graph)
    assert set(back.edges) == set(graph.edges)
    for node, attributes in graph.nodes(data=True):
        assert back.nodes[node].pop("factors") == json.dumps(attributes["factors"])
        assert back.nodes[node] == {"site": attributes["site"], "unit": attributes["unit"]}
    for *edge, attributes in graph.edges(data=True):
        found = back.edges[edge]
        assert found["weight"] == attributes["weight"]
        assert json.loads(found["kept"]) == list(attributes["kept"])
        for name in "xy":
            assert found[f"mediated_fraction_{name}"] == attributes["mediated_fraction"][name]
    assert back.graph["all_mf_x"] == graph.graph["all_mf"]["x"]
    assert back.graph["edges_before"] == 4


def test_graphml_keeps_nan_and_odd_names_and_refuses_the_rest(tmp_path):
    graph = nx.DiGraph(skipped=None, mean={'a "b" <c>': float("nan")})
    graph.add_node('q"\\&<', site="s", unit=np.int64(3), dead=np.bool_(True))
    write_graphml(graph, tmp_path / "odd.graphml")
    back = nx.read_graphml(tmp_path / "odd.graphml")
    assert dict(back.nodes(data=True)) == {'q"\\&<': {"site": "s", "unit": 3, "dead": True}}
    assert np.isnan(back.graph['mean_a "b" <c>'])
    assert "skipped" not in back.graph
    graph.graph["array"] = np.ones(2)
    with pytest.raises(ValueError, match="attribute 'array': expected a number or string"):
        write_graphml(graph, tmp_path / "odd.graphml")
    with pytest.raises(ValueError, match="two attributes would be called 'm_x'"):
        write_graphml(nx.DiGraph(m={"x": 1}, m_x=2), tmp_path / "odd.graphml")


STRING = r'"((?:[^"\\]|\\.)*)"'


def unescaped(text):
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text)


def test_dot_holds_the_graph_whatever_names_it_has(tmp_path):
    odd = ['b "quoted"', "back\\slash\\", "two\nlines"]
    graph = nx.DiGraph()
    for unit, node in enumerate(odd):
        graph.add_node(node, site=f"site/{'cd'[unit % 2]}", factors=("x",) if unit else ())
    graph.add_node("factor")
    graph.add_edge(odd[0], odd[1], weight=-0.5)
    graph.add_edge("factor", odd[2], weight=0.25)
    write_dot(graph, tmp_path / "graph.dot")
    text = (tmp_path / "graph.dot").read_text()
    assert text.startswith("digraph {\n")
    assert text.count("{") == text.count("}") == 3
    words = ["digraph", "rankdir", "LR", "node", "shape", "box", "subgraph", "label", "penwidth"]
    # Nothing that was named is outside of a string.
    assert set(re.findall(r"[a-zA-Z]+", re.sub(STRING, "", text))) == {*words, "cluster"}
    nodes = re.findall(rf"^ +{STRING} \[label={STRING}\];$", text, re.MULTILINE)
    assert [unescaped(name) for name, _ in nodes] == [odd[0], odd[2], odd[1], "factor"]
    assert [unescaped(label) for _, label in nodes] == [
        odd[0], odd[2] + "\nx", odd[1] + "\nx", "factor",
    ]  # fmt: skip
    edges = re.findall(rf"^ +{STRING} -> {STRING} \[penwidth=([\d.]+)\];$", text, re.MULTILINE)
    assert [(unescaped(tail), unescaped(head), float(width)) for tail, head, width in edges] == [
        (odd[0], odd[1], 5.0), ("factor", odd[2], 2.5),
    ]  # fmt: skip
    clusters = re.findall(r"subgraph cluster_\d \{(.*?)\n  \}", text, re.DOTALL)
    assert [re.findall(rf"label={STRING};\n", cluster) for cluster in clusters] == [
        ["site/c"], ["site/d"],
    ]  # fmt: skip
    assert [len(re.findall(r"\[label", cluster)) for cluster in clusters] == [2, 1]


def test_equal_calls_give_equal_graphs():
    """The same call twice gives the same numbers: bootstrap and passes are deterministic."""
    first, second = (graph_of(key=jax.random.key(3), threshold=0.0) for _ in range(2))
    assert nx.utils.graphs_equal(first, second)
