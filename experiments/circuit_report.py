"""What was found when a model was taken apart: tables and files."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from experiments import circuit_effects, files
from experiments.circuit_effects import Anatomy
from vaejax import circuits
from vaejax.circuits import Circuit
from vaejax.estimates import Estimate


def show(console: Console, found: Anatomy, graph: Any) -> None:
    """Prints a table of units and one of circuits."""
    table = new_table("Units", "site", "units", "mono.", "poly.", "inactive")
    for site, units in found.units.items():
        counts = np.bincount(units.label, minlength=3)
        mono, poly, inactive = (
            counts[label]
            for label in (circuits.MONOSEMANTIC, circuits.POLYSEMANTIC, circuits.INACTIVE)
        )
        table.add_row(site, *map(str, (len(units.label), mono, poly, inactive)))
    console.print(table)
    headings = ("site", "factor", "units", "MF held out", "left", "random", "p")
    table = new_table("Circuits", *headings)
    for site, of_site in found.circuits.items():
        for factor, circuit in zip(found.factors, of_site, strict=True):
            reached = "" if circuit.reached else " (not reached)"
            table.add_row(
                site,
                factor,
                f"{circuit.size}/{len(found.units[site].label)}{reached}",
                _interval(circuit.faithfulness),
                f"{float(circuit.completeness.value):.2f}",
                f"{float(circuit.random.value):.2f}",
                f"{circuit.p_value:.2f}",
            )
    console.print(table)
    if graph is not None:
        paths = new_table("Paths", "factor", "edges", "MF through them", "through all")
        for factor in found.factors:
            paths.add_row(
                factor,
                f"{graph.graph['edges_kept'][factor]}/{graph.graph['edges_before']}",
                f"{graph.graph['kept_mf'][factor]:.2f}",
                f"{graph.graph['all_mf'][factor]:.2f}",
            )
        console.print(paths)
    for name, value in circuit_effects.columns(found).items():
        console.print(f"{name:28} {value}")


def write(directory: epath.Path, found: Anatomy, graph: Any) -> None:
    """Writes `circuits.json`, `units.npz`, `graph.graphml` and `graph.dot`."""
    files.write_npz(directory / "units.npz", circuit_effects.arrays(found))
    record = {
        site: {
            factor: _record(circuit, len(found.units[site].label))
            for factor, circuit in zip(found.factors, of_site, strict=True)
        }
        for site, of_site in found.circuits.items()
    }
    summary = {"columns": circuit_effects.columns(found), "circuits": record}
    files.write_json(directory / "circuits.json", summary)
    if graph is not None:
        files.write_bytes(directory / "graph.graphml", circuits.to_graphml(graph).encode())
        files.write_bytes(directory / "graph.dot", circuits.to_dot(graph).encode())


def _record(circuit: Circuit, num: int) -> dict[str, Any]:
    return {
        "units": {site: units.tolist() for site, units in circuit.units.items()},
        "size": circuit.size,
        "of": num,
        "reached": circuit.reached,
        "found": finite(circuit.found),
        "faithfulness": _numbers(circuit.faithfulness),
        "completeness": _numbers(circuit.completeness),
        "lost": [finite(lost) for lost in circuit.lost],
        "minimality": finite(circuit.minimality),
        "random": _numbers(circuit.random),
        "p_value": finite(circuit.p_value),
        "curve": [
            {"size": int(size), "mediated_fraction": finite(value)}
            for size, value in zip(circuit.sizes, circuit.curve.value, strict=True)
        ],
    }


def new_table(title: str, *headings: str) -> Table:
    """A table without rows."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _interval(found: Estimate) -> str:
    value, low, high = (float(part) for part in (found.value, found.low, found.high))
    return f"{value:.2f} ({low:.2f}, {high:.2f})"


def _numbers(found: Estimate) -> dict[str, float | None]:
    return {end: finite(getattr(found, end)) for end in ("value", "low", "high")}


def finite(value: Any) -> float | None:
    """A number for JSON, which has no NaN."""
    value = float(value)
    return value if np.isfinite(value) else None
