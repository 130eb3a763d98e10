"""Pictures of a model that was taken apart, and what its units mark in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from etils import epath
from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import circuit_effects, effects, files
from experiments.circuit_effects import Anatomy
from experiments.pictures import png
from vaejax import circuits, interventions
from vaejax.data import Masked, Renderable
from vaejax.types import Variables

_MASKED_IMAGES = 256


def draw(
    directory: epath.Path,
    model: nn.Module,
    variables: Variables,
    source: Renderable,
    values: jax.Array,
    found: Anatomy,
    graph: Any,
) -> None:
    """Draws `units.png`, `curves.png`, `maps.png`, `graph_*.png`; writes `masks.csv`."""
    names = [factor.name for factor in source.factors]
    with matplotlib.rc_context({"font.size": 7}):
        files.write_bytes(directory / "units.png", _units(found, names))
        files.write_bytes(directory / "curves.png", _curves(found))
        maps = _maps(model, variables, source, values, list(found.circuits))
        if maps:
            files.write_bytes(directory / "maps.png", _draw_maps(maps, names))
        for factor in found.factors if graph is not None else ():
            files.write_bytes(directory / f"graph_{factor}.png", _graph(graph, factor))
    if isinstance(source, Masked):
        rows = _masks(model, variables, source, list(found.circuits))
        if rows:
            files.write_csv(directory / "masks.csv", list(rows[0]), rows)


def _maps(
    model: nn.Module,
    variables: Variables,
    source: Renderable,
    values: jax.Array,
    sites: Sequence[str],
) -> dict[str, np.ndarray]:
    """For each feature map, where each factor acts: `[H, W, K]`."""
    clean, corrupted = effects.factor_pairs(source, values)
    num = len(source.factors)
    changed = np.repeat(np.arange(num), len(values))
    network = effects.reconstruct(model), variables
    shapes = interventions.sites(*network, clean[:1])
    wanted = [site for site in sites if len(shapes[site].shape) == 4]
    if not wanted:
        return {}
    maps = circuits.selectivity_maps(
        *network, clean, corrupted, changed, wanted, num_factors=num, method="attribution"
    )
    return {site: np.asarray(of_site.effect.value) for site, of_site in maps.items()}


def _masks(
    model: nn.Module, variables: Variables, source: Masked, sites: Sequence[str]
) -> list[dict[str, Any]]:
    """Which part of the image each unit of the decoder's feature maps marks, the best first."""
    images, factors = effects.draw(source, jax.random.key(circuit_effects.KEY), _MASKED_IMAGES)
    masks = jax.jit(jax.vmap(source.masks))(factors)
    network = effects.reconstruct(model)
    shapes = interventions.sites(network, variables, images[:1])
    wanted = [
        site for site in sites if site.startswith("decoder/") and len(shapes[site].shape) == 4
    ]
    if not wanted:
        return []
    recorded = jax.jit(interventions.intervene(network, {}, record=wanted))
    _, activations = recorded(variables, {}, images)
    rows = []
    for site, matches in circuits.match_masks(activations, masks).items():
        for unit, part in enumerate(np.asarray(matches.best)):
            if part < 0:
                continue
            iou = jax.tree.map(lambda leaf, u=unit, p=part: float(leaf[u, p]), matches.iou)
            rows.append(
                {
                    "site": site,
                    "unit": unit,
                    "part": matches.parts[part],
                    "iou": iou.value,
                    "iou_low": iou.low,
                    "iou_high": iou.high,
                    "iou_random": float(np.mean(np.asarray(matches.null)[:, unit, part])),
                    "p_value": float(matches.p_value[unit, part]),
                    "marks": "on" if bool(matches.above[unit, part]) else "off",
                }
            )
    return sorted(rows, key=lambda row: -row["iou"])


def _units(found: Anatomy, names: Sequence[str]) -> bytes:
    """Effects of factors by units, the units of each site in the order of their main factor."""
    figure, axes = _panels(len(found.units), 6.7, 0.35 + 0.11 * len(names))
    for axis, (site, units) in zip(axes, found.units.items(), strict=True):
        effect = np.nan_to_num(units.effect.value)
        order = np.lexsort((-effect.max(1), effect.argmax(1)))
        image = effect[order].T
        axis.imshow(image, aspect="auto", interpolation="nearest", cmap="Greys", vmin=0)
        axis.set_yticks(np.arange(len(names)), names, fontsize=5)
        axis.set_xticks([])
        axis.set_title(f"{site}: {len(effect)} units, darkest {image.max():.2f}", loc="left")
    return png(figure)


def _curves(found: Anatomy) -> bytes:
    """Mediated fraction by the number of units, with random sets of each circuit's size."""
    figure, axes = _panels(len(found.circuits), 5.0, 1.7, between=0.5)
    for axis, (site, of_site) in zip(axes, found.circuits.items(), strict=True):
        for number, (factor, circuit) in enumerate(zip(found.factors, of_site, strict=True)):
            colour, value = f"C{number}", np.asarray(circuit.curve.value)
            axis.plot(circuit.sizes, value, color=colour, label=factor)
            low, high = np.asarray(circuit.curve.low), np.asarray(circuit.curve.high)
            axis.fill_between(circuit.sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            if circuit.size:
                random = [float(circuit.random.low), float(circuit.random.high)]
                axis.plot([circuit.size] * 2, random, color=colour, linewidth=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=0)
        axis.set_ylim(-0.1, 1.1)
        axis.axhline(circuits.THRESHOLD, color="0.7", linewidth=0.5)
        axis.set_title(f"{site}, of {len(found.units[site].label)} units", loc="left")
        axis.set_ylabel("mediated fraction")
    axes[0].legend(frameon=False, fontsize=5, ncols=3)
    axes[-1].set_xlabel("units patched; bars: random sets of the circuit's size")
    return png(figure)


def _draw_maps(maps: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
    """Where each factor acts: a row for each feature map, a column for each factor."""
    across, down = 0.9 * len(names) + 0.9, 1.0 * len(maps) + 0.3
    figure = Figure(figsize=(across, down))
    for r, (site, effect) in enumerate(maps.items()):
        for k, name in enumerate(names):
            left, bottom = (0.9 + 0.9 * k) / across, 1 - (0.3 + 1.0 * (r + 1) - 0.1) / down
            axis = figure.add_axes((left, bottom, 0.8 / across, 0.8 / down))
            axis.imshow(effect[..., k], cmap="Greys", vmin=0, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if r == 0:
                axis.set_title(name)
            if k == 0:
                axis.set_ylabel(site, fontsize=5)
    return png(figure)


def _graph(graph: Any, factor: str) -> bytes:
    """Units in a column for each site, edges as wide as the factor's effects along them."""
    nodes = dict(graph.nodes(data=True))
    sites = list(dict.fromkeys(of["site"] for of in nodes.values()))
    place: dict[str, tuple[float, float]] = {}
    for column, site in enumerate(sites):
        of_site = [node for node, of in nodes.items() if of["site"] == site]
        place |= {node: (column, (row + 0.5) / len(of_site)) for row, node in enumerate(of_site)}
    edges = [
        (tail, head, of["mediated_fraction"][factor])
        for tail, head, of in graph.edges(data=True)
        if factor in of["kept"]
    ]
    largest = max((abs(fraction) for *_, fraction in edges), default=1.0)
    figure, (axis,) = _panels(1, 6.7, 3.6)
    for tail, head, fraction in edges:
        (x0, y0), (x1, y1) = place[tail], place[head]
        colour, width = "C0" if fraction > 0 else "C3", 4 * abs(fraction) / largest
        axis.plot([x0, x1], [y0, y1], color=colour, linewidth=width, zorder=1)
    for node, (x, y) in place.items():
        marked = factor in nodes[node].get("factors", ())
        box = {"boxstyle": "circle", "facecolor": "0.85" if marked else "white", "linewidth": 0.5}
        label = str(nodes[node]["unit"])
        axis.text(x, y, label, ha="center", va="center", fontsize=5, bbox=box, zorder=2)
    axis.set_xlim(-0.5, len(sites) - 0.5)
    axis.set_ylim(0, 1)
    axis.set_xticks(range(len(sites)), sites, fontsize=5)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    title = f"{factor}: paths for it (blue) and against it (red), widest {largest:.2f}; grey: units"
    axis.set_title(f"{title} whose effect on it stands out", loc="left")
    return png(figure)


def _panels(
    count: int, width: float, height: float, between: float = 0.3
) -> tuple[Figure, list[Axes]]:
    """A figure of panels one below the other, sizes in inches, with what is between included."""
    total = count * height + 0.4
    figure = Figure(figsize=(width, total))
    axes = []
    for number in range(count):
        bottom = (total - (number + 1) * height) / total
        axes.append(figure.add_axes((0.12, bottom, 0.85, (height - between) / total)))
    return figure, axes
