"""The smallest set of units that carries a factor, and whether it does.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from vaejax.checks import check_changed
from vaejax.circuits.joint_patches import AT_ONCE, JointPatches, joint_patches, network_order
from vaejax.estimates import Estimate, central_interval, estimate_mean
from vaejax.interventions.edits import By
from vaejax.interventions.passes import TAU, Readout, count_examples

THRESHOLD = 0.8
"""The mediated fraction that a circuit reaches."""

_RANDOM_SETS = 39
_CURVE_POINTS = 16
_TOGETHER = 4  # sites that share a program, which runs what follows the first of them


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


def find_circuits(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    changed: Any,
    *,
    factors: Iterable[int] | None = None,
    sites: Iterable[str] | None = None,
    by: By = "channel",
    readout: Readout = None,
    threshold: float = THRESHOLD,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Circuit, ...]]:
    """For each site and factor, the smallest set of its units that carries the factor [R].

        MF(C) = mean <Y(x; C <- C(x~)) - Y(x), TE> / ||TE||^2 >= threshold

    with the mean over pairs that differ in the factor, and all of the circuit C patched together.

    Greedy, by exact patches: of the units that a gradient at the present circuit ranks first, the
    one is added that makes MF largest; when enough is reached, units that can be spared are dropped
    again, those that lose least first, until there is none. While many are needed, those that the
    gradient ranks first are added, and the last dropped, several at a time. Sets that only help
    together are found, for adding goes on, but the smallest of all sets is not promised.

    Every other pair of a factor is used to find its circuit, and those between to judge it. Memory
    holds the activations of the sites on the 2 M inputs.

    Args:
      apply_fn: The network, as for `patch_units`; and so are the others.
      variables: See there.
      clean: The inputs x of M pairs, `[M, ...]` or a pytree of such arrays.
      corrupted: The inputs x~, in each of which one factor was intervened on.
      changed: `[M]` integers, which factor; four pairs or more of each.
      factors: Whose circuits to find; by default of all that occur.
      sites: Where; by default at all sites that contain no other. Each has circuits of its own: a
        whole layer mediates everything.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      readout: From the output to the quantity of interest.
      threshold: The mediated fraction to reach.
      tau: Pairs with `||TE||` below it do not count.
      chunk: See `patch_units`.
      key: Draws random sets and the bootstrap's resamples.
      progress: Called after each circuit with the number done and their total.

    Returns:
      For each site the circuits in the order of `factors`; a circuit is empty, with NaN for its
      numbers, if no pair has a total effect to mediate.

    Raises:
      ValueError: An unknown site, too few pairs, or `changed` is not as above.

    Example:
      Of four hidden units the network reads the first twice and the second once.

      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         hidden = nn.Dense(4, name="hidden")(x)
      ...         return hidden @ jnp.array([[2.0], [1.0], [0.0], [0.0]])
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> variables = {"params": {"hidden": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}}
      >>> changed = jnp.zeros(8, int)
      >>> (found,) = find_circuits(Net().apply, variables, x, x + 1, changed)["hidden"]
      >>> found.units["hidden"].tolist(), round(float(found.faithfulness.value), 3)
      ([0, 1], 1.0)
    """
    changed, _ = check_changed(changed, None, count_examples(clean, corrupted))
    factors = np.unique(changed).tolist() if factors is None else list(factors)
    names = network_order(apply_fn, variables, clean, sites)
    patches = joint_patches(
        apply_fn, variables, clean, corrupted, names, by=by, readout=readout, tau=tau, chunk=chunk
    )
    differs = patches.changing()
    found: dict[str, list[Circuit]] = {site: [] for site in names}
    for done, (place, factor) in enumerate(itertools.product(range(len(names)), factors), 1):
        # To compile takes longer than to run a few sites for nothing.
        first, site = place // _TOGETHER * _TOGETHER, names[place]
        rows = np.flatnonzero(changed == factor)
        of_pairs = patches.of_sites(names[first : first + _TOGETHER])
        found[site].append(_find(of_pairs, differs, rows, (site,), threshold, key))
        if progress is not None:
            progress(done, len(names) * len(factors))
    return {site: tuple(circuits) for site, circuits in found.items()}


def find_circuit(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sites: Iterable[str],
    *,
    by: By = "channel",
    readout: Readout = None,
    threshold: float = THRESHOLD,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> Circuit:
    """One circuit with units of several sites, patched together; else as `find_circuits`.

    A patched unit replaces what patches before it would have made of it.

    Args:
      apply_fn: The network.
      variables: Its variables.
      clean: The inputs x of M pairs, at least four.
      corrupted: The inputs x~, all of which differ in the factor that the circuit is for.
      sites: The sites whose units may be in the circuit.
      by: See `find_circuits`, and so are the others.
      readout: See there.
      threshold: See there.
      tau: See there.
      chunk: See there.
      key: See there.

    Returns:
      A `Circuit`.

    Raises:
      ValueError: As `find_circuits`.
    """
    names = network_order(apply_fn, variables, clean, sites)
    patches = joint_patches(
        apply_fn, variables, clean, corrupted, names, by=by, readout=readout, tau=tau, chunk=chunk
    )
    rows = np.arange(count_examples(clean))
    return _find(patches, patches.changing(), rows, names, threshold, key)


def _find(
    patches: JointPatches,
    differs: Mapping[str, np.ndarray],
    rows: np.ndarray,
    sites: tuple[str, ...],
    threshold: float,
    key: jax.Array | None,
) -> Circuit:
    """The circuit of the pairs `rows`, found on every other of them and judged on the rest.

    Args:
      patches: All pairs.
      differs: What they say of `changing`.
      rows: Those that differ in the factor.
      sites: Whose units may be in the circuit.
      threshold: See `find_circuits`.
      key: See there.
    """
    if len(rows) < 4:
        raise ValueError(f"expected at least 4 pairs, of which half are held out, got {len(rows)}")
    # As many in both halves, so that they share their programs.
    rows = rows[: len(rows) // 2 * 2]
    finding, judging = (patches.of_pairs(half) for half in rows.reshape(-1, 2).T)
    there = np.concatenate([differs[site][:, rows].any(1) for site in patches.sites])
    there &= patches.units_of(sites)
    order = _grow(finding, there, threshold)
    circuit, found = _prune(finding, order, threshold)
    key = jax.random.key(0) if key is None else key
    ranked = _ranked(finding, order, circuit, np.flatnonzero(there))
    named = {site: units for site, units in patches.named(circuit).items() if site in sites}
    judged = _judge(judging, circuit, ranked, key)
    return Circuit(
        units=named, size=len(circuit), reached=bool(found >= threshold), found=found, **judged
    )


def _grow(patches: JointPatches, there: np.ndarray, threshold: float) -> list[int]:
    """Adds units, of those in `there`, until they mediate enough or all are in."""
    order, mask = list[int](), np.zeros(patches.num, bool)
    reached = float(_mean(patches.fractions(mask[None]))[0])  # 0, or NaN if there is no effect
    while reached < threshold and len(order) < there.sum():
        gradient = np.where(there & ~mask, patches.gradient(mask), -np.inf)
        ranked = np.argsort(-gradient, kind="stable")[: int((there & ~mask).sum())]
        # Where many are needed, some are added at once; where few, the best of the candidates.
        sums = reached + np.cumsum(np.maximum(gradient[ranked], 0))
        at_once = int(np.searchsorted(sums, threshold)) // AT_ONCE
        sure, candidates = ranked[:at_once], ranked[at_once : at_once + AT_ONCE]
        mask[sure] = True
        found = _mean(patches.fractions(mask | _one_hot(candidates, patches.num)))
        chosen = int(np.argmax(found))
        order += [*sure.tolist(), int(candidates[chosen])]
        mask[order[-1]], reached = True, float(found[chosen])
    return order


def _prune(patches: JointPatches, order: list[int], threshold: float) -> tuple[np.ndarray, float]:
    """Drops units that can be spared, the least of them first; returns those left, and MF."""
    mask = _mask(order, patches.num)
    reached = float(_mean(patches.fractions(mask[None]))[0])

    def spare(units: np.ndarray) -> bool:
        """Drops as many of the first units as can be, of 1, 2, 4 and so on; whether it did."""
        nonlocal mask, reached
        sizes = 2 ** np.arange(min(AT_ONCE, len(units).bit_length()))
        fewer = np.array([mask & ~_mask(units[:size], patches.num) for size in sizes])
        left = _mean(patches.fractions(fewer))
        enough = np.flatnonzero(left >= threshold)
        if len(enough):
            mask, reached = fewer[enough[-1]], float(left[enough[-1]])
        return bool(len(enough))

    while reached >= threshold and mask.any():
        units = np.flatnonzero(mask)
        if spare(units[np.argsort(patches.gradient(mask)[units], kind="stable")]):
            continue
        # A gradient may be wrong about what can be spared, so in the end each unit is left out.
        without = _mean(patches.fractions(mask & ~_one_hot(units, patches.num)))
        if without.max() < threshold or not spare(units[np.argsort(-without, kind="stable")]):
            break
    return np.flatnonzero(mask), reached


def _judge(
    patches: JointPatches, circuit: np.ndarray, ranked: np.ndarray, key: jax.Array
) -> dict[str, Any]:
    """What is said of a circuit on held-out pairs.

    Args:
      patches: Those pairs.
      circuit: Its units.
      ranked: All units that it could consist of, the best first.
      key: See `find_circuits`.
    """
    mask = _mask(circuit, patches.num)
    without = mask & ~_one_hot(circuit, patches.num)
    sizes = np.unique(np.geomspace(1, len(ranked) + 1, _CURVE_POINTS).astype(int) - 1)
    prefixes = np.array([_mask(ranked[:size], patches.num) for size in sizes])
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    drawn = (generator.permutation(np.sort(ranked))[: len(circuit)] for _ in range(_RANDOM_SETS))
    random = [_mask(units, patches.num) for units in drawn]
    fractions = patches.fractions(np.concatenate([mask[None], without, prefixes, random]))
    parts = np.cumsum([1, len(without), len(prefixes)])
    whole, dropped, curve, null = np.split(fractions, parts)
    faithfulness, sets = _mean(whole)[0], _mean(null)
    lost = faithfulness - _mean(dropped)
    # Of the other direction: what the circuit's clean values take away from the corrupted run.
    left = 1 - patches.reversed().fractions(mask[None])
    # Filled up to one size, for one program.
    curve = np.resize(curve, (_CURVE_POINTS, len(whole[0])))
    means = jax.tree.map(np.asarray, estimate_mean(np.concatenate([whole, left, curve]).T, key))
    return {
        "faithfulness": jax.tree.map(lambda leaf: leaf[0], means),
        "completeness": jax.tree.map(lambda leaf: leaf[1], means),
        "lost": lost,
        "minimality": float(lost.max()) if len(lost) else float("nan"),
        "random": Estimate(sets.mean(), *central_interval(sets)),
        "p_value": float((1 + np.sum(sets >= faithfulness - 1e-6)) / (1 + len(sets))),
        "sizes": sizes,
        "curve": jax.tree.map(lambda leaf: leaf[2 : 2 + len(sizes)], means),
    }


def _ranked(
    patches: JointPatches, order: list[int], circuit: np.ndarray, there: np.ndarray
) -> np.ndarray:
    """The circuit first, then what was dropped from it, then the others by attribution."""
    first = [unit for unit in order if unit in circuit]
    dropped = [unit for unit in order if unit not in circuit]
    rest = np.setdiff1d(there, order)
    gradient = patches.gradient(_mask(first, patches.num))[rest]
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
