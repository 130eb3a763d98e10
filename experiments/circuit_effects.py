"""The units and circuits of one trained model: what is measured, and as columns and arrays."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments import effects
from vaejax import circuits, interventions
from vaejax.circuits import Circuit, FactorUnits
from vaejax.data import Renderable
from vaejax.types import Variables

Progress = Callable[[int, int], None]

KEY = 20_261_123
"""Seed of the images that are taken apart; no run trains with it."""

_GRAPH_PAIRS = 16  # of each factor

# What is the same as another site, has no part in a reconstruction from means, or is the output.
_LEFT_OUT = ("encoder/mean", "encoder/logvar", "reconstruction")


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """The units and circuits of one model: K factors.

    Attributes:
      factors: Names of the factors that circuits were looked for.
      units: For each site what its units do for all K factors.
      circuits: For each site one circuit for each of `factors`.
    """

    factors: tuple[str, ...]
    units: dict[str, FactorUnits]
    circuits: dict[str, tuple[Circuit, ...]]


def anatomy(
    model: nn.Module,
    variables: Variables,
    source: Renderable,
    values: jax.Array,
    *,
    factors: Sequence[str] | None = None,
    sites: Collection[str] | None = None,
    screen: int | None = None,
    threshold: float = circuits.THRESHOLD,
    progress: Progress | None = None,
) -> Anatomy:
    """Finds the units and circuits of a model.

    Args:
      model: The model.
      variables: Its variables.
      source: Draws the images.
      values: `[N, K]`, factors of the clean images; each is paired with K corrupted ones, which
        differ in one factor. Every other is held out of the search for circuits.
      factors: Whose circuits to look for, by name; by default all.
      sites: Where, of those that `unit_sites` names; by default at all.
      screen: See `circuits.factor_units`.
      threshold: See `circuits.find_circuit`.
      progress: Called with the number of circuits found and their total.
    """
    names = [factor.name for factor in source.factors]
    factors = names if factors is None else list(factors)
    clean, corrupted = effects.factor_pairs(source, values)
    changed = np.repeat(np.arange(len(names)), len(values))
    network = effects.reconstruct(model), variables
    there = unit_sites(model, variables, clean[:1])
    sites = there if sites is None else [site for site in there if site in sites]
    units = circuits.factor_units(
        *network, clean, corrupted, changed, num_factors=len(names), sites=sites, screen=screen
    )
    found = circuits.find_circuits(
        *network,
        clean,
        corrupted,
        changed,
        factors=[names.index(factor) for factor in factors],
        sites=sites,
        threshold=threshold,
        progress=progress,
    )
    return Anatomy(tuple(factors), units, found)


def bottleneck(
    model: nn.Module, variables: Variables, source: Renderable, values: jax.Array
) -> Anatomy:
    """The units and circuits of the latents (of a VQ-VAE, its codes), and the layers beside them.

    Arguments as for `anatomy`.
    """
    images, _ = effects.factor_pairs(source, values)
    names = unit_sites(model, variables, images[:1])
    middle = names.index(_latent_site(names))
    sites = names[max(0, middle - 1) : middle + 2]
    return anatomy(model, variables, source, values, sites=sites)


def latent_graph(found: Anatomy, names: Sequence[str]) -> Any:
    """The graph of which factor moves which latent; `names` are those of all factors."""
    site = _latent_site(found.units)
    units = found.units[site]
    return circuits.latent_factor_graph(units.effect.value, units.beyond_null, names, site)


def _latent_site(names: Collection[str]) -> str:
    return "quantized" if "quantized" in names else "z"


def unit_sites(model: nn.Module, variables: Variables, images: jax.Array) -> list[str]:
    """The sites of a model that circuits are looked for at: its layers, and its latents."""
    names = interventions.unit_sites(effects.reconstruct(model), variables, images)
    last = [name for name in names if name.startswith("decoder/")][-1]
    return [name for name in names if name not in (*_LEFT_OUT, last)]


def graph(
    model: nn.Module,
    variables: Variables,
    source: Renderable,
    values: jax.Array,
    found: Anatomy,
    *,
    widest: int,
    progress: Progress | None = None,
) -> Any:
    """The graph of the units of all circuits, and the paths between them.

    Args:
      model: As for `anatomy`, and so are the next three.
      variables: See there.
      source: See there.
      values: See there; of the pairs that circuits were judged on, the first few are used.
      found: What it returned.
      widest: Sites of more units are passed over: a path goes through them as it will.
      progress: Called with the number of sending units done and their total.

    Returns:
      A `networkx.DiGraph`, see `circuits.unit_graph`; None if there are fewer than two sites.
    """
    units = {
        site: np.unique(np.concatenate([circuit.units[site] for circuit in of_site]))
        for site, of_site in found.circuits.items()
        if len(found.units[site].label) <= widest
    }
    units = {site: of_site for site, of_site in units.items() if len(of_site)}
    if len(units) < 2:
        return None
    names = [factor.name for factor in source.factors]
    clean, corrupted = effects.factor_pairs(source, values)
    rows = np.arange(len(clean)).reshape(len(names), -1)[:, 1::2][:, :_GRAPH_PAIRS].ravel()
    changed = np.repeat(np.arange(len(names)), len(values))[rows]
    return circuits.unit_graph(
        effects.reconstruct(model), variables, clean[rows], corrupted[rows], changed, units,
        names=names, carries={site: found.units[site].beyond_null for site in units},
        progress=progress,
    )  # fmt: skip


def columns(found: Anatomy) -> dict[str, float | None]:
    """What the table says of a model's units and circuits."""
    labels = np.concatenate([of_site.label for of_site in found.units.values()])
    every = [circuit for of_site in found.circuits.values() for circuit in of_site]
    shares = [
        circuit.size / len(found.units[site].label)
        for site, of_site in found.circuits.items()
        for circuit in of_site
        if not np.isnan(circuit.found)
    ]
    overlaps = [overlap for site in found.circuits for overlap in overlaps_of(found, site).values()]
    mono = np.concatenate([of_site.monosemanticity for of_site in found.units.values()])
    return {
        "monosemanticity": _mean(mono),
        "monosemantic_fraction": _mean(labels == circuits.MONOSEMANTIC),
        "polysemantic_fraction": _mean(labels == circuits.POLYSEMANTIC),
        "circuit_size": _mean(shares),
        "circuit_faithfulness": _mean([circuit.faithfulness.value for circuit in every]),
        "circuit_completeness": _mean([circuit.completeness.value for circuit in every]),
        "circuit_faithfulness_random": _mean([circuit.random.value for circuit in every]),
        "circuit_overlap": _mean([overlap.jaccard for overlap in overlaps]),
        "circuit_overlap_random": _mean([overlap.expected for overlap in overlaps]),
    }


def overlaps_of(found: Anatomy, site: str) -> dict[tuple[str, str], circuits.Overlap]:
    """The overlap of the circuits of every two factors at a site."""
    num = len(found.units[site].label)
    of_factor = dict(zip(found.factors, found.circuits[site], strict=True))
    return {
        (a, b): circuits.overlap(of_factor[a].units[site], of_factor[b].units[site], num)
        for a, b in itertools.combinations(found.factors, 2)
    }


def arrays(found: Anatomy) -> dict[str, np.ndarray]:
    """For each site, factor by unit, and by unit: for `units.npz`."""
    named: dict[str, Any] = {}
    for site, units in found.units.items():
        for end, part in (
            ("", units.effect.value),
            ("_low", units.effect.low),
            ("_high", units.effect.high),
        ):
            named[f"effect_{site}{end}"] = np.asarray(part).T
        named[f"label_{site}"] = units.label
        named[f"monosemanticity_{site}"] = units.monosemanticity
    for site, of_site in found.circuits.items():
        num = len(found.units[site].label)
        masks = [np.isin(np.arange(num), circuit.units[site]) for circuit in of_site]
        named[f"circuit_{site}"] = np.array(masks)
        named[f"circuit_faithfulness_{site}"] = np.array(
            [circuit.faithfulness.value for circuit in of_site]
        )
    return {name: np.asarray(array) for name, array in named.items()}


def _mean(values: Any) -> float | None:
    """The mean of what is defined, None if nothing is."""
    values = np.asarray(values, float)
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None
