"""Motifs: small patterns of a unit graph, more of them than chance would wire.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vaejax.circuits.gates import UnitInteractions
from vaejax.estimates import RESAMPLES

if TYPE_CHECKING:
    import networkx as nx

MOTIFS = ("chain", "fan_out", "fan_in", "gate")
"""Their names."""

_ATTEMPTS = 100  # swaps tried for each edge
_AT_ONCE = 2**24  # bytes of adjacency matrices


@dataclasses.dataclass(frozen=True)
class Motif:
    """How often a motif occurs.

    Attributes:
      count: In the graph.
      null_mean: Its mean over rewired graphs.
      null_std: Its standard deviation over them.
      z: `(count - null_mean) / null_std`; NaN if the null does not vary.
      p: How often a rewired graph has at least as many; 1 if the null does not vary.
    """

    count: int
    null_mean: float
    null_std: float
    z: float
    p: float


def count_motifs(
    graph: nx.DiGraph,
    *,
    factors: Mapping[Any, Iterable[Any]] | None = None,
    interactions: Iterable[UnitInteractions] = (),
    threshold: float = 0.5,
    rewirings: int = RESAMPLES,
    key: jax.Array | None = None,
) -> dict[str, Motif]:
    """Counts motifs against a null that rewires the graph and keeps all degrees [R].

    * *chain*: u -> v -> w, and all three carry a common factor.
    * *fan-out*: u -> v and u -> w, and v and w carry different factors: a unit that feeds the
      circuits of several factors.
    * *fan-in*: u -> w and v -> w, and u and v carry different factors: units that converge.
    * *gate*: u -> w and v -> w, and their interaction dominates: its share, see
      `unit_interactions`, is above `threshold`.

    Sets of factors are different when neither contains the other; so a unit that carries none is
    different from no other.

    A motif is counted by what its nodes carry because its wiring alone says nothing: in a graph of
    layers the numbers of paths of two edges, of pairs of edges out of a node, and of pairs into one
    follow from degrees, and a null that keeps degrees has the same.

    The null: two edges a -> b and c -> d between the same two sites become a -> d and c -> b,
    unless that would double an edge; 100 such swaps are tried for each edge, from the graph itself,
    and anew for each of the rewired graphs. So all nodes keep their degrees towards every site, and
    their factors. Where few swaps are possible the null is small, and where there are none it
    does not vary: z is NaN and p is 1.

    Args:
      graph: Nodes with an attribute `site`; edges between different sites.
      factors: What each node carries; by default its attribute `factors`.
      interactions: Of pairs of senders, for gates. What is not in them is no gate.
      threshold: Of a gate's share.
      rewirings: Graphs in the null.
      key: Draws them.

    Returns:
      A `Motif` for each name in `MOTIFS`.

    Raises:
      ValueError: A node lacks a site or factors, or an edge stays within one site.

    Example:
      >>> import networkx as nx
      >>> graph = nx.DiGraph()
      >>> for node, carried in {"a:0": "x", "a:1": "y", "b:0": "x", "b:1": "y"}.items():
      ...     graph.add_node(node, site=node[0], factors=(carried,))
      >>> graph.add_edges_from([("a:0", "b:0"), ("a:0", "b:1"), ("a:1", "b:1")])
      >>> motifs = count_motifs(graph)
      >>> motifs["fan_out"].count, motifs["fan_in"].count, motifs["chain"].count
      (1, 1, 0)

    References:
      Milo et al., "Network Motifs: Simple Building Blocks of Complex Networks", 2002; `On the
      uniform generation of random graphs with prescribed degree sequences
      <https://arxiv.org/abs/cond-mat/0312028>`_, 2003, of how many swaps to try.
    """
    if rewirings < 1:
        raise ValueError(f"expected rewirings >= 1, got {rewirings}")
    wiring = _wiring(graph)
    labels = _labels(graph, factors)
    gates = _gates(wiring.nodes, interactions, threshold)
    observed = _count(wiring, wiring.heads[None], labels, gates)[:, 0]
    seed = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
    rng = np.random.default_rng(np.asarray(seed))
    size = max(1, sum(tails * heads for tails, heads in wiring.shapes.values()))
    at_once = max(1, _AT_ONCE // size)
    null = np.concatenate(
        [
            _count(wiring, _rewired(wiring, min(at_once, rewirings - start), rng), labels, gates)
            for start in range(0, rewirings, at_once)
        ],
        axis=1,
    )
    found = {}
    for name, count, draws in zip(MOTIFS, observed, null, strict=True):
        mean, std = float(draws.mean()), float(draws.std())
        z = (count - mean) / std if draws.min() < draws.max() else float("nan")
        p = (1 + int((draws >= count).sum())) / (1 + rewirings)
        found[name] = Motif(int(count), mean, std, float(z), p)
    return found


def rewire(graph: nx.DiGraph, *, key: jax.Array | None = None) -> nx.DiGraph:
    """One graph of the null of `count_motifs`: the same nodes and degrees, other edges.

    Args:
      graph: As for `count_motifs`; needs no factors.
      key: Draws it.

    Returns:
      The graph, its edges without attributes.
    """
    import networkx as nx

    wiring = _wiring(graph)
    seed = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
    heads = _rewired(wiring, 1, np.random.default_rng(np.asarray(seed)))[0]
    other = nx.DiGraph(**graph.graph)
    other.add_nodes_from(graph.nodes(data=True))
    nodes = list(wiring.nodes)
    other.add_edges_from((nodes[t], nodes[h]) for t, h in zip(wiring.tails, heads, strict=True))
    return other


@dataclasses.dataclass(frozen=True)
class _Wiring:
    """The edges of a graph, those between the same two sites in a row.

    Attributes:
      nodes: Numbers of all N nodes.
      tails: `[E]`, the node that each edge leaves.
      heads: `[E]`, the node that it enters.
      groups: For each two sites, which edges lie between them.
      shapes: For each, numbers of nodes at the first and the second.
      rank: `[N]`, which of the nodes of its site each is.
    """

    nodes: dict[Any, int]
    tails: np.ndarray
    heads: np.ndarray
    groups: dict[tuple[Any, Any], slice]
    shapes: dict[tuple[Any, Any], tuple[int, int]]
    rank: np.ndarray


def _wiring(graph: nx.DiGraph) -> _Wiring:
    nodes = {node: i for i, node in enumerate(graph)}
    members: dict[Any, int] = {}
    rank = np.zeros(len(nodes), int)
    for node, i in nodes.items():
        if "site" not in graph.nodes[node]:
            raise ValueError(f"node {node!r}: expected an attribute 'site'")
        site = graph.nodes[node]["site"]
        rank[i] = members.get(site, 0)
        members[site] = rank[i] + 1
    between: dict[tuple[Any, Any], list[tuple[int, int]]] = {}
    for tail, head in graph.edges:
        ends = graph.nodes[tail]["site"], graph.nodes[head]["site"]
        if ends[0] == ends[1]:
            raise ValueError(f"expected edges between two sites, got {tail!r} -> {head!r}")
        between.setdefault(ends, []).append((nodes[tail], nodes[head]))
    edges = np.array([edge for group in between.values() for edge in group], int).reshape(-1, 2)
    stops = np.cumsum([0, *map(len, between.values())]).tolist()
    groups = {ends: slice(*stops[i : i + 2]) for i, ends in enumerate(between)}
    shapes = {ends: (members[ends[0]], members[ends[1]]) for ends in between}
    return _Wiring(nodes, edges[:, 0], edges[:, 1], groups, shapes, rank)


def _rewired(wiring: _Wiring, num: int, rng: np.random.Generator) -> np.ndarray:
    """The heads of the edges of `num` rewired graphs, tails staying: `[num, E]`."""
    heads = np.tile(wiring.heads[:, None], num)
    each = np.arange(num)
    for ends, group in wiring.groups.items():
        rows, columns = wiring.shapes[ends]
        tails, drawn = wiring.rank[wiring.tails[group]].tolist(), heads[group]
        first = each * columns  # where the row of each graph starts
        there = np.zeros((rows, num * columns), bool)
        for tail, head in zip(tails, wiring.rank[drawn], strict=True):
            there[tail, first + head] = True
        # All graphs try the same two edges, each with a coin of its own: slices, not gathers.
        for i, j in rng.integers(len(tails), size=(_ATTEMPTS * len(tails), 2)).tolist():
            a, c = there[tails[i]], there[tails[j]]
            at_b, at_d = (first + wiring.rank[drawn[edge]] for edge in (i, j))
            moves = np.flatnonzero((rng.random(num) < 0.5) & ~a[at_d] & ~c[at_b])
            b, d = at_b[moves], at_d[moves]
            a[b] = c[d] = False
            a[d] = c[b] = True
            drawn[i, moves], drawn[j, moves] = drawn[j, moves], drawn[i, moves]
    return heads.T


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Which set of factors each of N nodes carries, and how these L sets relate.

    Attributes:
      of_node: `[N]`.
      different: `[L, L]`, whether neither contains the other.
      common: `[L, L, L]`, whether three share a factor.
    """

    of_node: np.ndarray
    different: np.ndarray
    common: np.ndarray


def _labels(graph: nx.DiGraph, factors: Mapping[Any, Iterable[Any]] | None) -> _Labels:
    given = dict(graph.nodes(data="factors")) if factors is None else factors
    for node in graph:
        if given.get(node) is None:
            raise ValueError(
                f"node {node!r}: expected the factors that it carries, as an attribute 'factors' "
                "or in factors="
            )
    carried = [frozenset(given[node]) for node in graph]
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(carried))}
    names = sorted({name for kind in kinds for name in kind}, key=str)
    has = np.array([[name in kind for name in names] for kind in kinds], int)
    has = has.reshape(len(kinds), len(names))
    shared = has @ has.T
    inside = shared == has.sum(1)[:, None]  # whether the row is contained in the column
    common = np.einsum("af,bf,cf->abc", has, has, has) > 0
    of_node = np.array([kinds[kind] for kind in carried], int)
    return _Labels(of_node, ~inside & ~inside.T, common)


def _gates(
    nodes: Mapping[Any, int], interactions: Iterable[UnitInteractions], threshold: float
) -> np.ndarray:
    """Nodes u, v and w of every gate that the graph has the nodes of, `[G, 3]`."""
    found = set()
    for given in interactions:
        share = np.asarray(given.share.value)
        for u, v, w in np.argwhere(share > threshold).tolist():
            names = *sorted((given.senders[u], given.senders[v])), given.receivers[w]
            if all(name in nodes for name in names):
                found.add(tuple(nodes[name] for name in names))
    return np.array(sorted(found), int).reshape(-1, 3)


def _count(wiring: _Wiring, heads: np.ndarray, labels: _Labels, gates: np.ndarray) -> np.ndarray:
    """How often each motif occurs in graphs of the heads `[R, E]`: `[4, R]`."""
    num, total, kinds = len(heads), len(wiring.nodes), len(labels.different)
    tails = np.broadcast_to(wiring.tails, heads.shape)
    rows = np.arange(num)[:, None]

    def neighbours(of: np.ndarray, those: np.ndarray) -> np.ndarray:
        """How many neighbours of each kind each node has, `[R, N, L]`."""
        place = (rows * total + of) * kinds + labels.of_node[those]
        counts = np.bincount(place.ravel(), minlength=num * total * kinds)
        return counts.reshape(num, total, kinds)

    after, before = neighbours(tails, heads), neighbours(heads, tails)
    pairs = [_pairs(of, labels.different) for of in (after, before)]
    through = labels.common[:, labels.of_node]  # [L, N, L]
    chains = np.einsum("rnl,rnm,lnm->r", before, after, through, optimize=True)
    edges = np.zeros((num, total, total if len(gates) else 0), bool)
    if len(gates):
        edges[rows, tails, heads] = True
    u, v, w = gates.T
    return np.stack([chains, *pairs, (edges[:, u, w] & edges[:, v, w]).sum(1)])


def _pairs(of: np.ndarray, different: np.ndarray) -> np.ndarray:
    """Pairs of neighbours of different kinds, `[R]`, of all neighbours `[R, N, L]`."""
    return np.einsum("rnl,rnm,lm->r", of, of, different, optimize=True) // 2
