"""Which units feed which, for which factor: graphs of units and of latents.

Graphs are `networkx.DiGraph`; `vaejax.circuits.export` writes them to files. Marks as in
`vaejax.metrics`: [S] standard in the cited literature, [R] our reconstruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.checks import check_changed
from vaejax.circuits.carried import Layer, Relay
from vaejax.estimates import Estimate, estimate_means
from vaejax.interventions.edits import By, unit_ids
from vaejax.interventions.intercept import sites
from vaejax.interventions.passes import (
    TAU,
    Readout,
    count_examples,
    take,
)
from vaejax.interventions.paths import Recorded, some_units, sweep_paths

if TYPE_CHECKING:
    import networkx as nx


def unit_graph(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    changed: Any,
    units: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    carries: Mapping[str, Any] | None = None,
    threshold: float = 0.01,
    by: By = "channel",
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> nx.DiGraph:
    """The graph of some units, weighted by path-specific effects [R].

    An edge u -> v joins units of consecutive sites of `units`. Its weight for factor k is the
    path-specific effect of u by way of v [S] as a mediated fraction, mean over the pairs that
    differ in factor k (`vaejax.interventions.path_units`). It is kept for k if that is at least
    `threshold` in size and its 95% interval excludes 0; edges that are kept for no factor are not
    in the graph, all units are.

    What pruning costs is stated: all units of the first site are corrupted, every unit of the next
    is recomputed with its senders as they are and all else clean, and so on, site after site; then
    those of the last site are patched into the clean run. `kept_mf` is the mediated fraction of
    that when a unit's senders are those that an edge kept for the factor joins it to, `all_mf` when
    they are all units of the site before. For whole sites of a network that nothing bypasses,
    `all_mf` is 1. In networks that are not linear single edges do not add up to what they do
    together: see how far `kept_mf` is from `all_mf` before taking the graph for the mechanism.

    S units that send to T take S recomputations of the second site for all pairs, and one pass for
    each of the S T edges and pairs where the receiver changes. Runs on the host.

    Args:
      apply_fn: The network, as for `vaejax.interventions.patch_units`; and so are the others.
      variables: See there.
      clean: The inputs x of M pairs, `[M, ...]` or a pytree of such arrays.
      corrupted: The inputs x~, in each of which one factor was intervened on.
      changed: `[M]` integers, which factor.
      units: For each site the indices of its units `[S]`, sites in the order of the network.
      names: Of the K factors; by default "0", "1" and so on.
      carries: For each site which factors its units carry, bool: `[num_units, K]`, such as
        `FactorUnits.beyond_null`. `count_motifs` needs them.
      threshold: See above.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      readout: From the output to the quantity of interest.
      tau: Pairs with `||TE||` below it are skipped and counted.
      chunk: See `patch_units`.
      key: Draws the bootstrap's resamples.
      progress: Called after each sender with the number done and their total.

    Returns:
      The graph. A mapping has an entry for each name of a factor.

      * Nodes `"site:unit"`: `site`, `unit`, and `factors` (names) if `carries` was given.
      * Edges: the mappings `mediated_fraction`, `low` and `high`; `kept`, the names of the factors
        that it is kept for; `weight`, the largest size of a mediated fraction among these.
      * The graph: `factors`, the names; `threshold`; `edges_before` and `edges_after` pruning; and
        the mappings `edges_kept`, `kept_mf` and `all_mf` with ends of intervals `kept_mf_low`,
        `kept_mf_high`, `all_mf_low` and `all_mf_high`; and `skipped`. NaN for a factor without
        pairs.

    Raises:
      ValueError: As `patch_units`; or sites are fewer than two or not in the network's order, or
        `changed`, `names` or `carries` do not fit.

    Example:
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Dense(3), nn.Dense(2), nn.Dense(1)])
      >>> clean, corrupted = jnp.zeros((8, 4)), jnp.ones((8, 4))
      >>> variables = model.init(jax.random.key(0), clean)
      >>> units = {"layers_0": [0, 1, 2], "layers_1": [0, 1]}
      >>> changed = np.zeros(8, int)
      >>> graph = unit_graph(model.apply, variables, clean, corrupted, changed, units)
      >>> print(f"{graph.graph['all_mf']['0']:.4f}")
      1.0000
    """
    import networkx as nx

    num_names = None if names is None else len(names)
    changed, num = check_changed(changed, num_names, count_examples(clean, corrupted))
    names = tuple(map(str, range(num) if names is None else names))
    if len(set(names)) < num:
        raise ValueError(f"expected different names of factors, got {', '.join(names)}")
    layers = _layers(apply_fn, variables, clean, units, by)
    labels = _labels(layers, carries, names)
    sites_of = tuple(layer.site for layer in layers)
    pairs = Recorded.of(apply_fn, variables, clean, corrupted, sites_of, readout, chunk)
    sending = [len(layer.units) for layer in layers[:-1]]
    of_edges = {}
    for n, (first, second) in enumerate(pairwise(layers)):
        done = sum(sending[:n])
        advance = functools.partial(_advance, progress, done, sum(sending))
        _, of_edges[n] = sweep_paths(
            pairs, first.site, first.units, second.site, second.units,
            by=by, tau=tau, progress=advance,
        )  # fmt: skip
    found = list(_of_factors(of_edges, changed, num, key).values())
    skipped = np.isnan(of_edges[0][:, 0, 0])
    kept = [_kept(estimate, threshold) for estimate in found]

    graph = nx.DiGraph()
    for layer in layers:
        for unit in layer.units.tolist():
            of_unit = {} if labels is None else {"factors": labels[layer.site][unit]}
            graph.add_node(_node(layer.site, unit), site=layer.site, unit=unit, **of_unit)
    for (first, second), estimate, keep in zip(pairwise(layers), found, kept, strict=True):
        for s, t in np.argwhere(keep.any(0)).tolist():
            value = estimate.value[:, s, t]
            graph.add_edge(
                _node(first.site, int(first.units[s])),
                _node(second.site, int(second.units[t])),
                mediated_fraction=_named(names, value),
                low=_named(names, estimate.low[:, s, t]),
                high=_named(names, estimate.high[:, s, t]),
                kept=tuple(name for k, name in enumerate(names) if keep[k, s, t]),
                weight=float(np.abs(value[keep[:, s, t]]).max()),
            )

    relay = Relay(pairs, layers, tau)
    of_all = [np.ones_like(keep) for keep in kept]
    graph.graph |= {
        "factors": names,
        "threshold": float(threshold),
        "edges_before": sum(keep[0].size for keep in kept),
        "edges_after": graph.number_of_edges(),
        "edges_kept": _named(names, sum(keep.sum((1, 2)) for keep in kept)),
        "skipped": _named(names, np.bincount(changed[skipped], minlength=num)),
    }
    relayed = {
        what: relay.fractions(changed, senders)
        for what, senders in (("kept_mf", kept), ("all_mf", of_all))
    }
    for what, joint in _of_factors(relayed, changed, num, key).items():
        ends = {"": joint.value, "_low": joint.low, "_high": joint.high}
        graph.graph |= {what + end: _named(names, array) for end, array in ends.items()}
    return graph


def latent_factor_graph(
    effects: Any, carried: Any, names: Sequence[str], site: str = "z"
) -> nx.DiGraph:
    """The bipartite graph of which factor moves which latent [R].

    Args:
      effects: The effect of each unit of a site for each factor, mean `||NIE||` over mean `||TE||`:
        `[S, K]`.
      carried: `[S, K]` bool, which of them are beyond the null.
      names: Of the K factors.
      site: What to call the site.

    Returns:
      A graph with the factors (nodes of their names, `bipartite` 0), all S units (nodes
      `"site:unit"` as in `unit_graph`, `bipartite` 1), and an edge from a factor to a unit, its
      `weight` the effect, for each that is carried.

    Raises:
      ValueError: Shapes do not fit, or a node of a unit is called like a factor.

    Example:
      >>> graph = latent_factor_graph([[0.9, 0.0], [0.2, 0.7]], [[1, 0], [1, 1]], ["x", "y"])
      >>> sorted(graph.edges(data="weight"))
      [('x', 'z:0', 0.9), ('x', 'z:1', 0.2), ('y', 'z:1', 0.7)]
    """
    import networkx as nx

    effects, carried, names = np.asarray(effects, float), np.asarray(carried, bool), tuple(names)
    if effects.ndim != 2 or carried.shape != effects.shape or effects.shape[1] != len(names):
        raise ValueError(
            f"expected effects and carried [S, {len(names)}], "
            f"got shapes {effects.shape} and {carried.shape}"
        )
    nodes = [_node(site, unit) for unit in range(len(effects))]
    if len({*names, *nodes}) < len(names) + len(nodes):
        raise ValueError(f"expected names unlike each other and {site}:0, got {', '.join(names)}")
    graph = nx.DiGraph(factors=names)
    graph.add_nodes_from(names, bipartite=0)
    for unit, node in enumerate(nodes):
        of_unit = tuple(name for k, name in enumerate(names) if carried[unit, k])
        graph.add_node(node, bipartite=1, site=site, unit=unit, factors=of_unit)
    for unit, k in np.argwhere(carried).tolist():
        graph.add_edge(names[k], nodes[unit], weight=float(effects[unit, k]))
    return graph


def _layers(
    apply_fn: Callable[..., Any], variables: Any, clean: Any, units: Mapping[str, Any], by: By
) -> tuple[Layer, ...]:
    if len(units) < 2:
        raise ValueError(f"expected units of two sites or more, got {', '.join(units) or 'none'}")
    one = take(clean, jnp.arange(1))
    layers = []
    for site, indices in units.items():
        _, rows, shape = some_units({site: indices}, by, apply_fn, variables, one)
        layers.append(Layer(site, rows, unit_ids(shape, by)))
    order = [site for site in sites(apply_fn, variables, one) if site in units]
    if order != list(units):
        raise ValueError(
            f"expected sites in the order of the network ({', '.join(order)}), "
            f"got {', '.join(units)}"
        )
    return tuple(layers)


def _labels(
    layers: Sequence[Layer], carries: Mapping[str, Any] | None, names: tuple[str, ...]
) -> dict[str, list[tuple[str, ...]]] | None:
    """Which factors each unit of each site carries."""
    if carries is None:
        return None
    found = {}
    for layer in layers:
        shape = int(layer.ids.max()) + 1, len(names)
        if layer.site not in carries or np.shape(carries[layer.site]) != shape:
            there = np.shape(carries[layer.site]) if layer.site in carries else "none"
            raise ValueError(f"site {layer.site!r}: expected carries {list(shape)}, got {there}")
        found[layer.site] = [
            tuple(name for name, carried in zip(names, row, strict=True) if carried)
            for row in np.asarray(carries[layer.site], bool).tolist()
        ]
    return found


def _of_factors(
    values: Mapping[Any, np.ndarray], changed: np.ndarray, num: int, key: jax.Array | None
) -> dict[Any, Estimate]:
    """Means `[K, ...]` over the pairs of each factor, of arrays `[M, ...]`; NaN without pairs."""
    parts = []
    for k in range(num):
        # A mean over no pairs is that over one that is skipped.
        rows = np.append(np.flatnonzero(changed == k), -1)[: max(1, np.sum(changed == k))]
        of_factor = {
            name: np.where(rows.reshape(-1, *[1] * (array.ndim - 1)) < 0, np.nan, array[rows])
            for name, array in values.items()
        }
        parts.append(jax.tree.map(np.asarray, estimate_means(of_factor, key)))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)


def _kept(estimate: Estimate, threshold: float) -> np.ndarray:
    """Which edges are kept for each factor, `[K, S, T]` bool."""
    value, low, high = estimate.value, estimate.low, estimate.high
    return np.asarray((np.abs(value) >= threshold) & ((low > 0) | (high < 0)))


def _advance(
    progress: Callable[[int, int], None] | None, before: int, total: int, sent: int, _: int
) -> None:
    if progress is not None:
        progress(before + sent, total)


def _node(site: str, unit: int) -> str:
    return f"{site}:{unit}"


def _named(names: Sequence[str], values: Any) -> dict[str, Any]:
    return dict(zip(names, np.asarray(values).tolist(), strict=True))
