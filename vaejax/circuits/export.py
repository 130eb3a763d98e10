"""Graphs as files that other programs read: GraphML and DOT."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import networkx as nx

_WIDEST = 5.0  # points


def to_graphml(graph: nx.DiGraph) -> str:
    """A graph as GraphML, which Gephi, Cytoscape, igraph and `networkx.parse_graphml` read.

    GraphML knows no mappings and no lists. A mapping, such as one number for each factor, becomes
    an attribute for each entry, `mediated_fraction_scale`; a list or tuple becomes JSON, which
    `json.loads` reads back.

    Args:
      graph: From `unit_graph`, `latent_factor_graph`, or any other whose attributes are numbers,
        strings, or mappings and sequences of these. None is left out.

    Returns:
      The text of the file, to be encoded as UTF-8.

    Raises:
      ValueError: An attribute is of another type, or two have the same name once mappings are taken
        apart.
    """
    import networkx as nx

    flat = nx.DiGraph(**_flat(graph.graph))
    for node, attributes in graph.nodes(data=True):
        flat.add_node(node, **_flat(attributes))
    for tail, head, attributes in graph.edges(data=True):
        flat.add_edge(tail, head, **_flat(attributes))
    buffer = io.BytesIO()
    nx.write_graphml(flat, buffer)
    return buffer.getvalue().decode()


def to_dot(graph: nx.DiGraph, *, weight: str = "weight") -> str:
    """A graph as DOT, which Graphviz draws: `dot -Tsvg graph.dot`.

    From left to right; nodes with an attribute `site` in one cluster for each site, their `factors`
    below their names; the pens of edges as wide as their weights are large.

    Args:
      graph: As for `to_graphml`; names of nodes are strings.
      weight: The attribute of edges that is drawn; its size counts, not its sign.

    Returns:
      The text of the file, to be encoded as UTF-8.

    Example:
      >>> import networkx as nx
      >>> print(to_dot(nx.DiGraph([("a", "b")])), end="")
      digraph {
        rankdir=LR;
        node [shape=box];
        "a" [label="a"];
        "b" [label="b"];
        "a" -> "b" [penwidth=5.000];
      }
    """
    clusters: dict[Any, list[str]] = {}
    for node, attributes in graph.nodes(data=True):
        factors = ", ".join(map(str, attributes.get("factors", ())))
        label = f"{node}\n{factors}" if factors else str(node)
        line = f"{_quote(node)} [label={_quote(label)}];"
        clusters.setdefault(attributes.get("site"), []).append(line)
    lines = ["digraph {", "  rankdir=LR;", "  node [shape=box];"]
    for number, (site, nodes) in enumerate(clusters.items()):
        if site is None:
            lines += [f"  {line}" for line in nodes]
        else:
            lines += [f"  subgraph cluster_{number} {{", f"    label={_quote(site)};"]
            lines += [*(f"    {line}" for line in nodes), "  }"]
    sizes = [abs(float(size)) for _, _, size in graph.edges(data=weight, default=1.0)]
    largest = max(sizes, default=0) or 1.0
    for (tail, head), size in zip(graph.edges, sizes, strict=True):
        width = max(0.1, _WIDEST * size / largest)
        lines.append(f"  {_quote(tail)} -> {_quote(head)} [penwidth={width:.3f}];")
    return "\n".join([*lines, "}", ""])


def write_graphml(graph: nx.DiGraph, path: str | os.PathLike[str]) -> None:
    """Writes `to_graphml` to a file."""
    Path(path).write_text(to_graphml(graph), encoding="utf-8")


def write_dot(graph: nx.DiGraph, path: str | os.PathLike[str], *, weight: str = "weight") -> None:
    """Writes `to_dot` to a file."""
    Path(path).write_text(to_dot(graph, weight=weight), encoding="utf-8")


def _quote(text: Any) -> str:
    """A DOT string that Graphviz draws as the text."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in _entries(attributes):
        if name in flat:
            raise ValueError(f"two attributes would be called {name!r}")
        if value is not None:
            flat[name] = _scalar(name, value)
    return flat


def _entries(attributes: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}_{entry}", number) for entry, number in value.items())
        else:
            yield str(name), value


def _scalar(name: str, value: Any) -> bool | int | float | str:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list | tuple):
        return json.dumps(value)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"attribute {name!r}: expected a number or string, got {value!r}")
    return value
