"""Path-specific patching: the effect that one component has by way of another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vaejax.changes import exact_change
from vaejax.chunking import even_chunk, map_chunks, resolve_chunk
from vaejax.estimates import Estimate, estimate_mean
from vaejax.interventions.edits import By, replace, swap, unit_ids
from vaejax.interventions.intercept import intervene
from vaejax.interventions.passes import (
    TAU,
    Components,
    Readout,
    as_masks,
    count_examples,
    mediated_fractions,
    read,
    shapes_of,
    take,
)
from vaejax.interventions.unit_sweep import Network, patch_site


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
    sender: str,
    receiver: str,
    *,
    by: By = "channel",
    frozen: Iterable[str] = (),
    readout: Readout = None,
    tau: float = TAU,
    chunk: int | None = None,
    key: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PathEffects:
    """The path-specific effects of all units of one site by way of all units of another.

    As `path_effect` for each of the S x T edges; like `patch_units` it runs on the host, calls the
    same few programs for all edges, and needs no pass where nothing changes.

    Args:
      apply_fn: The network, as for `path_effect`; and so are the others.
      variables: See there.
      clean: See there.
      corrupted: See there.
      sender: The site whose units send.
      receiver: The site whose units receive.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      frozen: See `path_effect`.
      readout: See there.
      tau: See there.
      chunk: See there.
      key: See there.
      progress: Called after each sender with the number done and their total.

    Returns:
      `PathEffects` of all edges, `[S, T]`.

    Raises:
      ValueError: As `patch_units`.
    """
    count_examples(clean, corrupted)
    frozen = tuple(frozen)
    network = Network(apply_fn, variables, clean, readout, resolve_chunk(chunk))
    output, activations = network.record((receiver,))
    received = activations[receiver]
    total = dataclasses.replace(network, inputs=corrupted).record(())[0] - output
    one = take(clean, jnp.arange(1))
    shapes = shapes_of((sender, receiver), apply_fn, variables, one)
    senders = unit_ids(shapes[sender].shape[1:], by)
    num = int(senders.max()) + 1
    found = []
    for unit in range(num):
        mask = {sender: senders == unit}
        donor = _receive(
            apply_fn, variables, clean, corrupted, mask, (receiver,), frozen, network.chunk
        )[receiver]
        found.append(patch_site(network, receiver, received, donor, total, by, tau, None))
        if progress is not None:
            progress(unit + 1, num)
    effects, fractions = (np.stack(part) for part in zip(*found, strict=True))
    return _summarise(np.moveaxis(effects, -1, 0), np.moveaxis(fractions, -1, 0), key)


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


@functools.partial(jax.jit, static_argnames=("apply_fn", "receivers", "frozen", "chunk"))
def _receive(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: dict[str, Any],
    receivers: tuple[str, ...],
    frozen: tuple[str, ...],
    chunk: int,
) -> dict[str, Any]:
    """`[N, ...]` for each receiver."""

    def run(rows: jax.Array) -> dict[str, Any]:
        pair = take(clean, rows), take(corrupted, rows)
        return _received(apply_fn, variables, *pair, sender, receivers, frozen)[1]

    return map_chunks(run, count_examples(clean), chunk)


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
