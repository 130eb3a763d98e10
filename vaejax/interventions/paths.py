"""Path-specific patching: the effect that one component has by way of another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.changes import exact_change
from vaejax.chunking import even_chunk, map_chunks, resolve_chunk
from vaejax.estimates import Estimate, estimate_mean
from vaejax.interventions.edits import By, num_units, replace, swap, unit_mask
from vaejax.interventions.intercept import intervene
from vaejax.interventions.passes import (
    TAU,
    Components,
    Readout,
    as_masks,
    count_examples,
    mediated_fractions,
    read,
    recompute,
    shapes_of,
    take,
)
from vaejax.interventions.unit_sweep import Network, patch_site

Units = str | Mapping[str, Any]
"""All units of a site, by its name; or a mapping from one site to the indices of some, `[S]`."""


@struct.dataclass
class PathEffects:
    """Path-specific effects: N pairs; for `path_units`, of S senders on T receivers.

    Attributes:
      effect: `||PSE||_2`, mean over pairs, with its bootstrap interval: `[]` or `[S, T]`.
      mediated_fraction: `<PSE, TE> / ||TE||^2` likewise.
      effects: `||PSE||_2` of each pair, `[N]` or `[S, T, N]`.
      mediated_fractions: Of each pair; NaN where it is skipped.
      skipped: `[]` int32, pairs without a total effect.
    """

    effect: Estimate
    mediated_fraction: Estimate
    effects: jax.Array
    mediated_fractions: jax.Array
    skipped: jax.Array


def path_effect(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: Components,
    receiver: Components,
    *,
    frozen: Iterable[str] = (),
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> PathEffects:
    """The effect of a sender u by way of a receiver v alone.

        PSE = Y(x; v <- v(x; u <- u(x~))) - Y(x)

    The sender takes its value on the corrupted input, the receiver is recomputed with everything
    else from the clean one, and then the network runs on the clean input with the receiver alone
    replaced [S]. That counts every path from u to v; `frozen` sites are held at their clean values
    while v is recomputed, which leaves the paths around them, in the end the direct edge.

    Args:
      apply_fn: The network, as for `mediate`; and so are the others.
      variables: See there.
      clean: See there.
      corrupted: See there.
      sender: Names of sites, or a mapping from sites to masks of units.
      receiver: Likewise; after the sender in the network.
      frozen: Sites between the two.
      readout: See `mediate`.
      tau: See `mediate`.
      chunk: See `mediate`.
      key: See `mediate`.

    Returns:
      A `PathEffects` of this one edge.

    Raises:
      ValueError: As `mediate`.

    References:
      Wang et al., `Interpretability in the Wild <https://arxiv.org/abs/2211.00593>`_, 2022.
      Goldowsky-Dill et al., `Localizing Model Behavior with Path Patching
      <https://arxiv.org/abs/2304.05969>`_, 2023.
    """
    chunk = even_chunk(chunk, count_examples(clean, corrupted))
    effects, fractions = _path_effect(
        apply_fn,
        variables,
        clean,
        corrupted,
        as_masks(sender),
        as_masks(receiver),
        tuple(frozen),
        readout,
        tau,
        chunk,
    )
    return _summarise(effects, fractions, key)


def path_units(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: Units,
    receiver: Units,
    *,
    by: By = "channel",
    frozen: Iterable[str] = (),
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PathEffects:
    """The path-specific effects of units of one site by way of units of another, all or some.

    As `path_effect` for each of the S x T edges; like `patch_units` it runs on the host, calls the
    same few programs for all edges, and needs no pass where nothing changes.

    Args:
      apply_fn: The network, as for `path_effect`; and so are the others.
      variables: See there.
      clean: See there.
      corrupted: See there.
      sender: The site whose units send; or a mapping from it to the indices of those that do.
      receiver: The site whose units receive, or a mapping likewise.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      frozen: See `path_effect`.
      readout: See there.
      tau: See there.
      chunk: See there.
      key: See there.
      progress: Called after each sender with the number done and their total.

    Returns:
      `PathEffects` of all edges, `[S, T]`, units in the order given.

    Raises:
      ValueError: As `patch_units`; or there is no such unit, or more than one site.
    """
    count_examples(clean, corrupted)
    frozen = tuple(frozen)
    one = take(clean, jnp.arange(1))
    site, senders, _ = some_units(sender, by, apply_fn, variables, one)
    target, receivers, _ = some_units(receiver, by, apply_fn, variables, one)
    sites = (site, *frozen, target)
    pairs = Recorded.of(apply_fn, variables, clean, corrupted, sites, readout, chunk)
    effects, fractions = sweep_paths(
        pairs, site, senders, target, receivers, by=by, frozen=frozen, tau=tau, progress=progress
    )
    return _summarise(effects, fractions, key)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """N pairs, and what a network makes of them.

    Attributes:
      network: That of the clean inputs.
      output: The quantity of interest on them, `[N, F]`.
      total: How far it is from there to that of the corrupted inputs, `[N, F]`.
      clean: Activations of sites on the clean inputs, `[N, ...]` each.
      corrupted: On the corrupted ones.
    """

    network: Network
    output: jax.Array
    total: jax.Array
    clean: dict[str, Any]
    corrupted: dict[str, Any]

    @classmethod
    def of(
        cls,
        apply_fn: Callable[..., Any],
        variables: Any,
        clean: Any,
        corrupted: Any,
        sites: tuple[str, ...],
        readout: Readout,
        chunk: int | None,
    ) -> Recorded:
        """Runs the network on both; arguments as for `path_units`."""
        network = Network(apply_fn, variables, clean, readout, resolve_chunk(chunk))
        output, clean_at = network.record(sites)
        other, corrupted_at = dataclasses.replace(network, inputs=corrupted).record(sites)
        return cls(network, output, other - output, clean_at, corrupted_at)

    def recompute(self, given: dict[str, Any], site: str) -> Any:
        """The activation of a site where those of others are given."""
        of = self.network
        return recompute(of.apply_fn, of.variables, of.inputs, given, site, of.chunk)


def sweep_paths(
    pairs: Recorded,
    site: str,
    senders: np.ndarray,
    target: str,
    receivers: np.ndarray,
    *,
    by: By,
    frozen: tuple[str, ...] = (),
    tau: float = TAU,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`path_units` before the means: `||PSE||` and mediated fractions, each `[N, S, T]`."""
    received = pairs.clean[target]
    receives = unit_mask(received.shape[1:], receivers, by)
    held = {name: pairs.clean[name] for name in frozen}
    found = []
    for unit in senders:
        mask = unit_mask(pairs.clean[site].shape[1:], unit, by)
        sent = jnp.where(mask, pairs.corrupted[site], pairs.clean[site])
        donor = pairs.recompute({**held, site: sent}, target)
        donor = jnp.where(receives, donor, received)  # the others change nothing, and cost no pass
        patched = patch_site(pairs.network, target, received, donor, pairs.total, by, tau, None)
        found.append([rows[receivers] for rows in patched])
        if progress is not None:
            progress(len(found), len(senders))
    effects, fractions = (np.stack(part) for part in zip(*found, strict=True))
    return np.moveaxis(effects, -1, 0), np.moveaxis(fractions, -1, 0)


def some_units(
    units: Units, by: By, apply_fn: Callable[..., Any], variables: Any, inputs: Any
) -> tuple[str, np.ndarray, tuple[int, ...]]:
    """The site that units are of, their indices `[S]`, and the shape of one activation `[...]`.

    Raises:
      ValueError: There is no such site or unit, or `units` is not as `Units` says.
    """
    given = units if isinstance(units, Mapping) else {units: None}
    if len(given) != 1:
        raise ValueError(f"expected units of one site, got {', '.join(given) or 'none'}")
    ((site, indices),) = given.items()
    found = shapes_of((site,), apply_fn, variables, inputs)[site]
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ValueError(f"site {site!r}: its output is not one array, so it has no units")
    shape = found.shape[1:]
    rows = np.arange(num_units(shape, by)) if indices is None else np.asarray(indices)
    if rows.ndim != 1 or not rows.size or len(set(rows.tolist())) < rows.size:
        raise ValueError(f"site {site!r}: expected different units [S], got {rows.tolist()}")
    unit_mask(shape, rows, by)  # refuses what is not there
    return site, rows.astype(np.int32), shape


def _summarise(effects: Any, fractions: Any, key: jax.Array | None) -> PathEffects:
    """Summaries of `[N, ...]`."""
    effects, fractions = jnp.asarray(effects), jnp.asarray(fractions)
    skipped = jnp.isnan(fractions).reshape(len(fractions), -1)[:, 0]
    return PathEffects(
        effect=estimate_mean(effects, key),
        mediated_fraction=estimate_mean(fractions, key),
        effects=jnp.moveaxis(effects, 0, -1),
        mediated_fractions=jnp.moveaxis(fractions, 0, -1),
        skipped=jnp.sum(skipped, dtype=jnp.int32),
    )


def _received(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: dict[str, Any],
    receivers: tuple[str, ...],
    frozen: tuple[str, ...],
) -> tuple[Any, dict[str, Any]]:
    """The clean output, and what receivers take when senders alone are corrupted."""
    observe = intervene(apply_fn, {}, record=(*sender, *frozen))
    output, held = observe(variables, {}, clean)
    _, donors = observe(variables, {}, corrupted)
    edits = dict.fromkeys(frozen, replace) | dict.fromkeys(sender, swap)
    values = {site: held[site] for site in frozen}
    values |= {site: (mask, donors[site]) for site, mask in sender.items()}
    _, received = intervene(apply_fn, edits, record=receivers)(variables, values, clean)
    return output, received


@functools.partial(jax.jit, static_argnames=("apply_fn", "frozen", "readout", "chunk"))
def _path_effect(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: dict[str, Any],
    receiver: dict[str, Any],
    frozen: tuple[str, ...],
    readout: Readout,
    tau: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """`||PSE||` and mediated fraction, each `[N]`."""

    def run(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        pair = take(clean, rows), take(corrupted, rows)
        receivers = tuple(receiver)
        output, received = _received(apply_fn, variables, *pair, sender, receivers, frozen)
        patched = intervene(apply_fn, dict.fromkeys(receivers, swap))
        values = {site: (mask, received[site]) for site, mask in receiver.items()}
        before = read(readout, output)
        after = read(readout, patched(variables, values, pair[0])[0])
        total = read(readout, apply_fn(variables, pair[1])) - before
        effect = exact_change(before, after)
        return jnp.linalg.norm(effect, axis=-1), mediated_fractions(effect, total, tau)

    return map_chunks(run, count_examples(clean), chunk)
