"""Which pairs of units act on another only together.

Marks as in `vaejax.metrics`: [R] is our reconstruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from vaejax.changes import at_least_float32, exact_change
from vaejax.chunking import even_chunk, map_chunks
from vaejax.estimates import Estimate, bootstrap_mean
from vaejax.interventions.edits import By, sum_units, swap, unit_ids
from vaejax.interventions.intercept import intervene
from vaejax.interventions.passes import count_examples, take
from vaejax.interventions.paths import Units, some_units

ROUNDING = 1e-5
"""Changes of a smaller share of what changes are taken for rounding."""


@struct.dataclass
class UnitInteractions:
    """The interactions of S senders on T receivers.

    Attributes:
      share: `mean |I| / mean |change|`, with its bootstrap interval over pairs of inputs,
        `[S, S, T]`; symmetric. NaN where both units together change nothing, and for a unit with
        itself.
      interaction: `mean |I|`, in units of the receiver, `[S, S, T]`.
      change: `mean |w(u~, v~) - w(u, v)|`, likewise.
      senders: Their names, `"site:unit"` as in `unit_graph`.
      receivers: Likewise.
    """

    share: Estimate
    interaction: jax.Array
    change: jax.Array
    senders: tuple[str, ...] = struct.field(pytree_node=False)
    receivers: tuple[str, ...] = struct.field(pytree_node=False)


def unit_interactions(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    sender: Units,
    receiver: Units,
    *,
    by: By = "channel",
    chunk: int | None = None,
    key: jax.Array | None = None,
) -> UnitInteractions:
    """How far the effect of two units on a third is not the sum of their effects [R].

        I = w(u~, v~) - w(u~, v) - w(u, v~) + w(u, v)
        share = mean |I| / mean |w(u~, v~) - w(u, v)|

    `w(u~, v)` is the receiver with the sender u as on the corrupted input and all else as on the
    clean one, as in `path_effect`; means are over pairs of inputs and the receiver's places. 0 for
    a sum, and 1 for a product (or AND) whose factors are both 0 on the clean input. Above 1/2 the
    interaction is most of the change, and `count_motifs` calls it a *gate*.

    Let the inputs of a pair differ in more than one factor: a unit that is the same on both is in
    no interaction, and factors that change one at a time seldom change both units of a gate.

    Where the change is rounding, `ROUNDING` of what the receiver is and of its changes by u and by
    v or less, the share is NaN; so is that of an exclusive or in which both together always cancel.

    One pass for each two senders, of the network up to the receivers, and all in one program.

    Args:
      apply_fn: The network, as for `vaejax.interventions.path_units`; and so are the others.
      variables: See there.
      clean: The inputs x, `[M, ...]` or a pytree of such arrays.
      corrupted: The inputs x~, paired with them.
      sender: All units of a site by its name, or a mapping from it to the indices of some.
      receiver: Likewise; after the sender in the network.
      by: What a unit is, see `vaejax.interventions.unit_ids`.
      chunk: Pairs of inputs run at once, see `vaejax.chunking.resolve_chunk`.
      key: Draws the bootstrap's resamples.

    Returns:
      The interactions of each two senders.

    Raises:
      ValueError: An unknown site or unit, or inputs that do not fit.

    Example:
      >>> from flax import linen as nn
      >>> from vaejax.models.layers import Site
      >>> class Gate(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         u = Site(name="u")(x)
      ...         return Site(name="w")(jnp.stack([u[:, 0] * u[:, 1], u[:, 0] + u[:, 2]], 1))
      >>> clean, corrupted = jnp.zeros((4, 3)), jnp.ones((4, 3))
      >>> found = unit_interactions(Gate().apply, {}, clean, corrupted, "u", "w")
      >>> print(found.share.value[0, 1], found.share.value[0, 2])
      [1. 0.] [nan  0.]
    """
    total = count_examples(clean, corrupted)
    one = take(clean, jnp.arange(1))
    site, senders, shape = some_units(sender, by, apply_fn, variables, one)
    target, receivers, _ = some_units(receiver, by, apply_fn, variables, one)
    first, second = np.triu_indices(len(senders), 1)
    found = _interactions(
        apply_fn, variables, clean, corrupted, jnp.asarray(unit_ids(shape, by)), senders,
        jnp.asarray([first, second]), receivers, key, site=site, target=target, by=by,
        chunk=even_chunk(chunk, total),
    )  # fmt: skip

    def square(of_pairs: jax.Array, on_diagonal: float) -> jax.Array:
        whole = np.full((len(senders), len(senders), len(receivers)), on_diagonal, np.float32)
        whole[first, second] = whole[second, first] = np.asarray(of_pairs)
        return jnp.asarray(whole)

    share, interaction, change = found
    return UnitInteractions(
        share=jax.tree.map(lambda leaf: square(leaf, np.nan), share),
        interaction=square(interaction, 0.0),
        change=square(change, np.nan),
        senders=tuple(f"{site}:{unit}" for unit in senders),
        receivers=tuple(f"{target}:{unit}" for unit in receivers),
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "site", "target", "by", "chunk"))
def _interactions(
    apply_fn: Callable[..., Any],
    variables: Any,
    clean: Any,
    corrupted: Any,
    ids: jax.Array,
    senders: jax.Array,
    pairs: jax.Array,
    receivers: jax.Array,
    key: jax.Array | None,
    *,
    site: str,
    target: str,
    by: By,
    chunk: int,
) -> tuple[Estimate, jax.Array, jax.Array]:
    """Share, `mean |I|` and `mean |change|` of P pairs of senders, each `[P, T]`."""
    observe = intervene(apply_fn, {}, record=site)
    observe_target = intervene(apply_fn, {}, record=target)
    patched = intervene(apply_fn, {site: swap}, record=target)
    num = len(senders)
    units = jnp.concatenate([jnp.full(1, -1, senders.dtype), senders])
    rows = jnp.arange(num + 1)
    items = jnp.concatenate([jnp.stack([rows] * 3, 1), jnp.insert(pairs.T + 1, 0, num + 1, axis=1)])

    def of_chunk(rows: jax.Array) -> tuple[jax.Array, ...]:
        inputs = take(clean, rows)
        donor = observe(variables, {}, take(corrupted, rows))[1][site]

        def size(change: jax.Array) -> jax.Array:
            """Mean over the places of each receiver, `[chunk, T]`."""
            places = sum_units(jnp.ones((1, *change.shape[1:])), by)
            return (sum_units(jnp.abs(change), by) / places)[:, receivers]

        def step(worlds: jax.Array, item: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            row, i, j = item
            mask = jnp.isin(ids, units[jnp.stack([i, j])])
            new = patched(variables, {site: (mask, donor)}, inputs)[1][target]
            worlds = worlds.at[row].set(at_least_float32(new))
            clean_, one, other, both = (worlds[index] for index in (0, i, j, row))
            interaction = exact_change(other, both) - exact_change(clean_, one)
            nothing = (both == one) & (other == clean_)
            sizes = size(jnp.where(nothing, 0, interaction)), size(exact_change(clean_, both))
            return worlds, sizes

        # What is compared comes out of the same loop: first no unit, then each alone, each two.
        shape = jax.eval_shape(observe_target, variables, {}, inputs)[1][target].shape
        worlds = jnp.zeros((num + 2, *shape))
        worlds, (interactions, changes) = lax.scan(step, worlds, items)
        floor = size(worlds[0]) + changes[1 : num + 1]
        found = interactions[num + 1 :], changes[num + 1 :], floor
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)

    def share(means: tuple[jax.Array, ...]) -> jax.Array:
        interaction, change, floor = means
        there = change > ROUNDING * (floor[pairs[0]] + floor[pairs[1]])
        return jnp.where(there, interaction / jnp.where(there, change, 1), jnp.nan)

    def estimate(of_receiver: tuple[jax.Array, ...]) -> Estimate:
        means = jax.tree.map(lambda leaf: leaf.mean(0), of_receiver)
        return Estimate(share(means), *bootstrap_mean(share, of_receiver, key=key))

    found = map_chunks(of_chunk, count_examples(clean), chunk)
    # A receiver at a time: resamples of all would take much memory.
    shares = lax.map(estimate, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0), found))
    shares = jax.tree.map(lambda leaf: leaf.T, shares)
    return shares, found[0].mean(0), found[1].mean(0)
