"""The smallest set of units that carries a factor, and whether it does.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import Estimate, central_interval, estimate_mean
from vaejax.interventions import intervene
from vaejax.interventions import sites as all_sites
from vaejax.interventions.edits import By, replace, unit_ids
from vaejax.interventions.passes import (
    TAU,
    Readout,
    count_examples,
    mediated_fractions,
    read,
    record,
    shapes_of,
    take,
    unit_sites,
)

THRESHOLD = 0.8
"""The mediated fraction that a circuit reaches."""

_CANDIDATES = 8  # units that are tried exactly before one is added
_RANDOM_SETS = 99
_CURVE_POINTS = 16


class FoundProgress(Protocol):
    """Told how far a search has got."""

    def __call__(self, size: int, mediated_fraction: float) -> None:
        """The circuit has so many units, which mediate so much."""
        ...


@struct.dataclass
class Circuit:
    """The units that carry one factor: C of them, H pairs held out.

    Attributes:
      units: For each site the indices of its units in the circuit, ascending.
      size: C.
      reached: Whether it mediates `threshold` of the effect on the pairs that it was found on.
      found: The mediated fraction of the joint patch on those pairs.
      faithfulness: That on held-out pairs, mean with its bootstrap interval.
      completeness: On held-out pairs, the mediated fraction that is left when the circuit's units
        keep their clean values in the corrupted run: 0 if nothing else carries the factor.
      lost: `[C]`, what dropping each unit takes from the mediated fraction on held-out pairs, in
        the order of `units`.
      minimality: The largest of them; NaN for an empty circuit.
      random: Mediated fraction of random sets of C units of the same sites that change in these
        pairs, on held-out pairs: mean, and the central 95% of the sets (not an interval of the
        mean).
      p_value: `[]`, how often a random set mediates as much.
      sizes: `[P]` numbers of units, from 0 to all that change.
      curve: Mediated fraction of the first so many units in the order they were found in, then in
        that of their attribution, on held-out pairs: `[P]`, with intervals.
    """

    units: dict[str, np.ndarray]
    size: int
    reached: bool
    found: float
    faithfulness: Estimate
    completeness: Estimate
    lost: np.ndarray
    minimality: float
    random: Estimate
    p_value: float
    sizes: np.ndarray
    curve: Estimate


def find_circuit(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sites: Iterable[str] | str,
    *,
    by: By = "channel",
    readout: Readout = None,
    threshold: float = THRESHOLD,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: FoundProgress | None = None,
) -> Circuit:
    """The smallest set of units whose joint patch mediates enough of a factor's effect [R].

        MF(C) = mean <Y(x; C <- C(x~)) - Y(x), TE> / ||TE||^2 >= threshold

    Greedy, by exact patches: of the units that a gradient at the present circuit ranks first, the
    one is added that makes MF largest; when enough is reached, units that can be spared are dropped
    again, those that lose least first. Sets that only help together are found if their gradients
    say so, and the smallest of all sets is not promised.

    Every other pair is used to find it, and those between to judge it. A whole layer mediates
    everything, so give sites that belong together: circuits are of these alone.

    Args:
      apply_fn: The network, as for `patch_units`; and so are the others.
      variables: See there.
      clean: The inputs x of M pairs, `[M, ...]` or a pytree of such arrays, at least 4.
      corrupted: The inputs x~, which differ in the factor that the circuit is for.
      sites: The sites whose units may be in the circuit, or one.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      readout: From the output to the quantity of interest.
      threshold: The mediated fraction to reach.
      tau: Pairs with `||TE||` below it do not count.
      chunk: See `patch_units`.
      key: Draws random sets and the bootstrap's resamples.
      progress: Called when a unit has been added.

    Returns:
      A `Circuit`; empty, with NaN for its numbers, if no pair has a total effect to mediate.

    Raises:
      ValueError: Unknown sites, or fewer than four pairs.

    Example:
      Of four hidden units the network reads the first twice and the second once.

      >>> from flax import linen as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         hidden = nn.Dense(4, name="hidden")(x)
      ...         return hidden @ jnp.array([[2.0], [1.0], [0.0], [0.0]])
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> variables = {"params": {"hidden": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}}
      >>> found = find_circuit(Net().apply, variables, x, x + 1, "hidden")
      >>> found.units["hidden"].tolist(), round(float(found.faithfulness.value), 3)
      ([0, 1], 1.0)
    """
    key = jax.random.key(0) if key is None else key
    pairs = count_examples(clean, corrupted)
    if pairs < 4:
        raise ValueError(f"expected at least 4 pairs, of which half are held out, got {pairs}")
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    options = (names, by, readout, tau, chunk)
    # As many in both halves, so that they share their programs.
    halves = [jnp.arange(start, pairs // 2 * 2, 2) for start in (0, 1)]
    finding, judging = (
        _Patches.of(apply_fn, variables, take(clean, rows), take(corrupted, rows), *options)
        for rows in halves
    )
    backwards = _Patches.of(
        apply_fn, variables, take(corrupted, halves[1]), take(clean, halves[1]), *options
    )
    order = _grow(finding, threshold, progress)
    circuit, found = _prune(finding, order, threshold)
    return _judge(finding, judging, backwards, order, circuit, found, threshold, key)


def _grow(patches: _Patches, threshold: float, progress: FoundProgress | None) -> list[int]:
    """Adds units until they mediate enough, or all are in."""
    there, order = patches.changing(), list[int]()
    mask = np.zeros(patches.num, bool)
    reached = float(_mean(patches.fractions(mask[None]))[0])  # 0, or NaN if there is no effect
    while reached < threshold and len(order) < there.sum():
        gradient = np.where(there & ~mask, patches.gradient(mask), -np.inf)
        ranked = np.argsort(-gradient, kind="stable")[: int((there & ~mask).sum())]
        # Where many are needed, some are added at once; where few, the best of the candidates.
        sums = reached + np.cumsum(np.maximum(gradient[ranked], 0))
        at_once = int(np.searchsorted(sums, threshold)) // _CANDIDATES
        sure, candidates = ranked[:at_once], ranked[at_once : at_once + _CANDIDATES]
        mask[sure] = True
        found = _mean(patches.fractions(mask | _one_hot(candidates, patches.num)))
        chosen = int(np.argmax(found))
        order += [*sure.tolist(), int(candidates[chosen])]
        mask[order[-1]], reached = True, float(found[chosen])
        if progress is not None:
            progress(len(order), reached)
    return order


def _prune(patches: _Patches, order: list[int], threshold: float) -> tuple[np.ndarray, float]:
    """Drops units that can be spared, the least of them first; returns those left, and MF."""
    circuit = np.array(order, int)
    mask = _mask(circuit, patches.num)
    reached = float(_mean(patches.fractions(mask[None]))[0])
    while reached >= threshold:
        units = np.flatnonzero(mask)
        without = _mean(patches.fractions(mask & ~_one_hot(units, patches.num)))
        least = units[np.argsort(-without, kind="stable")[:_CANDIDATES]]
        fewer = np.array([mask & ~_mask(least[:n], patches.num) for n in range(1, len(least) + 1)])
        left = _mean(patches.fractions(fewer))
        spared = int(np.argmin(left >= threshold)) if (left < threshold).any() else len(left)
        if not spared:
            break
        mask, reached = fewer[spared - 1], float(left[spared - 1])
    return np.flatnonzero(mask), reached


def _judge(
    finding: _Patches,
    judging: _Patches,
    backwards: _Patches,
    order: list[int],
    circuit: np.ndarray,
    found: float,
    threshold: float,
    key: jax.Array,
) -> Circuit:
    """Everything that is said of a circuit on held-out pairs."""
    num, there = finding.num, np.flatnonzero(judging.changing() | finding.changing())
    mask = _mask(circuit, num)
    without = mask & ~_one_hot(circuit, num)
    curve_order = _curve_order(finding, order, circuit, there)
    sizes = np.unique(np.geomspace(1, len(there) + 1, _CURVE_POINTS).astype(int) - 1)
    prefixes = np.array([_mask(curve_order[:size], num) for size in sizes])
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    drawn = (generator.permutation(there)[: len(circuit)] for _ in range(_RANDOM_SETS))
    random = [_mask(units, num) for units in drawn]
    fractions = judging.fractions(np.concatenate([mask[None], without, prefixes, random]))
    parts = np.cumsum([1, len(without), len(prefixes)])
    whole, dropped, curve, null = np.split(fractions, parts)
    faithfulness, sets = _mean(whole)[0], _mean(null)
    lost = faithfulness - _mean(dropped)
    # Of the other direction: what the circuit's clean values take away from the corrupted run.
    taken = backwards.fractions(mask[None])[0]
    return Circuit(
        units=judging.named(circuit),
        size=len(circuit),
        reached=bool(found >= threshold),
        found=found,
        faithfulness=estimate_mean(whole[0], key),
        completeness=estimate_mean(1 - taken, key),
        lost=lost,
        minimality=float(lost.max()) if len(lost) else float("nan"),
        random=Estimate(sets.mean(), *central_interval(jnp.asarray(sets))),
        p_value=float((1 + np.sum(sets >= faithfulness - 1e-6)) / (1 + len(sets))),
        sizes=sizes,
        curve=estimate_mean(curve.T, key),
    )


def _curve_order(
    finding: _Patches, order: list[int], circuit: np.ndarray, there: np.ndarray
) -> np.ndarray:
    """The circuit first, then what was dropped from it, then the others by attribution."""
    first = [unit for unit in order if unit in circuit]
    dropped = [unit for unit in order if unit not in circuit]
    mask = _mask(first, finding.num)
    rest = np.setdiff1d(there, order)
    gradient = finding.gradient(mask)[rest]
    return np.array([*first, *dropped, *rest[np.argsort(-gradient, kind="stable")]], int)


def _mean(fractions: np.ndarray) -> np.ndarray:
    """Mean over the pairs that have a total effect: `[A, H]` to `[A]`."""
    there = ~np.isnan(fractions)
    with np.errstate(invalid="ignore"):
        return np.where(there, fractions, 0).sum(1) / there.sum(1)


def _mask(units: Any, num: int) -> np.ndarray:
    """Indices to one mask `[num]` of them all."""
    return np.isin(np.arange(num), units)


def _one_hot(units: np.ndarray, num: int) -> np.ndarray:
    """`[A]` indices to a mask of each, `[A, num]`."""
    return np.eye(num, dtype=bool)[units]


@struct.dataclass
class _Patches:
    """Joint patches of the units of some sites, as masks over all of them.

    Attributes:
      sites: In the order of the network.
      apply_fn: The network.
      variables: Its variables.
      inputs: Those that are patched, `[H, ...]`.
      base: For each site its activations on them.
      donor: Those that units take their values from.
      output: The quantity of interest on them, `[H, F]`.
      total: What mediated fractions are of, `[H, F]`.
      readout: See `find_circuit`.
      by: See there.
      tau: See there.
      chunk: Pairs at once.
    """

    sites: tuple[str, ...] = struct.field(pytree_node=False)
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    variables: Any
    inputs: Any
    base: dict[str, jax.Array]
    donor: dict[str, jax.Array]
    output: jax.Array
    total: jax.Array
    readout: Readout = struct.field(pytree_node=False)
    by: By = struct.field(pytree_node=False)
    tau: float = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls,
        apply_fn: Callable[..., Any],
        variables: Any,
        inputs: Any,
        donors: Any,
        sites: tuple[str, ...],
        by: By,
        readout: Readout,
        tau: float,
        chunk: int | None,
    ) -> _Patches:
        """Records what patches need to know of both inputs."""
        chunk = even_chunk(chunk, count_examples(inputs))
        one = take(inputs, jnp.arange(1))
        shapes_of(sites, apply_fn, variables, one)
        # Always the same sites, and so one program for all circuits of a network.
        wanted = {*unit_sites(apply_fn, variables, one), *sites}
        recorded = tuple(site for site in all_sites(apply_fn, variables, one) if site in wanted)
        output, base = record(apply_fn, variables, inputs, recorded, readout, chunk)
        donor_output, donor = record(apply_fn, variables, donors, recorded, readout, chunk)
        names = tuple(site for site in recorded if site in sites)
        base, donor = ({site: found[site] for site in names} for found in (base, donor))
        total = donor_output - output
        return cls(
            names, apply_fn, variables, inputs, base, donor, output, total, readout, by, tau, chunk
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each site."""
        return {site: int(self.ids(site).max()) + 1 for site in self.sites}

    def ids(self, site: str) -> np.ndarray:
        """Which unit each element of a site belongs to."""
        return unit_ids(self.base[site].shape[1:], self.by)

    @property
    def num(self) -> int:
        """The number of units of all sites."""
        return sum(self.sizes.values())

    def changing(self) -> np.ndarray:
        """Which units take another value in any pair, `[U]` bool."""
        found = []
        for site, size in self.sizes.items():
            differs = np.asarray((self.base[site] != self.donor[site]).any(0))
            found.append(np.bincount(self.ids(site)[differs], minlength=size) > 0)
        return np.concatenate(found)

    def named(self, units: np.ndarray) -> dict[str, np.ndarray]:
        """The indices at each site of units that are counted through all sites."""
        starts = np.cumsum([0, *self.sizes.values()])
        return {
            site: units[(units >= start) & (units < end)] - start
            for site, start, end in zip(self.sizes, starts[:-1], starts[1:], strict=True)
        }

    def fractions(self, masks: np.ndarray) -> np.ndarray:
        """Mediated fractions `[A, H]` of the joint patches of masks `[A, U]`."""
        found = []
        for rows in _in_eights(masks):
            found.append(np.asarray(_fractions(self, jnp.asarray(rows))))
        return np.concatenate(found)[: len(masks)] if found else np.zeros((0, len(self.total)))

    def gradient(self, mask: np.ndarray) -> np.ndarray:
        """The derivative of the mean mediated fraction by how far each unit is patched, `[U]`."""
        return np.asarray(_gradient(self, jnp.asarray(mask)))

    def run(self, amounts: jax.Array, rows: jax.Array) -> jax.Array:
        """Mediated fractions `[B]` when units are patched by amounts `[B, U]` in [0, 1]."""
        edits: dict[str, Any] = {}
        values: dict[str, Any] = {}
        start = 0
        for site, size in self.sizes.items():
            share = amounts[:, start : start + size][:, self.ids(site)]
            start += size
            donor = self.donor[site][rows]
            if not edits:  # here the activation is known, and what lies before it need not be run
                edits[site] = replace
                values[site] = _mixed(self.base[site][rows], (share, donor))
            else:
                edits[site], values[site] = _mixed, (share, donor)
        patched = intervene(self.apply_fn, edits)
        output, _ = patched(self.variables, values, take(self.inputs, rows))
        effect = read(self.readout, output) - self.output[rows]
        return mediated_fractions(effect, self.total[rows], self.tau)


def _mixed(activation: jax.Array, value: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The activation and a donor's, by shares that are 0 or 1 but for derivatives."""
    share, donor = value
    # The sum of both, and not one plus a difference, is exact for a share of 0 or 1.
    return (1 - share) * activation + share * donor


def _in_eights(masks: np.ndarray) -> Iterator[np.ndarray]:
    """Masks in blocks of one size, the last filled up, so that one program serves all."""
    for start in range(0, len(masks), _CANDIDATES):
        yield np.resize(masks[start : start + _CANDIDATES], (_CANDIDATES, masks.shape[1]))


@jax.jit
def _fractions(patches: _Patches, masks: jax.Array) -> jax.Array:
    def of_mask(mask: jax.Array) -> jax.Array:
        def run(rows: jax.Array) -> jax.Array:
            amounts = jnp.broadcast_to(mask.astype(jnp.float32), (len(rows), len(mask)))
            return patches.run(amounts, rows)

        return map_chunks(run, len(patches.total), patches.chunk)

    return lax.map(of_mask, masks)


@jax.jit
def _gradient(patches: _Patches, mask: jax.Array) -> jax.Array:
    def run(rows: jax.Array) -> jax.Array:
        amounts = jnp.broadcast_to(mask.astype(jnp.float32), (len(rows), len(mask)))
        found, pull = jax.vjp(lambda amounts: patches.run(amounts, rows), amounts)
        return pull((~jnp.isnan(found)).astype(found.dtype))[0]

    return map_chunks(run, len(patches.total), patches.chunk).mean(0)
